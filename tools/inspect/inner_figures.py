"""Figures of what a network has inside: where its attention looks, and which band kernels it has learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tools.inspect.figures import Extent, draw_map, png
from tools.report.pictures import COLOUR_MAP

_DIVERGING = "RdBu_r"
_SHOWN_SHARE = 99.5
"""Per cent of a map's weights that the colours tell apart; few are far larger."""
_SHOWN_DB = 60


@dataclass(frozen=True)
class QueryMaps:
    """Where one query looks.

    seconds, kilohertz: the query; maps: by stage, for each attention by name, its weights times the number of
    positions, `[frames, bins]`; the same stages and attentions for each query. Stages may have different attentions.
    """

    name: str
    seconds: float
    kilohertz: float
    maps: Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class BandKernels:
    """Kernels along one axis `[K, taps]`, and their responses: gains `[K, points]` at frequencies `[points]` in `unit`.

    The unit is Hz along time, and ms along frequency: a ripple with one period a kHz has 1 ms.
    """

    taps: np.ndarray
    frequencies: np.ndarray
    gains: np.ndarray
    unit: str


@dataclass(frozen=True)
class StageKernels:
    """The kernels of a stage's IDConv, None where it has not these; the square ones are `[K, 3, 3]`, frames first."""

    stage: str
    along_frequency: BandKernels | None
    along_time: BandKernels | None
    square: np.ndarray | None


def attention_figure(
    queries: Sequence[QueryMaps], levels: Mapping[str, np.ndarray], titles: Mapping[str, str], extent: Extent
) -> bytes:
    """For each query a row an attention, with a column a stage; in front, where the query is.

    levels: spectrograms in dB `[frames, bins]` by name, one for each row of a query; titles: what stands above the
    column of each stage.
    """
    attentions = list(dict.fromkeys(name for maps in queries[0].maps.values() for name in maps))
    rows = len(queries) * len(attentions)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, 1 + len(titles), sharex=True, sharey=True, squeeze=False)
        for number, query in enumerate(queries):
            own = grid[number * len(attentions) : (number + 1) * len(attentions)]
            for axes, attention, level in zip(own[:, 0], attentions, levels, strict=False):
                _draw_query(axes, query, level, levels[level], extent)
                axes.set_ylabel(f"{attention}\n\nfrequency (kHz)")
            for column, stage in enumerate(titles, start=1):
                places = dict(zip(attentions, own[:, column], strict=True))
                _draw_maps(figure, places, query, stage, extent)
        for axes, title in zip(grid[0][1:], titles.values(), strict=True):
            axes.set_title(title)
        for axes in grid.flat:
            axes.label_outer()

    return png((3.1 + 2.95 * len(titles), 0.5 + 1.75 * rows), draw)


def _draw_query(axes: Axes, query: QueryMaps, level: str, decibels: np.ndarray, extent: Extent) -> None:
    top = float(decibels.max())
    draw_map(axes, decibels, extent, cmap=COLOUR_MAP, vmin=top - _SHOWN_DB, vmax=top)
    place = f"{query.seconds:.2f} s, {1000 * query.kilohertz:.0f} Hz"
    axes.set_title(f"{level}; query {query.name}: {place}", fontsize=8)
    _mark(axes, query, "white")


def _draw_maps(figure: Figure, places: Mapping[str, Axes], query: QueryMaps, stage: str, extent: Extent) -> None:
    """A query's maps in one stage, each in the place of its attention, on one scale; other places stay empty."""
    maps = query.maps[stage]
    limit = max(float(np.percentile(np.abs(values), _SHOWN_SHARE)) for values in maps.values())
    drawn: list[Axes] = []
    image = None
    for attention, axes in places.items():
        if attention not in maps:
            axes.set_axis_off()
            continue
        image = draw_map(axes, maps[attention], extent, cmap=_DIVERGING, vmin=-limit, vmax=limit)
        _mark(axes, query, "black")
        drawn.append(axes)
    assert image
    figure.colorbar(image, ax=drawn, pad=0.02, aspect=30, label="weight × N", extend="both")


def _mark(axes: Axes, query: QueryMaps, colour: str) -> None:
    axes.plot([query.seconds], [query.kilohertz], "o", markersize=8, markerfacecolor="none", markeredgecolor=colour)


def idconv_figure(stages: Sequence[StageKernels]) -> bytes:
    """A row a stage: the taps and the frequency response of the band kernels, and the square ones."""

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(stages), 5, squeeze=False)
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        for row, stage in zip(grid, stages, strict=True):
            _draw_band(row[0], row[1], stage.along_frequency, "bins", "quefrency")
            _draw_band(row[2], row[3], stage.along_time, "frames", "modulation frequency")
            _draw_squares(figure, row[4], stage.square)
            row[0].set_ylabel(f"{stage.stage}\n\nweight")
        titles = ("along frequency", "their responses", "along time", "their responses", "square")
        for axes, title in zip(grid[0], titles, strict=True):
            axes.set_title(title)

    return png((14, 0.4 + 2.5 * len(stages)), draw)


def _draw_band(left: Axes, right: Axes, kernels: BandKernels | None, steps: str, label: str) -> None:
    """Taps on the left, responses on the right."""
    if kernels is None:
        left.set_axis_off()
        right.set_axis_off()
        return
    taps = np.arange(kernels.taps.shape[1]) - kernels.taps.shape[1] // 2
    left.axhline(0, color="#999999", linewidth=0.6)
    for weights, gains in zip(kernels.taps, kernels.gains, strict=True):
        left.plot(taps, weights, marker="o", markersize=2.5, linewidth=1)
        right.plot(kernels.frequencies, gains, linewidth=1)
    left.set_xticks([taps[0], 0, taps[-1]])
    left.set_xlabel(f"tap ({steps} of the stage)")
    left.set_ylabel("weight")
    right.set_xlim(0, float(kernels.frequencies[-1]))
    right.set_ylim(bottom=0)
    right.set_xlabel(f"{label} ({kernels.unit})")
    right.set_ylabel("gain")
    right.grid(color="#e3e3e3", linewidth=0.6)


def _draw_squares(figure: Figure, axes: Axes, kernels: np.ndarray | None) -> None:
    """The kernels side by side, in rows of three, with a gap of a tap between them."""
    if kernels is None:
        axes.set_axis_off()
        return
    columns = min(3, len(kernels))
    rows = -(-len(kernels) // columns)
    tiles = np.full((4 * rows - 1, 4 * columns - 1), np.nan)
    for number, kernel in enumerate(kernels):
        row, column = divmod(number, columns)
        tiles[4 * row : 4 * row + 3, 4 * column : 4 * column + 3] = kernel.T[::-1]
    limit = float(np.abs(kernels).max())
    axes.set_facecolor("#b0b0b0")
    image = axes.imshow(tiles, cmap=_DIVERGING, vmin=-limit, vmax=limit)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel("time →")
    axes.set_ylabel("frequency →")
    figure.colorbar(image, ax=axes, pad=0.02, label="weight")
