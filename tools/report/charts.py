"""How the scores of the files are distributed, as SVG pictures without names in them: the page has the legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_SIZE_INCHES = (3.6, 2.5)
_HISTOGRAM_BINS = 24
_MARKERS = "osD^vP*X"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same picture of the same scores
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
}
"""Of all pictures of scores."""


@dataclass(frozen=True)
class Series:
    """The values of one version, a value a file, NaN where a file has none, and the version's colour."""

    values: Sequence[float]
    colour: str


def histogram(series: Sequence[Series], label: str) -> bytes | None:
    """Outlines of how many files have which score; None where no file has one."""
    values = [np.array([value for value in one.values if not math.isnan(value)]) for one in series]
    if not any(len(one) for one in values):
        return None
    edges = np.histogram_bin_edges(np.concatenate(values), _HISTOGRAM_BINS)

    def draw(axes: Axes) -> None:
        for one, there in zip(series, values, strict=True):
            axes.hist(there, list(edges), histtype="stepfilled", color=one.colour, alpha=0.18)
            axes.hist(there, list(edges), histtype="step", color=one.colour, linewidth=1.4)
        axes.set_xlabel(label)
        axes.set_ylabel("files")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

    return _svg(draw)


def scatter(positions: Sequence[float], series: Sequence[Series], x_label: str, y_label: str) -> bytes | None:
    """A point a file and version; None where no file has both values."""
    if not any(math.isfinite(x + y) for one in series for x, y in zip(positions, one.values, strict=True)):
        return None

    def draw(axes: Axes) -> None:
        axes.axhline(0, color="#555555", linewidth=0.8)
        for number, one in enumerate(series):
            marker = _MARKERS[number % len(_MARKERS)]
            axes.scatter(positions, one.values, s=18, c=one.colour, marker=marker, alpha=0.6, linewidths=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return _svg(draw)


def _svg(draw: Callable[[Axes], None]) -> bytes:
    stream = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(_SIZE_INCHES, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()
