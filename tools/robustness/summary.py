"""What the scores of all trials come to: gains with intervals, tables, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.splits import speaker_of
from metrics.paired import PairedTest, paired_test
from metrics.score import METRICS
from metrics.summary import mean_with_interval
from tools.robustness.measure import TrialScores
from tools.robustness.plan import BASE, Axis, Condition

Results = Mapping[Condition, Sequence[TrialScores]]

SHOWN = ("pesq", "stoi", "si_sdr")
"""Metrics with a table of their own; CSV and JSON have all."""

FEW_SPEAKERS = 4
"""Fewer are listed as a group is, not as a distribution."""


@dataclass(frozen=True)
class Harm:
    """A condition under which the whole interval of a checkpoint's gain lies below 0."""

    axis: str
    label: str
    metric: str
    gain: PairedTest


def noisy_mean(scores: Sequence[TrialScores], metric: str) -> float:
    """The mean of the noisy scores; NaN where there is none."""
    return mean_with_interval(np.array([each.noisy[metric] for each in scores])).mean


def gain_of(scores: Sequence[TrialScores], name: str, metric: str) -> PairedTest:
    """Enhanced over noisy, file by file."""
    return paired_test([each.noisy[metric] for each in scores], [each.enhanced[name][metric] for each in scores])


def enhanced_mean(scores: Sequence[TrialScores], name: str, metric: str) -> float:
    """The mean of a checkpoint's scores; NaN where there is none."""
    return mean_with_interval(np.array([each.enhanced[name][metric] for each in scores])).mean


def harms(axes: Sequence[Axis], results: Results, name: str) -> list[Harm]:
    """Where a checkpoint makes `SHOWN` scores worse for certain, in the order of the axes; each condition once."""
    found: dict[tuple[Condition, str], Harm] = {}
    for axis in axes:
        for label, condition in axis.conditions.items():
            for metric in SHOWN:
                gain = gain_of(results[condition], name, metric)
                if gain.mean + gain.ci95 < 0:
                    found.setdefault((condition, metric), Harm(axis.name, label, metric, gain))
    return list(found.values())


def speaker_gains(axes: Sequence[Axis], results: Results, name: str, metric: str) -> dict[str, float]:
    """Each speaker's mean gain over the conditions of the axis "noise", or the base alone; worst first."""
    conditions = next((set(axis.conditions.values()) for axis in axes if axis.name == "noise"), {BASE})
    gains: dict[str, list[float]] = {}
    for condition in conditions:
        for each in results.get(condition, ()):
            gains.setdefault(speaker_of(each.id), []).append(each.enhanced[name][metric] - each.noisy[metric])
    means = {speaker: float(np.mean(values)) for speaker, values in gains.items()}
    return dict(sorted((item for item in means.items() if not math.isnan(item[1])), key=lambda item: item[1]))


def as_markdown(axes: Sequence[Axis], results: Results, names: Sequence[str], notes: Sequence[str]) -> str:
    """All tables: a table a metric, the speakers, and where it does harm; `notes` come first."""
    parts = [*notes, *(_table(axes, results, names, metric) for metric in SHOWN)]
    parts += [_speakers(axes, results, names), _harms(axes, results, names)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(axes: Sequence[Axis], results: Results, names: Sequence[str], metric: str) -> str:
    measured = METRICS[metric].label
    lines = [
        f"**{measured}**: noisy, and what each checkpoint adds (± half-width of its 95 % confidence interval)",
        "",
        f"| | | noisy | {' | '.join(names)} |",
        f"|---|---|---|{'---|' * len(names)}",
    ]
    for axis in axes:
        for number, (label, condition) in enumerate(axis.conditions.items()):
            scores = results[condition]
            cells = [axis.title if number == 0 else "", label, _number(noisy_mean(scores, metric), metric)]
            cells += [_gain(gain_of(scores, name, metric), metric) for name in names]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _speakers(axes: Sequence[Axis], results: Results, names: Sequence[str]) -> str:
    spread = {name: speaker_gains(axes, results, name, "pesq") for name in names}
    if min((len(gains) for gains in spread.values()), default=0) < FEW_SPEAKERS:
        return ""
    lines = [
        "**Speakers**: gain in PESQ, each speaker's mean over the kinds of noise",
        "",
        "| | speakers | worst tenth | median | best tenth | the three worst |",
        "|---|---|---|---|---|---|",
    ]
    for name, gains in spread.items():
        low, middle, high = np.quantile(list(gains.values()), [0.1, 0.5, 0.9])
        worst = ", ".join(f"{speaker} {gain:+.2f}" for speaker, gain in list(gains.items())[:3])
        lines.append(f"| {name} | {len(gains)} | {low:+.2f} | {middle:+.2f} | {high:+.2f} | {worst} |")
    return "\n".join(lines)


def _harms(axes: Sequence[Axis], results: Results, names: Sequence[str]) -> str:
    titles = {axis.name: axis.title for axis in axes}
    lines = ["**Where it does harm**: the whole interval of the gain is below 0", ""]
    for name in names:
        found: dict[str, list[str]] = {}
        for one in harms(axes, results, name):
            place = found.setdefault(f"{titles[one.axis]} {one.label}", [])
            place.append(f"{METRICS[one.metric].label} {_gain(one.gain, one.metric)}")
        listed = [f"{place}: {', '.join(gains)}" for place, gains in found.items()]
        lines.append(f"- {name}: {'; '.join(listed) or 'nowhere here'}")
    return "\n".join(lines)


def _number(value: float, metric: str, sign: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{sign}.{METRICS[metric].digits}f}"


def _gain(gain: PairedTest, metric: str) -> str:
    interval = "" if math.isnan(gain.ci95) else f" ± {_number(gain.ci95, metric)}"
    return f"{_number(gain.mean, metric, '+')}{interval}"


def as_json(axes: Sequence[Axis], results: Results, names: Sequence[str], settings: object) -> dict[str, Any]:
    """The same with all metrics; null where there is no number."""
    return {
        "settings": settings,
        "axes": {
            axis.name: {
                label: _condition_json(results[condition], names) for label, condition in axis.conditions.items()
            }
            for axis in axes
        },
        "speakers": {
            name: {speaker: round(gain, 4) for speaker, gain in speaker_gains(axes, results, name, "pesq").items()}
            for name in names
        },
    }


def _condition_json(scores: Sequence[TrialScores], names: Sequence[str]) -> dict[str, Any]:
    systems: dict[str, Any] = {"noisy": {metric: _rounded(noisy_mean(scores, metric)) for metric in METRICS}}
    for name in names:
        systems[name] = {}
        for metric in METRICS:
            gain = gain_of(scores, name, metric)
            values = {"mean": enhanced_mean(scores, name, metric), "gain": gain.mean, "ci95": gain.ci95}
            systems[name][metric] = {key: _rounded(value) for key, value in values.items()} | {"files": gain.files}
    return {"files": len(scores), **systems}


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def as_csv(axes: Sequence[Axis], results: Results, names: Sequence[str]) -> str:
    """A row for each axis, condition, file and checkpoint, in full precision; NaN where there is no score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{state}_{metric}" for state in ("noisy", "enhanced") for metric in METRICS]
    writer.writerow(["axis", "condition", "file", "checkpoint", *columns])
    for axis in axes:
        for label, condition in axis.conditions.items():
            for each in results[condition]:
                for name in names:
                    values = [*(each.noisy[metric] for metric in METRICS)]
                    values += [each.enhanced[name][metric] for metric in METRICS]
                    cells = ["NaN" if math.isnan(value) else repr(value) for value in values]
                    writer.writerow([axis.name, label, each.id, name, *cells])
    return text.getvalue()
