"""AudioCache without a clean version, before and after: DNSMOS of each file, and what each checkpoint adds."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.audio import AudioError, read_audio
from enhance.enhancer import Enhancer
from metrics.paired import paired_test
from metrics.signals import RATE, ScoreError
from metrics.summary import mean_with_interval
from tools.robustness.dnsmos import DNSMOS, Dnsmos
from tools.robustness.measure import enhance


@dataclass(frozen=True)
class BlindScores:
    """A file's scores, noisy and by checkpoint."""

    id: str
    noisy: Mapping[str, float]
    enhanced: Mapping[str, Mapping[str, float]]


def measure_blind(
    files: Mapping[str, Path], enhancers: Mapping[str, Enhancer], dnsmos: Dnsmos, quiet: bool
) -> tuple[list[BlindScores], list[str]]:
    """The scores of the files that can be scored, the mean of their channels, and a line for each that cannot."""
    scores: list[BlindScores] = []
    problems: list[str] = []
    for id_, path in tqdm(files.items(), unit="file", disable=quiet):
        try:
            noisy = read_audio(path, RATE)[0].mean(axis=1).astype(np.float64)
            enhanced = {name: dnsmos(enhance(enhancer, noisy)) for name, enhancer in enhancers.items()}
            scores.append(BlindScores(id_, dnsmos(noisy), enhanced))
        except AudioError as error:
            problems.append(str(error))
        except ScoreError as error:
            problems.append(f"{path}: {error}")
    return scores, problems


def blind_markdown(scores: Sequence[BlindScores], names: Sequence[str]) -> str:
    """The means before, and the gains ± the half-widths of their 95 % confidence intervals."""
    lines = [
        f"**DNSMOS** of {len(scores)} files: noisy, "
        "and what each checkpoint adds (± half-width of its 95 % confidence interval)",
        "",
        f"| | noisy | {' | '.join(names)} |",
        f"|---|---|{'---|' * len(names)}",
    ]
    for metric, label in DNSMOS.items():
        noisy = [each.noisy[metric] for each in scores]
        gains = [paired_test(noisy, [each.enhanced[name][metric] for each in scores]) for name in names]
        cells = [f"{gain.mean:+.2f}" + ("" if math.isnan(gain.ci95) else f" ± {gain.ci95:.2f}") for gain in gains]
        lines.append(f"| {label} | {mean_with_interval(np.array(noisy)).mean:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def blind_json(scores: Sequence[BlindScores], names: Sequence[str]) -> dict[str, Any]:
    """The same, and how many files; null for an interval of one file."""
    content: dict[str, Any] = {"files": len(scores), "noisy": {}} | {name: {} for name in names}
    for metric in DNSMOS:
        noisy = [each.noisy[metric] for each in scores]
        content["noisy"][metric] = round(float(np.mean(noisy)), 4)
        for name in names:
            gain = paired_test(noisy, [each.enhanced[name][metric] for each in scores])
            interval = None if math.isnan(gain.ci95) else round(gain.ci95, 4)
            content[name][metric] = {"gain": round(gain.mean, 4), "ci95": interval}
    return content


def blind_csv(scores: Sequence[BlindScores], names: Sequence[str]) -> str:
    """A row a file and checkpoint."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["file", "checkpoint", *(f"{state}_{metric}" for state in ("noisy", "enhanced") for metric in DNSMOS)]
    )
    for each in scores:
        for name in names:
            both = each.noisy, each.enhanced[name]
            writer.writerow([each.id, name, *(repr(values[metric]) for values in both for metric in DNSMOS)])
    return text.getvalue()
