"""Plot the scores over each axis: PESQ above, STOI below; noisy dashed, one line or marker per checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from metrics.score import METRICS
from tools.robustness.conditions import NOT_HELD_OUT, Axis
from tools.robustness.summary import Results, enhanced_mean, gain_of, noisy_mean

PLOTTED = ("pesq", "stoi")
COLUMNS = 3
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vP"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
}


def draw(axes: Sequence[Axis], results: Results, names: Sequence[str]) -> bytes:
    """Return the plot as PNG."""
    columns = min(COLUMNS, len(axes))
    rows = 2 * -(-len(axes) // columns)
    stream = BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure((4.6 * columns, 0.5 + 2.3 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
        for panel in panels.flat:
            panel.set_visible(False)
        for number, axis in enumerate(axes):
            row, column = divmod(number, columns)
            scores = [results[condition] for condition in axis.conditions.values()]
            ticks = np.arange(len(scores))
            for offset, metric in enumerate(PLOTTED):
                panel = panels[2 * row + offset, column]
                panel.set_visible(True)
                noisy = [noisy_mean(each, metric) for each in scores]
                if axis.ordered:
                    panel.plot(ticks, noisy, "--", color="#444444", label="noisy")
                else:
                    panel.hlines(noisy, ticks - 0.35, ticks + 0.35, "#444444", "dashed", label="noisy")
                for index, name in enumerate(names):
                    panel.errorbar(
                        ticks + 0.12 * (index - (len(names) - 1) / 2),  # side by side, so that no bar hides another
                        [enhanced_mean(each, name, metric) for each in scores],
                        [gain_of(each, name, metric).ci95 for each in scores],
                        linestyle="-" if axis.ordered else "",
                        marker=MARKERS[index % len(MARKERS)],
                        color=COLOURS[index % len(COLOURS)],
                        ms=4,
                        lw=1.3,
                        elinewidth=0.9,
                        label=name,
                    )
                # Short tick labels: without details in brackets, a star for groups that are not held out.
                labels = [
                    re.split("[,(]", label)[0].strip() + "*" * label.endswith(NOT_HELD_OUT) for label in axis.conditions
                ]
                panel.set_xticks(ticks, [""] * len(ticks) if offset == 0 else labels)
                panel.set_ylabel(METRICS[metric].label)
                if offset == 0:
                    starred = any(label.endswith("*") for label in labels)
                    panel.set_title(f"{axis.title} (*{NOT_HELD_OUT.strip(' ()')})" if starred else axis.title)
        legend = panels[0, 0].get_legend_handles_labels()
        figure.legend(*legend, loc="outside upper center", ncols=len(names) + 1, frameon=False)
        figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()
