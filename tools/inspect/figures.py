"""Figures with axes, each as the bytes of a PNG: what a network was given and gives back, and how its training went.

Spectrograms are those of the listening page (`tools.report.pictures`). They stand on a transparent ground in a grey that
can be read on white and on black; the other figures are on white.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tools.report.pictures import COLOUR_MAP, RANGE_DB, power_columns

DPI = 110
_PALETTE = 160
"""Colours: a picture has a third of the bytes, and few of its colours are seen to be missing."""
_ON_ANY_GROUND = "#7d8590"
_STYLE: dict[Any, Any] = {"font.family": "sans-serif", "font.size": 9, "axes.titlesize": 10, "axes.linewidth": 0.6}
_ANY_GROUND_STYLE: dict[Any, Any] = dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor"),
    _ON_ANY_GROUND,
)
_SCORES = ("pesq", "stoi")
_NO_LOSSES = ("gradient_norm", "discriminator_gradient_norm", "learning_rate", "skipped_steps", "crops_without_label")

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Points (step, value) by the name of the curve."""

Extent = tuple[float, float, float, float]
"""The edges of a map: first and last in seconds, lowest and highest in kHz."""


def png(size: tuple[float, float], draw: Callable[[Figure], None], any_ground: bool = False) -> bytes:
    """What `draw` puts on a figure of `size` inches."""
    from PIL import Image  # comes with matplotlib, which writes its PNGs with it

    with matplotlib.rc_context(_STYLE | (_ANY_GROUND_STYLE if any_ground else {})):
        figure = Figure(size, dpi=DPI, layout="constrained")
        draw(figure)
        drawn = BytesIO()
        figure.savefig(drawn, format="png", transparent=any_ground)
    with Image.open(drawn) as image:
        # Transparency is kept by one method only; the other has the better colours.
        method = Image.Quantize.FASTOCTREE if any_ground else Image.Quantize.MAXCOVERAGE
        small = image.convert("RGBA" if any_ground else "RGB").quantize(
            _PALETTE, method, kmeans=1, dither=Image.Dither.NONE
        )
    stream = BytesIO()
    small.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def draw_map(axes: Axes, values: np.ndarray, extent: Extent, **options: Any) -> AxesImage:
    """A map `[frames, bins]` with time to the right and frequency upwards."""
    axes.set_xlabel("time (s)")
    axes.set_ylabel("frequency (kHz)")
    return axes.imshow(values.T, extent=extent, origin="lower", aspect="auto", interpolation="auto", **options)


def spectrogram_figure(versions: Mapping[str, np.ndarray], rate: int, start: float) -> bytes:
    """Spectrograms of signals `[N]` of one length side by side, by their names, on one scale of dB.

    `start`: the time of the first sample in seconds. 0 dB is the loudest place of any version.
    """
    seconds = max(len(wav) for wav in versions.values()) / rate
    powers = {name: power_columns(wav, rate, seconds) for name, wav in versions.items()}
    loudest = max(float(power.max()) for power in powers.values())
    extent = (start, start + seconds, 0.0, rate / 2000)

    def draw(figure: Figure) -> None:
        row = figure.subplots(1, len(powers), sharey=True, squeeze=False)[0]
        image = None
        for axes, (name, power) in zip(row, powers.items(), strict=True):
            decibels = 10 * np.log10(np.maximum(power / max(loudest, 1e-30), 1e-12))
            image = draw_map(axes, decibels.T, extent, cmap=COLOUR_MAP, vmin=-RANGE_DB, vmax=0)
            axes.set_title(name)
            axes.label_outer()
        assert image
        figure.colorbar(image, ax=row, pad=0.01, label="dB, 0 for the loudest", ticks=range(-RANGE_DB, 1, 20))

    return png((1.2 + 3.3 * len(powers), 3.1), draw, any_ground=True)


def mask_figure(
    mask: np.ndarray, phase_change: np.ndarray, audible: np.ndarray, largest: float, extent: Extent, unit: str
) -> bytes:
    """The magnitude mask and the phase change in rad, `[frames, bins]` each.

    The phase is left out where `audible` is false. `largest`: the mask's value at the end of the colours; `unit`: what
    it is a ratio of.
    """

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        image = draw_map(left, mask, extent, cmap="viridis", vmin=0, vmax=largest)
        left.set_title("magnitude mask")
        figure.colorbar(image, ax=left, pad=0.02, label=unit, extend="max" if mask.max() > largest else "neither")
        shown = np.ma.masked_array(phase_change, ~audible)
        image = draw_map(right, np.ma.getdata(shown), extent, cmap="twilight_shifted", vmin=-np.pi, vmax=np.pi)
        image.set_data(shown.T)
        right.set_title("phase change (grey: enhanced speech more than 50 dB down)")
        right.set_facecolor("#9a9a9a")
        right.label_outer()
        bar = figure.colorbar(image, ax=right, pad=0.02, label="enhanced − noisy phase (rad)")
        bar.set_ticks([-np.pi, -np.pi / 2, 0, np.pi / 2, np.pi], labels=["−π", "−π/2", "0", "π/2", "π"])

    return png((12, 3.6), draw)


def curves_figure(curves: Curves) -> bytes:
    """The curves that a run has told TensorBoard: loss terms in one panel, and a panel a validation score.

    Training is drawn as lines, validation as dots.
    """
    scores = {name: curves[f"validation/{name}"] for name in _SCORES if f"validation/{name}" in curves}
    terms = sorted({name.partition("/")[2] for name in curves} - {*_SCORES, *_NO_LOSSES})

    def draw(figure: Figure) -> None:
        first, *others = figure.subplots(1, 1 + len(scores), squeeze=False)[0]
        _draw_losses(first, curves, terms)
        for axes, (name, points) in zip(others, scores.items(), strict=True):
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3)
            axes.set_title(f"{name.upper()}, validation")
        for axes in (first, *others):
            axes.set_xlabel("step")
            axes.grid(color="#e3e3e3", linewidth=0.6)

    return png((5.2 + 3.4 * len(scores), 3.6), draw)


def _draw_losses(axes: Axes, curves: Curves, terms: Sequence[str]) -> None:
    values: list[float] = []
    for number, term in enumerate(terms):
        colour = f"C{number % 10}"
        training, validation = (curves.get(f"{group}/{term}", []) for group in ("training", "validation"))
        values += [value for points in (training, validation) for _, value in points]
        if training:
            axes.plot(*zip(*training, strict=True), color=colour, linewidth=1, label=term)
        if validation:
            label = None if training else term
            axes.plot(*zip(*validation, strict=True), "o--", color=colour, markersize=4, linewidth=0.8, label=label)
    if min(values, default=0) > 0:
        axes.set_yscale("log")
    axes.set_title("losses (lines: training, dots: validation)")
    if terms:
        axes.legend(fontsize=8, ncols=2)
