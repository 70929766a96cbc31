"""The scores over each axis as one picture: PESQ above, STOI below; noisy dashed, a line a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metrics.score import METRICS
from tools.report.charts import STYLE
from tools.robustness.plan import NOT_HELD_OUT, REVERB_ALONE, Axis
from tools.robustness.summary import Results, enhanced_mean, gain_of, noisy_mean

_DRAWN = ("pesq", "stoi")
_COLUMNS = 3
_PANEL_INCHES = (4.6, 2.3)
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "osD^vP"
_NOISY_COLOUR = "#444444"
_SPREAD = 0.12  # between the checkpoints' marks, in steps of the axis, so that their bars do not hide each other
_HALF_STEP = 0.35
ORDERED = ("snr", "level", "clipping", "reverb", REVERB_ALONE)
"""Axes with an order: their marks are joined."""


def draw(axes: Sequence[Axis], results: Results, names: Sequence[str], kind: str) -> bytes:
    """The picture as "png" or "svg"."""
    columns = min(_COLUMNS, len(axes))
    lines = -(-len(axes) // columns)
    width, height = _PANEL_INCHES
    stream = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure((width * columns, 0.5 + height * 2 * lines), layout="constrained")
        panels = figure.subplots(2 * lines, columns, squeeze=False)
        for panel in panels.flat:
            panel.set_visible(False)
        for number, axis in enumerate(axes):
            row, column = divmod(number, columns)
            for below, metric in enumerate(_DRAWN):
                _draw_panel(panels[2 * row + below, column], axis, results, names, metric)
        legend = panels[0, 0].get_legend_handles_labels()
        figure.legend(*legend, loc="outside upper center", ncols=len(names) + 1, frameon=False)
        figure.savefig(stream, format=kind, dpi=100, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def _draw_panel(panel: Axes, axis: Axis, results: Results, names: Sequence[str], metric: str) -> None:
    panel.set_visible(True)
    rows = [results[condition] for condition in axis.conditions.values()]
    places = np.arange(len(rows))
    joined = "-" if axis.name in ORDERED else ""
    noisy = [noisy_mean(each, metric) for each in rows]
    if joined:
        panel.plot(places, noisy, "--", color=_NOISY_COLOUR, label="noisy")
    else:
        panel.hlines(noisy, places - _HALF_STEP, places + _HALF_STEP, _NOISY_COLOUR, "dashed", label="noisy")
    for number, name in enumerate(names):
        means = [enhanced_mean(each, name, metric) for each in rows]
        bars = [gain_of(each, name, metric).ci95 for each in rows]
        panel.errorbar(
            places + _SPREAD * (number - (len(names) - 1) / 2),
            means,
            bars,
            linestyle=joined,
            marker=_MARKERS[number % len(_MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
            ms=4,
            lw=1.3,
            elinewidth=0.9,
            label=name,
        )
    on_top = metric == _DRAWN[0]
    panel.set_xticks(places, [""] * len(rows) if on_top else [_short(label) for label in axis.conditions])
    panel.set_ylabel(METRICS[metric].label)
    if on_top:
        starred = any(label.endswith(NOT_HELD_OUT) for label in axis.conditions)
        panel.set_title(f"{axis.title} (*{NOT_HELD_OUT.strip(' ()')})" if starred else axis.title)


def _short(label: str) -> str:
    """What fits below a mark: the label up to its details; a star for what is not held out."""
    return re.split("[,(]", label)[0].strip() + ("*" if label.endswith(NOT_HELD_OUT) else "")
