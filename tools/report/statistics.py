"""The statistics of the listening page as HTML: means, paired tests, and charts of the scores as SVG."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from io import BytesIO
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metrics.score import METRICS, PairScores
from metrics.stats import paired_test
from metrics.summary import summarise

CHART_INCHES = (3.6, 2.5)
HISTOGRAM_BINS = 24
CHART_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # equal scores give an equal file
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
}
PAIRED_NOTE = """<p class="note">The p-values are two-sided and not corrected for multiple comparisons: of twenty
comparisons without any difference, one is below 0.05 by chance.</p>"""


class Scored(NamedTuple):
    """A version that has scores: its name, its color, and one result per recording."""

    name: str
    color: str
    results: Sequence[PairScores]

    def values(self, metric: str) -> np.ndarray:
        """Return the values `[files]` of a metric, NaN for a file without one."""
        return np.array([result.values[metric] for result in self.results])

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
            test = paired_test(first.values(name).tolist(), second.values(name).tolist())
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


def charts(versions: Sequence[Scored]) -> str:
    """Return a legend and a histogram of each metric that has values; empty if none has."""
    images: dict[str, Figure] = {}
    with matplotlib.rc_context(CHART_STYLE):
        for name, metric in METRICS.items():
            values = [version.values(name) for version in versions]
            values = [each[~np.isnan(each)] for each in values]
            if not any(map(len, values)):
                continue
            edges = np.histogram_bin_edges(np.concatenate(values), HISTOGRAM_BINS).tolist()
            figure = Figure(CHART_INCHES, layout="constrained")
            axes = figure.add_subplot(xlabel=metric.label, ylabel="files")
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            for version, each in zip(versions, values, strict=True):
                axes.hist(each, edges, histtype="stepfilled", color=version.color, alpha=0.18)
                axes.hist(each, edges, histtype="step", color=version.color, linewidth=1.4)
            images[f"Histogram of {metric.label} of the files"] = figure
        parts: list[str] = []
        for alt, figure in images.items():
            svg = BytesIO()
            figure.savefig(svg, format="svg", metadata={"Date": None})
            parts.append(f'<img src="data:image/svg+xml;base64,{b64encode(svg.getvalue()).decode()}" alt="{alt}">')
    legend = "".join(f"<li>{version.label}</li>" for version in versions)
    return f'<ul class="legend">{legend}</ul><div class="charts">{"".join(parts)}</div>' if parts else ""
