"""Summarise the scores: mean gains with 95 % confidence intervals as Markdown tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from metrics.score import METRICS
from metrics.stats import PairedTest, mean_with_interval, paired_test
from metrics.summary import json_number
from tools.robustness.conditions import Axis, Condition
from tools.robustness.scoring import Scores

Results = Mapping[Condition, Sequence[Scores]]

TABLES = ("pesq", "stoi", "si_sdr")
"""Metrics with a Markdown table; CSV and JSON have all."""


def noisy_mean(scores: Sequence[Scores], metric: str) -> float:
    """Return the mean of the noisy scores; NaN if there are none."""
    return mean_with_interval(np.array([row.noisy[metric] for row in scores])).mean


def enhanced_mean(scores: Sequence[Scores], name: str, metric: str) -> float:
    """Return the mean of a checkpoint's scores; NaN if there are none."""
    return mean_with_interval(np.array([row.enhanced[name][metric] for row in scores])).mean


def gain_of(scores: Sequence[Scores], name: str, metric: str) -> PairedTest:
    """Compare a checkpoint's scores with the noisy ones, utterance by utterance."""
    return paired_test([row.noisy[metric] for row in scores], [row.enhanced[name][metric] for row in scores])


def as_markdown(axes: Sequence[Axis], results: Results, names: Sequence[str], note: str) -> str:
    """Write `note` and a table for each of `TABLES`."""
    lines = [note, ""]
    for metric in TABLES:
        label, digits = METRICS[metric].label, METRICS[metric].digits
        lines += table_head(label, names, columns=2)
        for axis in axes:
            for number, (value, condition) in enumerate(axis.conditions.items()):
                mean = noisy_mean(results[condition], metric)
                cells = [axis.title if number == 0 else "", value, "-" if math.isnan(mean) else f"{mean:.{digits}f}"]
                cells += [format_gain(gain_of(results[condition], name, metric), digits) for name in names]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def as_json(axes: Sequence[Axis], results: Results, names: Sequence[str], settings: object) -> dict[str, Any]:
    """Return settings, and scores of all metrics by axis and label; None stands for NaN."""
    content: dict[str, Any] = {"settings": settings, "axes": {}}
    for axis in axes:
        content["axes"][axis.name] = {}
        for label, condition in axis.conditions.items():
            scores = results[condition]
            systems: dict[str, Any] = {
                "noisy": {metric: json_number(noisy_mean(scores, metric), 4) for metric in METRICS}
            }
            for name in names:
                systems[name] = {}
                for metric in METRICS:
                    gain = gain_of(scores, name, metric)
                    values = {"mean": enhanced_mean(scores, name, metric), "gain": gain.mean, "ci95": gain.ci95}
                    values = {key: json_number(value, 4) for key, value in values.items()}
                    systems[name][metric] = {**values, "files": gain.files}
            content["axes"][axis.name][label] = {"files": len(scores), **systems}
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
        f"**{title}**: noisy, and the gain of each checkpoint (± half-width of its 95 % confidence interval; bold: "
        "the whole interval is below 0)",
        "",
        f"|{' |' * columns} noisy | {' | '.join(names)} |",
        "|" + "---|" * (columns + 1 + len(names)),
    ]


def format_gain(gain: PairedTest, digits: int) -> str:
    """Format mean and interval; "-" for NaN, bold if the whole interval is below 0."""
    if math.isnan(gain.mean):
        return "-"
    text = f"{gain.mean:+.{digits}f}" + ("" if math.isnan(gain.ci95) else f" ± {gain.ci95:.{digits}f}")
    return f"**{text}**" if gain.mean + gain.ci95 < 0 else text
