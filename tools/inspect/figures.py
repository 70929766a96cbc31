"""Figures of a traced network, each with the numbers behind it."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from config import Config, UNetConfig
from models.idconv import IDConv
from tools.inspect.trace import TFPoint, Trace, frequency_response, sharpest_head
from utils.plots import draw_spectrogram

DPI = 110
STYLE: dict[Any, Any] = {"font.family": "sans-serif", "font.size": 9, "axes.titlesize": 10, "axes.linewidth": 0.6}
TRANSPARENT_STYLE: dict[Any, Any] = dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor"), "#7d8590"
)
"""Text in a gray that is readable on white and on black."""
DIVERGING = "RdBu_r"

AUDIBLE_DB = 50
"""Phases are shown within this range below the loudest point of the enhanced speech."""
DEFAULT_MAX_MASK = 2.0
"""Upper end of the colors for networks whose mask is not bounded."""
SHOWN_PERCENTILE = 99.5
"""Percentile of the absolute attention weights at the ends of the colors; few weights are far larger."""
NEAR_SECONDS, NEAR_HERTZ = 0.1, 500.0
"""The neighborhood of a query for `mean_near`."""

Numbers = dict[str, Any]


def to_png(figure: Figure, transparent: bool = False) -> bytes:
    """Return a figure as PNG; call in the same rc context as its drawing."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, transparent=transparent)
    return stream.getvalue()


def draw_map(axes: Axes, values: np.ndarray, trace: Trace, start: float, **options: Any) -> AxesImage:
    """Draw a map `[T, F]` at the resolution of the spectra, time to the right and frequency upwards."""
    frames, bins = values.shape
    left, bottom = start - trace.frame_seconds / 2, -trace.bin_hz / 2000
    extent = (left, left + frames * trace.frame_seconds, bottom, bottom + bins * trace.bin_hz / 1000)
    axes.set(xlabel="time (s)", ylabel="frequency (kHz)")
    return axes.imshow(values.T, extent=extent, origin="lower", aspect="auto", interpolation="auto", **options)


def mask_figure(trace: Trace, config: Config, start: float) -> tuple[Figure, Numbers]:
    """Draw the magnitude mask and the phase change; `start` is the time of the first sample in seconds."""
    mask, change = trace.mask.T.numpy(), trace.phase_change.T.numpy()  # [T, F]
    power = config.stft.compress_factor
    level = trace.enhanced.mag[0].T / trace.enhanced.mag.max().clamp_min(1e-9)
    audible = (20 / power * level.clamp_min(1e-6).log10() > -AUDIBLE_DB).numpy()
    numbers = {
        "percentiles_5_25_50_75_95": np.percentile(mask, (5, 25, 50, 75, 95)).tolist(),
        "share_below_0.1": float((mask < 0.1).mean()),
        "share_above_1": float((mask > 1).mean()),
        "largest": float(mask.max()),
        "median_phase_change_rad_where_audible": float(np.median(np.abs(change[audible]))),
    }

    figure = Figure((12, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    largest = config.model.beta if isinstance(config.model, UNetConfig) else DEFAULT_MAX_MASK
    image = draw_map(left, mask, trace, start, cmap="viridis", vmin=0, vmax=largest)
    unit = f"(enhanced / noisy){f'^{power:g}' if power != 1 else ''}"
    figure.colorbar(image, ax=left, pad=0.02, label=unit)
    left.set_title("magnitude mask")
    shown = np.ma.masked_array(change, ~audible)
    image = draw_map(right, shown, trace, start, cmap="twilight_shifted", vmin=-np.pi, vmax=np.pi)
    right.set_title(f"phase change (gray: enhanced speech below −{AUDIBLE_DB} dB)")
    right.set_facecolor("#9a9a9a")
    right.label_outer()
    bar = figure.colorbar(image, ax=right, pad=0.02, label="enhanced − noisy phase (rad)")
    bar.set_ticks([-np.pi, -np.pi / 2, 0, np.pi / 2, np.pi], labels=["−π", "−π/2", "0", "π/2", "π"])
    return figure, numbers


def attention_figure(
    trace: Trace, points: Mapping[str, TFPoint], config: Config, start: float
) -> tuple[Figure, list[Numbers]]:
    """Draw the weights of queries at `points` in the sharpest head of each stage.

    Each query has a row per kind of attention and a column per stage, after a spectrogram with the query.
    """
    stages = list(dict.fromkeys(attention.stage for attention in trace.attentions))
    heads = {stage: sharpest_head(trace, stage, list(points.values())) for stage in stages}
    kinds = list(heads[stages[0]].weights)
    rows = len(points) * len(kinds)
    figure = Figure((3.1 + 2.95 * len(stages), 0.5 + 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, 1 + len(stages), sharex=True, sharey=True, squeeze=False)
    numbers: list[Numbers] = []
    for index, (name, point) in enumerate(points.items()):
        own_rows = grid[index * len(kinds) : (index + 1) * len(kinds)]
        seconds, kilohertz = start + point.frame * trace.frame_seconds, point.bin * trace.bin_hz / 1000

        def mark(axes: Axes, color: str, seconds: float = seconds, kilohertz: float = kilohertz) -> None:
            axes.plot([seconds], [kilohertz], "o", markersize=8, markerfacecolor="none", markeredgecolor=color)

        for axes, kind, wav_name in zip(own_rows[:, 0], kinds, ("noisy", "enhanced"), strict=False):
            wav = trace.noisy_wav if wav_name == "noisy" else trace.enhanced_wav
            draw_spectrogram(axes, wav, config.data.sampling_rate, start=start)
            axes.set_title(f"{wav_name}; query {name}: {seconds:.2f} s, {1000 * kilohertz:.0f} Hz", fontsize=8)
            axes.set_ylabel(f"{kind}\n\nfrequency (kHz)")
            mark(axes, "white")
        for column, (stage, head) in enumerate(heads.items(), start=1):
            weights = {kind: head.weights[kind][index] for kind in kinds}  # [T', F']
            maps = {kind: trace.upsample(each, stage) for kind, each in weights.items()}  # [T, F]
            limit = max(float(np.percentile(each.abs(), SHOWN_PERCENTILE)) for each in maps.values())
            image: AxesImage | None = None
            for axes, kind in zip(own_rows[:, column], kinds, strict=True):
                image = draw_map(axes, maps[kind].numpy(), trace, start, cmap=DIVERGING, vmin=-limit, vmax=limit)
                mark(axes, "black")
                labels = {"query": name, "stage": stage, "block": head.attention.block, "head": head.number}
                statistics = weight_statistics(weights[kind], maps[kind], point, trace)
                numbers.append(labels | {"attention": kind} | statistics)
            assert image
            bar = {"pad": 0.02, "aspect": 30, "label": "weight × N", "extend": "both"}
            figure.colorbar(image, ax=own_rows[:, column].tolist(), **bar)
    for axes, (stage, head) in zip(grid[0][1:], heads.items(), strict=True):
        axes.set_title(f"{stage}, block {head.attention.block}, head {head.number}")
    for axes in grid.flat:
        axes.label_outer()
    return figure, numbers


def weight_statistics(weights: torch.Tensor, upsampled: torch.Tensor, point: TFPoint, trace: Trace) -> Numbers:
    """Summarize weights times N, `[T', F']` and `[T, F]`, of the query at `point`."""
    frames, bins = (torch.arange(size) for size in upsampled.shape)
    near_frames = (frames - point.frame).abs() * trace.frame_seconds <= NEAR_SECONDS
    near = near_frames[:, None] & ((bins - point.bin).abs() * trace.bin_hz <= NEAR_HERTZ)
    both = torch.stack([upsampled.flatten(), trace.enhanced.mag[0].T.flatten()])
    return {
        "sum": float(weights.mean()),
        "standard_deviation": float(weights.std()),
        "smallest": float(weights.min()),
        "largest": float(weights.max()),
        "share_negative": float((weights < 0).float().mean()),
        "mean_near": float(upsampled[near].mean()),
        "correlation_with_enhanced_magnitude": float(torch.corrcoef(both)[0, 1]),
    }


def idconv_figure(trace: Trace) -> tuple[Figure, list[Numbers]]:
    """Draw the kernels of IDConv and the frequency responses of the band kernels.

    Frequencies are in Hz along time (modulation frequency) and in ms along frequency (quefrency: a ripple with a
    period of 1 kHz is at 1 ms).
    """
    stages = {name: stage.local for name, (stage, _) in trace.stages.items() if isinstance(stage.local, IDConv)}
    numbers: list[Numbers] = []
    figure = Figure((14, 0.4 + 2.5 * len(stages)))
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
    grid = figure.subplots(len(stages), 5, squeeze=False)
    titles = ("along frequency", "their responses", "along time", "their responses", "square")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    for row, (name, idconv) in zip(grid, stages.items(), strict=True):
        frames, bins = trace.stride(name)
        row[0].set_ylabel(f"{name}\n\nweight")
        directions = (
            ("along frequency", idconv.along_frequency, 1000 / (bins * trace.bin_hz), "ms", "bins", "quefrency"),
            (
                "along time",
                idconv.along_time,
                1 / (frames * trace.frame_seconds),
                "Hz",
                "frames",
                "modulation frequency",
            ),
        )
        for (taps_axes, gain_axes), (direction, conv, rate, unit, steps, label) in zip(
            (row[0:2], row[2:4]), directions, strict=True
        ):
            kernels = conv.get_parameter("weight").detach().flatten(1)
            frequencies, gains = frequency_response(kernels, rate)
            taps = np.arange(kernels.shape[1]) - kernels.shape[1] // 2
            taps_axes.axhline(0, color="#999999", linewidth=0.6)
            taps_axes.plot(taps, kernels.T, marker="o", markersize=2.5, linewidth=1)
            taps_axes.set(xticks=[taps[0], 0, taps[-1]], xlabel=f"tap ({steps} of the stage)")
            gain_axes.plot(frequencies, gains.T, linewidth=1)
            gain_axes.set(xlim=(0, float(frequencies[-1])), xlabel=f"{label} ({unit})", ylabel="gain")
            gain_axes.set_ylim(bottom=0)
            gain_axes.grid(color="#e3e3e3", linewidth=0.6)
            for number, gain in enumerate(gains, start=1):
                labels = {"stage": name, "direction": direction, "kernel": number, "gain_at_0": float(gain[0])}
                peak = {"largest_gain": float(gain.max()), "at": float(frequencies[gain.argmax()]), "unit": unit}
                numbers.append(labels | peak)
        squares = idconv.square.get_parameter("weight").detach()[:, 0].numpy()  # [K, 3 frames, 3 bins]
        columns = min(3, len(squares))
        tiles = np.full((4 * -(-len(squares) // columns) - 1, 4 * columns - 1), np.nan)  # one tap apart
        for number, kernel in enumerate(squares):
            top, left = 4 * (number // columns), 4 * (number % columns)
            tiles[top : top + 3, left : left + 3] = kernel.T[::-1]
        limit = float(np.abs(squares).max())
        image = row[4].imshow(tiles, cmap=DIVERGING, vmin=-limit, vmax=limit)
        row[4].set(facecolor="#b0b0b0", xticks=[], yticks=[], xlabel="time →", ylabel="frequency →")
        figure.colorbar(image, ax=row[4], pad=0.02, label="weight")
    return figure, numbers
