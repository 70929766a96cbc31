"""DNSMOS: Microsoft's estimate of listening scores (ITU-T P.835 and P.808) from a recording alone.

For recordings without a clean reference. Needs the package speechmos (`pip install -e '.[dnsmos]'`), which brings the
networks. An estimate does not replace a listening test and may be far off for sounds unlike its training data.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cli import UserError
from data.audio import AudioError, read_audio
from enhance.enhancer import Enhancer
from metrics.signals import RATE, ScoreError
from tools.robustness.scoring import Scores
from tools.robustness.summary import format_gain, gain_of, noisy_mean, table_head

DNSMOS = {"ovrl_mos": "overall", "sig_mos": "speech", "bak_mos": "background", "p808_mos": "P.808"}
"""Labels of the scores, which range from 1 to 5."""

Dnsmos = Callable[[np.ndarray], dict[str, float]]
"""Maps samples `[N]` at 16 kHz to a score for each key of `DNSMOS`; raises `ScoreError`."""


def load_dnsmos() -> Dnsmos:
    """Return the DNSMOS function; raise `UserError` without the package speechmos."""
    try:
        package = importlib.import_module("speechmos.dnsmos")  # late: an extra, and slow to import
    except ImportError as error:
        raise UserError(f"speechmos cannot be used: {error}; pip install -e '.[dnsmos]'") from error

    def score(samples: np.ndarray) -> dict[str, float]:
        if not np.isfinite(samples).all() or np.ptp(samples) == 0:
            raise ScoreError("no DNSMOS: silent, or not finite")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # librosa warns of empty mel filters
            # The package repeats signals under 9 s and refuses samples beyond ±1.
            values: Mapping[str, float] = package.run(np.clip(samples.astype(np.float64), -1, 1), sr=RATE)
        return {name: float(values[name]) for name in DNSMOS}

    return score


def measure_recordings(
    files: Mapping[str, Path], enhancers: Mapping[str, Enhancer], dnsmos: Dnsmos, quiet: bool
) -> tuple[list[Scores], list[str]]:
    """Return the DNSMOS of recordings (the mean of their channels), and a message for each that has none."""
    scores: list[Scores] = []
    problems: list[str] = []
    for id_, path in tqdm(files.items(), unit="file", disable=quiet):
        try:
            noisy = read_audio(path, RATE)[0].mean(axis=1).astype(np.float64)
            enhanced = {name: dnsmos(enhancer.enhance_signal(noisy)) for name, enhancer in enhancers.items()}
            scores.append(Scores(id_, dnsmos(noisy), enhanced))
        except AudioError as error:
            problems.append(str(error))
        except ScoreError as error:
            problems.append(f"{path}: {error}")
    return scores, problems


def summarise_dnsmos(scores: Sequence[Scores], names: Sequence[str]) -> str:
    """Return the Markdown table of mean scores and gains."""
    lines = table_head(f"DNSMOS of {len(scores)} files", names, columns=1)
    for metric, label in DNSMOS.items():
        gains = [format_gain(gain_of(scores, name, metric), digits=2) for name in names]
        lines.append(f"| {' | '.join([label, f'{noisy_mean(scores, metric):.2f}', *gains])} |")
    return "\n".join(lines) + "\n"
