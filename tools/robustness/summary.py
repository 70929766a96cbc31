"""Summarise the scores: mean gains with 95 % confidence intervals as Markdown tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data.splits import speaker_of
from metrics.score import METRICS
from metrics.stats import PairedTest, mean_with_interval, paired_test
from tools.robustness.conditions import BASE, Axis, Condition
from tools.robustness.scoring import Scores

Results = Mapping[Condition, Sequence[Scores]]

TABLES = ("pesq", "stoi", "si_sdr")
"""Metrics with a Markdown table; CSV and JSON have all."""

MIN_SPEAKERS = 4
"""The distribution over speakers is left out with fewer."""


def noisy_mean(scores: Sequence[Scores], metric: str) -> float:
    """Return the mean of the noisy scores; NaN if there are none."""
    return mean_with_interval(np.array([row.noisy[metric] for row in scores])).mean


def enhanced_mean(scores: Sequence[Scores], name: str, metric: str) -> float:
    """Return the mean of a checkpoint's scores; NaN if there are none."""
    return mean_with_interval(np.array([row.enhanced[name][metric] for row in scores])).mean


def gain_of(scores: Sequence[Scores], name: str, metric: str) -> PairedTest:
    """Compare a checkpoint's scores with the noisy ones, utterance by utterance."""
    return paired_test([row.noisy[metric] for row in scores], [row.enhanced[name][metric] for row in scores])


def speaker_gains(axes: Sequence[Axis], results: Results, name: str) -> dict[str, float]:
    """Return each speaker's mean gain in PESQ over the axis "noise", or over the base alone; worst first."""
    conditions = next((set(axis.conditions.values()) for axis in axes if axis.name == "noise"), {BASE})
    gains: dict[str, list[float]] = {}
    for condition in conditions:
        for row in results.get(condition, ()):
            gains.setdefault(speaker_of(row.id), []).append(row.enhanced[name]["pesq"] - row.noisy["pesq"])
    means = {speaker: float(np.mean(values)) for speaker, values in gains.items()}
    return dict(sorted((item for item in means.items() if not math.isnan(item[1])), key=lambda item: item[1]))


def as_markdown(axes: Sequence[Axis], results: Results, names: Sequence[str], note: str) -> str:
    """Write `note`, a table for each of `TABLES`, the gains over speakers, and the conditions that get worse."""
    lines = [note, ""]
    worse: dict[str, dict[tuple[Condition, str], str]] = {name: {} for name in names}
    for metric in TABLES:
        label, digits = METRICS[metric].label, METRICS[metric].digits
        lines += table_head(label, names, columns=2)
        for axis in axes:
            for number, (value, condition) in enumerate(axis.conditions.items()):
                mean = noisy_mean(results[condition], metric)
                cells = [axis.title if number == 0 else "", value, "-" if math.isnan(mean) else f"{mean:.{digits}f}"]
                for name in names:
                    gain = gain_of(results[condition], name, metric)
                    cells.append(format_gain(gain, digits))
                    if gain.mean + gain.ci95 < 0:
                        worse[name][condition, metric] = f"{label} {cells[-1]}"
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    gains = {name: speaker_gains(axes, results, name) for name in names}
    if min(map(len, gains.values()), default=0) >= MIN_SPEAKERS:
        lines += [
            "**Speakers**: gain in PESQ, each speaker's mean over the kinds of noise",
            "",
            "| | speakers | worst tenth | median | best tenth | the three worst |",
            "|---|---|---|---|---|---|",
        ]
        for name, of_speakers in gains.items():
            low, middle, high = np.quantile(list(of_speakers.values()), [0.1, 0.5, 0.9])
            worst = ", ".join(f"{speaker} {gain:+.2f}" for speaker, gain in list(of_speakers.items())[:3])
            lines.append(f"| {name} | {len(of_speakers)} | {low:+.2f} | {middle:+.2f} | {high:+.2f} | {worst} |")
        lines.append("")
    lines += ["**Worse than the input**: the whole confidence interval of the gain is below 0", ""]
    for name in names:
        places: list[str] = []
        for axis in axes:
            for value, condition in axis.conditions.items():
                # Removed, so that a condition on several axes is listed once.
                found = [worse[name].pop((condition, metric), "") for metric in TABLES]
                if any(found):
                    places.append(f"{axis.title} {value}: {', '.join(filter(None, found))}")
        lines.append(f"- {name}: {'; '.join(places) or 'none'}")
    return "\n".join(lines) + "\n"


def as_json(axes: Sequence[Axis], results: Results, names: Sequence[str], settings: object) -> dict[str, Any]:
    """Return settings, scores of all metrics by axis and label, and gains by speaker; None stands for NaN."""
    content: dict[str, Any] = {"settings": settings, "axes": {}, "speakers": {}}
    for axis in axes:
        content["axes"][axis.name] = {}
        for label, condition in axis.conditions.items():
            scores = results[condition]
            systems: dict[str, Any] = {"noisy": {metric: rounded(noisy_mean(scores, metric)) for metric in METRICS}}
            for name in names:
                systems[name] = {}
                for metric in METRICS:
                    gain = gain_of(scores, name, metric)
                    values = {"mean": enhanced_mean(scores, name, metric), "gain": gain.mean, "ci95": gain.ci95}
                    values = {key: rounded(value) for key, value in values.items()}
                    systems[name][metric] = {**values, "files": gain.files}
            content["axes"][axis.name][label] = {"files": len(scores), **systems}
    for name in names:
        gains = speaker_gains(axes, results, name)
        content["speakers"][name] = {speaker: round(gain, 4) for speaker, gain in gains.items()}
    return content


def as_csv(groups: Iterable[tuple[Mapping[str, str], Sequence[Scores]]], names: Sequence[str]) -> str:
    """Write a row for each utterance and checkpoint in full precision; "NaN" for a missing score.

    Each group of scores has its labels (column: text), which come first.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics: list[str] = []
    for labels, scores in groups:
        for row in scores:
            if not metrics:
                metrics = list(row.noisy)
                columns = [f"{state}_{metric}" for state in ("noisy", "enhanced") for metric in metrics]
                writer.writerow([*labels, "file", "checkpoint", *columns])
            for name in names:
                values = [signal[metric] for signal in (row.noisy, row.enhanced[name]) for metric in metrics]
                texts = ["NaN" if math.isnan(value) else repr(value) for value in values]
                writer.writerow([*labels.values(), row.id, name, *texts])
    return text.getvalue()


def table_head(title: str, names: Sequence[str], columns: int) -> list[str]:
    """Return title and head of a table with `columns` columns of labels."""
    return [
        f"**{title}**: noisy, and the gain of each checkpoint (± half-width of its 95 % confidence interval)",
        "",
        f"|{' |' * columns} noisy | {' | '.join(names)} |",
        "|" + "---|" * (columns + 1 + len(names)),
    ]


def format_gain(gain: PairedTest, digits: int) -> str:
    """Format mean and interval; "-" for NaN."""
    if math.isnan(gain.mean):
        return "-"
    return f"{gain.mean:+.{digits}f}" + ("" if math.isnan(gain.ci95) else f" ± {gain.ci95:.{digits}f}")


def rounded(value: float) -> float | None:
    """Round for JSON; None for NaN."""
    return round(value, 4) if math.isfinite(value) else None
