"""All measures of one pair of signals or files, and of many pairs in parallel.

`score_pairs` is what `cal_metrics.py` and `inference.py` call:

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

Measure = Callable[[np.ndarray, np.ndarray], float]
"""A score of a degraded signal `[N]`, the second, against a clean one `[N]`; raises `ScoreError` where it has none."""


@dataclass(frozen=True)
class Metric:
    """One of `METRICS`.

    `label`: what tables call it, with its unit; `digits`: its decimals down to what a listener could notice (some
    tables show more); `measure`: what computes it, or None for the three composite measures, which are made together,
    of PESQ, SSNR and two parts that are no metrics.
    """

    label: str
    digits: int
    measure: Measure | None


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
"""All that a pair is scored with, by name, in the order of every table, CSV and JSON."""

MAX_LENGTH_DIFFERENCE = 512
"""Samples at 16 kHz: the frame that a system with an STFT may drop at the end. More is another recording."""

MAX_SECONDS = 300
"""Longer recordings are refused before they fill the memory: ESTOI takes some 4 MB a second."""


@dataclass(frozen=True)
class PairScores:
    """The scores of one pair: a value for each of `METRICS`, NaN where it has none, and why (one line)."""

    id: str
    values: Mapping[str, float]
    reason: str | None = None


def score_signals(clean: np.ndarray, degraded: np.ndarray, variant: Variant) -> tuple[dict[str, float], list[str]]:
    """Score `degraded` `[N]` against `clean` `[N]`, both in ±1 at 16 kHz.

    Returns a value for each of `METRICS`, and a reason for each measure that failed; its value, and those
    that need it, are NaN. Raises `ScoreError` where no measure can score the pair (see `check_pair`).
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
    """Score the noisy (or enhanced) file of an utterance against its clean one.

    Files at another rate are resampled to 16 kHz; the scores of several channels are averaged. Never raises
    for what is wrong with the files: the result says it.
    """
    try:
        clean, degraded = _read_pair(utterance)
        values: list[dict[str, float]] = []
        reasons: list[str] = []
        for channel in range(clean.shape[1]):
            scores, failures = score_signals(clean[:, channel], degraded[:, channel], variant)
            values.append(scores)
            reasons += failures
    except (AudioError, ScoreError) as error:
        return without_scores(utterance, str(error))
    means = {name: float(np.mean([scores[name] for scores in values])) for name in METRICS}
    return PairScores(utterance.id, means, "; ".join(dict.fromkeys(reasons)) or None)


def score_pairs(
    utterances: Sequence[Utterance], variant: Variant, jobs: int, progress: bool = False
) -> list[PairScores]:
    """Score many pairs in `jobs` processes, in the order given; `progress` shows a bar on standard error.

    A pair whose process dies has NaN for all scores and the reason; the other pairs are scored.
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
    """The result of a pair that cannot be scored: NaN for all, and why."""
    return PairScores(utterance.id, dict.fromkeys(METRICS, math.nan), " ".join(reason.split()))


def _read_pair(utterance: Utterance) -> tuple[np.ndarray, np.ndarray]:
    """Both files as float32 `[N, channels]` at 16 kHz, cut to the shorter; raises as `_read` does."""
    clean, clean_rate = _read(utterance.clean)
    degraded, degraded_rate = _read(utterance.noisy)
    if clean_rate != degraded_rate:
        raise ScoreError(f"the rates differ: clean {clean_rate} Hz, other {degraded_rate} Hz")
    if clean.shape[1] != degraded.shape[1]:
        raise ScoreError(f"the channels differ: clean has {clean.shape[1]}, other {degraded.shape[1]}")
    samples = min(len(clean), len(degraded))
    if max(len(clean), len(degraded)) - samples > MAX_LENGTH_DIFFERENCE:
        lengths = f"clean {len(clean)}, other {len(degraded)} samples at 16 kHz"
        raise ScoreError(f"the lengths differ: {lengths}")
    return clean[:samples], degraded[:samples]


def _read(path: Path) -> tuple[np.ndarray, int]:
    """A file's samples `[N, channels]` at 16 kHz, and its own rate; raises `AudioError`, `ScoreError`."""
    with AudioReader(path) as reader:
        file_format = reader.format
        blocks: list[np.ndarray] = []
        count = 0
        for block in resample_blocks(reader.blocks(), file_format.rate, RATE, file_format.channels):
            count += len(block)
            if count > MAX_SECONDS * RATE:
                raise ScoreError(f"{path}: longer than {MAX_SECONDS} s; split it")
            blocks.append(block)
    return np.concatenate(blocks), file_format.rate
