"""Summarise the scores: mean gains with 95 % confidence intervals as Markdown tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.splits import speaker_of
from metrics.score import METRICS
from metrics.stats import PairedTest, mean_with_interval, paired_test
from tools.robustness.conditions import BASE, Axis, Condition
from tools.robustness.dnsmos import DNSMOS
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
    for metric in TABLES:
        lines += _table_head(METRICS[metric].label, names, columns=2)
        for axis in axes:
            for number, (label, condition) in enumerate(axis.conditions.items()):
                scores = results[condition]
                cells = [axis.title if number == 0 else "", label, _format(noisy_mean(scores, metric), metric)]
                cells += [_format_gain(gain_of(scores, name, metric), metric) for name in names]
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
        regressions: dict[tuple[Condition, str], tuple[str, str]] = {}  # the same condition may be on several axes
        for axis in axes:
            for label, condition in axis.conditions.items():
                for metric in TABLES:
                    gain = gain_of(results[condition], name, metric)
                    if gain.mean + gain.ci95 < 0:
                        text = f"{METRICS[metric].label} {_format_gain(gain, metric)}"
                        regressions.setdefault((condition, metric), (f"{axis.title} {label}", text))
        listed: dict[str, list[str]] = {}
        for place, text in regressions.values():
            listed.setdefault(place, []).append(text)
        places = [f"{place}: {', '.join(texts)}" for place, texts in listed.items()]
        lines.append(f"- {name}: {'; '.join(places) or 'none'}")
    return "\n".join(lines) + "\n"


def as_json(axes: Sequence[Axis], results: Results, names: Sequence[str], settings: object) -> dict[str, Any]:
    """Return settings, scores of all metrics by axis and label, and gains by speaker; None stands for NaN."""
    content: dict[str, Any] = {"settings": settings, "axes": {}, "speakers": {}}
    for axis in axes:
        content["axes"][axis.name] = {}
        for label, condition in axis.conditions.items():
            scores = results[condition]
            systems: dict[str, Any] = {"noisy": {metric: _rounded(noisy_mean(scores, metric)) for metric in METRICS}}
            for name in names:
                systems[name] = {}
                for metric in METRICS:
                    gain = gain_of(scores, name, metric)
                    values = {"mean": enhanced_mean(scores, name, metric), "gain": gain.mean, "ci95": gain.ci95}
                    values = {key: _rounded(value) for key, value in values.items()}
                    systems[name][metric] = {**values, "files": gain.files}
            content["axes"][axis.name][label] = {"files": len(scores), **systems}
    for name in names:
        gains = speaker_gains(axes, results, name)
        content["speakers"][name] = {speaker: round(gain, 4) for speaker, gain in gains.items()}
    return content


def as_csv(axes: Sequence[Axis], results: Results, names: Sequence[str]) -> str:
    """Write a row for each axis, condition, utterance and checkpoint in full precision; "NaN" for a missing score."""
    rows = [
        [axis.name, label, row.id, name, *_csv_scores(row, name, METRICS)]
        for axis in axes
        for label, condition in axis.conditions.items()
        for row in results[condition]
        for name in names
    ]
    return _csv_text(["axis", "condition", "file", "checkpoint"], METRICS, rows)


def dnsmos_markdown(scores: Sequence[Scores], names: Sequence[str]) -> str:
    """Write the table of mean DNSMOS scores and gains."""
    lines = _table_head(f"DNSMOS of {len(scores)} files", names, columns=1)
    for metric, label in DNSMOS.items():
        gains = [gain_of(scores, name, metric) for name in names]
        cells = [f"{gain.mean:+.2f}" + ("" if math.isnan(gain.ci95) else f" ± {gain.ci95:.2f}") for gain in gains]
        lines.append(f"| {label} | {noisy_mean(scores, metric):.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def dnsmos_json(scores: Sequence[Scores], names: Sequence[str]) -> dict[str, Any]:
    """Return mean DNSMOS scores and gains; None for the interval of a single file."""
    content: dict[str, Any] = {"files": len(scores), "noisy": {}} | {name: {} for name in names}
    for metric in DNSMOS:
        content["noisy"][metric] = _rounded(noisy_mean(scores, metric))
        for name in names:
            gain = gain_of(scores, name, metric)
            content[name][metric] = {"gain": _rounded(gain.mean), "ci95": _rounded(gain.ci95)}
    return content


def dnsmos_csv(scores: Sequence[Scores], names: Sequence[str]) -> str:
    """Write a row of DNSMOS scores for each file and checkpoint."""
    rows = [[row.id, name, *_csv_scores(row, name, DNSMOS)] for row in scores for name in names]
    return _csv_text(["file", "checkpoint"], DNSMOS, rows)


def _table_head(title: str, names: Sequence[str], columns: int) -> list[str]:
    return [
        f"**{title}**: noisy, and the gain of each checkpoint (± half-width of its 95 % confidence interval)",
        "",
        f"|{' |' * columns} noisy | {' | '.join(names)} |",
        "|" + "---|" * (columns + 1 + len(names)),
    ]


def _format(value: float, metric: str, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.{METRICS[metric].digits}f}"


def _format_gain(gain: PairedTest, metric: str) -> str:
    interval = "" if math.isnan(gain.ci95) else f" ± {_format(gain.ci95, metric)}"
    return f"{_format(gain.mean, metric, '+')}{interval}"


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _csv_scores(row: Scores, name: str, metrics: Mapping[str, object]) -> list[str]:
    values = [scores[metric] for scores in (row.noisy, row.enhanced[name]) for metric in metrics]
    return ["NaN" if math.isnan(value) else repr(value) for value in values]


def _csv_text(columns: list[str], metrics: Mapping[str, object], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *(f"{state}_{metric}" for state in ("noisy", "enhanced") for metric in metrics)])
    writer.writerows(rows)
    return text.getvalue()
