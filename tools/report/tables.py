"""The tables on top of the page, as HTML: means with intervals, and the paired tests of the systems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from metrics.paired import PairedTest, paired_test
from metrics.score import METRICS, PairScores
from metrics.summary import summarise


@dataclass(frozen=True)
class Scored:
    """A version with its scores, a result a recording; and its colour in charts and tables."""

    name: str
    colour: str
    results: Sequence[PairScores]

    def values(self, metric: str) -> list[float]:
        """A metric of all recordings, in order."""
        return [result.values[metric] for result in self.results]


def summary_table(versions: Sequence[Scored]) -> str:
    """Mean and interval of each metric (rows) for each version (columns): the figures of `cal_metrics.py`."""
    summaries = [summarise(version.results) for version in versions]
    rows: list[str] = []
    for metric in METRICS:
        cells: list[str] = []
        for summary in summaries:
            score = summary[metric]
            mean = f"{score.mean:.4f}".replace("-", "−") if score.files else "–"
            interval = f"± {score.ci95:.4f} " if score.files > 1 else ""
            spread = f'<small>{interval}</small> <small class="files">{score.files}</small>'
            cells.append(f'{mean} <span class="spread">{spread}</span>')
        rows.append(_row(METRICS[metric].label, cells))
    head = [f"{swatch(version.colour)}{escape(version.name)}" for version in versions]
    return _table("Mean, 95 % confidence interval, number of files", ["metric", *head], rows)


def paired_tables(baseline: Scored | None, systems: Sequence[Scored]) -> str:
    """A table for each system against the baseline, and for each two systems; empty where nothing can be compared."""
    pairs = [(baseline, system) for system in systems] if baseline else []
    pairs += [(first, second) for place, first in enumerate(systems) for second in systems[place + 1 :]]
    parts: list[str] = []
    for first, second in pairs:
        title = f"{swatch(second.colour)}{escape(second.name)} against {swatch(first.colour)}{escape(first.name)}"
        opened = "" if parts else " open"
        parts.append(f"<details{opened}><summary>{title}</summary>{_paired_table(first, second)}</details>")
    return "\n".join(parts)


def swatch(colour: str) -> str:
    """A dot in a version's colour before its name."""
    return f'<span class="swatch" style="background:{colour}" aria-hidden="true"></span>'


def _paired_table(first: Scored, second: Scored) -> str:
    head = ["metric", "mean difference", "95 % interval", "p, paired t", "p, Wilcoxon", "files improved", "files"]
    tests = {metric: paired_test(first.values(metric), second.values(metric)) for metric in METRICS}
    rows = [_row(METRICS[metric].label, _paired_cells(test)) for metric, test in tests.items()]
    caption = f"{escape(second.name)} minus {escape(first.name)}, file by file"
    return _table(caption, head, rows)


def _paired_cells(test: PairedTest) -> list[str]:
    low, high = test.mean - test.ci95, test.mean + test.ci95
    dropped = f" <small>({test.dropped} without)</small>" if test.dropped else ""
    return [
        _signed(test.mean),
        "–" if math.isnan(test.ci95) else f"{_signed(low)} … {_signed(high)}",
        _p_value(test.t_p),
        _p_value(test.wilcoxon_p),
        "–" if math.isnan(test.improved) else f"{100 * test.improved:.1f} %",
        f"{test.files}{dropped}",
    ]


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.4f}".replace("-", "−")


def _p_value(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "&lt; 0.0001" if value < 1e-4 else f"{value:.4f}"


def _table(caption: str, head: Sequence[str], rows: Sequence[str]) -> str:
    """A table that scrolls sideways where it is too wide; `caption` and `head` are HTML."""
    columns = "".join(f'<th scope="col">{text}</th>' for text in head)
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="table, scrolls sideways">'
        f'<table class="figures"><caption>{caption}</caption><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(label: str, cells: Sequence[str]) -> str:
    return f'<tr><th scope="row">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
