"""The statistics of the listening page as HTML: means and paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from metrics.score import METRICS, PairScores
from metrics.stats import paired_test
from metrics.summary import summarise

PAIRED_NOTE = """<p class="note">The p-values are two-sided and not corrected for multiple comparisons: of twenty
comparisons without any difference, one is below 0.05 by chance.</p>"""


class Scored(NamedTuple):
    """A version that has scores: its name, its color, and one result per recording."""

    name: str
    color: str
    results: Sequence[PairScores]

    def values(self, metric: str) -> list[float]:
        """Return the values of a metric, NaN for a file without one."""
        return [result.values[metric] for result in self.results]

    @property
    def label(self) -> str:
        """The name after a dot in the color of the version, as HTML."""
        return f'<span class="swatch" style="background:{self.color}" aria-hidden="true"></span>{escape(self.name)}'


def summary_table(versions: Sequence[Scored]) -> str:
    """Return the table of mean and 95 % confidence interval per metric (row) and version (column)."""
    summaries = [summarise(version.results) for version in versions]
    rows: dict[str, list[str]] = {}
    for name, metric in METRICS.items():
        cells: list[str] = []
        for summary in summaries:
            score = summary[name]
            mean = f"{score.mean:.4f}".replace("-", "−") if score.files else "–"
            interval = f"± {score.ci95:.4f} " if score.files > 1 else ""
            spread = f'<small>{interval}</small> <small class="files">{score.files}</small>'
            cells.append(f'{mean} <span class="spread">{spread}</span>')
        rows[metric.label] = cells
    head = ["metric", *(version.label for version in versions)]
    return html_table("Mean, 95 % confidence interval, number of files", head, rows)


def paired_tables(noisy: Scored | None, systems: Sequence[Scored]) -> str:
    """Return a table of paired tests for each system against noisy, and for each pair of systems; may be empty."""
    pairs = [(noisy, system) for system in systems] if noisy else []
    pairs += [(first, second) for index, first in enumerate(systems) for second in systems[index + 1 :]]
    head = ["metric", "mean difference", "95 % interval", "p, paired t", "p, Wilcoxon", "files improved", "files"]
    parts: list[str] = []
    for first, second in pairs:
        rows: dict[str, list[str]] = {}
        for name, metric in METRICS.items():
            test = paired_test(first.values(name), second.values(name))
            low, high = signed(test.mean - test.ci95), signed(test.mean + test.ci95)
            rows[metric.label] = [
                signed(test.mean),
                "–" if math.isnan(test.ci95) else f"{low} … {high}",
                p_value(test.t_p),
                p_value(test.wilcoxon_p),
                "–" if math.isnan(test.improved) else f"{100 * test.improved:.1f} %",
                f"{test.files}" + (f" <small>({test.dropped} without)</small>" if test.dropped else ""),
            ]
        table = html_table(f"{escape(second.name)} minus {escape(first.name)}, per file", head, rows)
        title = f"{second.label} against {first.label}"
        parts.append(f"<details{'' if parts else ' open'}><summary>{title}</summary>{table}</details>")
    return "\n".join([*parts, PAIRED_NOTE]) if parts else ""


def signed(value: float) -> str:
    """Format a difference with its sign."""
    return "–" if math.isnan(value) else f"{value:+.4f}".replace("-", "−")


def p_value(value: float) -> str:
    """Format a p-value as HTML."""
    if math.isnan(value):
        return "–"
    return "&lt; 0.0001" if value < 1e-4 else f"{value:.4f}"


def html_table(caption: str, head: Sequence[str], rows: dict[str, list[str]]) -> str:
    """Return a table that scrolls sideways if it is too wide; all texts are HTML."""
    columns = "".join(f'<th scope="col">{text}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{label}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for label, cells in rows.items()
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="table, scrolls sideways">'
        f'<table class="figures"><caption>{caption}</caption><thead><tr>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
