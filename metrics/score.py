"""Score pairs of signals or files with all metrics, many files in parallel.

results = score_pairs([Utterance("p232_001", clean_path, enhanced_path)], variant="published", jobs=2)
print(format_table(results, "published"))          # from metrics.summary
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.audio import AudioError, AudioReader, resample_blocks
from data.file_lists import Utterance
from metrics.composite import Variant, composite, llr, ssnr, wss
from metrics.pesq import wideband_pesq
from metrics.si_sdr import si_sdr
from metrics.signals import RATE, ScoreError, check_pair
from metrics.stoi import estoi, stoi
from utils.processes import LostProcessError, run_in_processes


@dataclass(frozen=True)
class Metric:
    """An entry of `METRICS`.

    label: name in tables, with the unit.
    digits: decimals that are audible; some tables show more.
    measure: function of a clean and a degraded signal `[N]` that returns the score or raises `ScoreError`. None for
        CSIG, CBAK and COVL, which are computed together.
    """

    label: str
    digits: int
    measure: Callable[[np.ndarray, np.ndarray], float] | None


METRICS: Mapping[str, Metric] = {
    "pesq": Metric("PESQ", 2, wideband_pesq),
    "csig": Metric("CSIG", 2, None),
    "cbak": Metric("CBAK", 2, None),
    "covl": Metric("COVL", 2, None),
    "ssnr": Metric("SSNR dB", 1, ssnr),
    "stoi": Metric("STOI", 3, stoi),
    "estoi": Metric("ESTOI", 3, estoi),
    "si_sdr": Metric("SI-SDR dB", 1, si_sdr),
}
"""All metrics by name, in the order of every table, CSV and JSON."""

MAX_LENGTH_DIFFERENCE = 512
"""Maximum length difference of a pair in samples at 16 kHz: one STFT frame, which some systems drop at the end."""

MAX_SECONDS = 300
"""Maximum length of a recording; ESTOI takes about 4 MB of memory per second."""


@dataclass(frozen=True)
class PairScores:
    """Scores of one pair: a value for each of `METRICS`, NaN if undefined, and the reason in one line."""

    id: str
    values: Mapping[str, float]
    reason: str | None = None


def score_signals(clean: np.ndarray, degraded: np.ndarray, variant: Variant) -> tuple[dict[str, float], list[str]]:
    """Score `degraded` `[N]` against `clean` `[N]`, both in ±1 at 16 kHz.

    Returns a value for each of `METRICS` and the reason for each metric that failed; its value and those of the
    composite measures that depend on it are NaN. Raises `ScoreError` if no metric is defined (see `check_pair`).
    """
    clean, degraded = check_pair(clean, degraded)
    values: dict[str, float] = dict.fromkeys(METRICS, math.nan)
    reasons: list[str] = []
    for name, metric in METRICS.items():
        if metric.measure is not None:
            try:
                values[name] = metric.measure(clean, degraded)
            except ScoreError as error:
                reasons.append(str(error))
    parts = llr(clean, degraded), wss(clean, degraded, variant), values["ssnr"]
    values.update(composite(values["pesq"], *parts)._asdict())
    return values, reasons


def score_pair(utterance: Utterance, variant: Variant) -> PairScores:
    """Score the noisy (or enhanced) file of an utterance against its clean file.

    Files are resampled to 16 kHz and cut to the shorter one; scores are averaged over channels. An unusable file raises
    nothing: the result gives the reason.
    """
    try:
        clean, clean_rate = _read(utterance.clean)
        degraded, degraded_rate = _read(utterance.noisy)
        if clean_rate != degraded_rate:
            raise ScoreError(f"the rates differ: clean {clean_rate} Hz, other {degraded_rate} Hz")
        if clean.shape[1] != degraded.shape[1]:
            raise ScoreError(f"the channels differ: clean has {clean.shape[1]}, other {degraded.shape[1]}")
        if abs(len(clean) - len(degraded)) > MAX_LENGTH_DIFFERENCE:
            raise ScoreError(f"the lengths differ: clean {len(clean)}, other {len(degraded)} samples at 16 kHz")
        samples = min(len(clean), len(degraded))
        channels = [
            score_signals(clean[:samples, channel], degraded[:samples, channel], variant)
            for channel in range(clean.shape[1])
        ]
    except (AudioError, ScoreError) as error:
        return without_scores(utterance, str(error))
    means = {name: float(np.mean([values[name] for values, _ in channels])) for name in METRICS}
    reasons = dict.fromkeys(reason for _, failures in channels for reason in failures)
    return PairScores(utterance.id, means, "; ".join(reasons) or None)


def score_pairs(
    utterances: Sequence[Utterance], variant: Variant, jobs: int, progress: bool = False
) -> list[PairScores]:
    """Score many pairs in `jobs` processes and return the results in the given order.

    A pair that crashes its process is scored NaN, with the reason. `progress` shows a bar on standard error.
    """
    results: dict[int, PairScores] = {}
    task = partial(score_pair, variant=variant)
    with tqdm(total=len(utterances), unit="file", disable=not progress) as bar:
        for index, result in run_in_processes(task, utterances, jobs):
            if isinstance(result, BaseException):
                kind = "" if isinstance(result, LostProcessError) else f"{type(result).__name__}: "
                result = without_scores(utterances[index], f"{kind}{result}")
            results[index] = result
            bar.update()
    return [results[index] for index in range(len(utterances))]


def without_scores(utterance: Utterance, reason: str) -> PairScores:
    """Return the result of a pair that cannot be scored: NaN for all metrics, and the reason in one line."""
    return PairScores(utterance.id, dict.fromkeys(METRICS, math.nan), " ".join(reason.split()))


def _read(path: Path) -> tuple[np.ndarray, int]:
    """Read a file as float32 `[N, channels]` at 16 kHz; also return its own rate.

    Raises `AudioError`, or `ScoreError` as soon as the file exceeds `MAX_SECONDS`.
    """
    with AudioReader(path) as reader:
        rate, channels = reader.format.rate, reader.format.channels
        blocks: list[np.ndarray] = []
        samples = 0
        for block in resample_blocks(reader.blocks(), rate, RATE, channels):
            samples += len(block)
            if samples > MAX_SECONDS * RATE:
                raise ScoreError(f"{path}: longer than {MAX_SECONDS} s; split it")
            blocks.append(block)
    return np.concatenate(blocks), rate
