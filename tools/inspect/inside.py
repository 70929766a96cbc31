"""A pass of a network as figures and the numbers behind them; `scripts/inspect_model.py` writes them to files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from config import Config
from models.idconv import IDConv
from tools.inspect import inspection
from tools.inspect.figures import Extent, mask_figure
from tools.inspect.inner_figures import BandKernels, QueryMaps, StageKernels, attention_figure, idconv_figure
from tools.inspect.inspection import Pass, Place

AUDIBLE_DB = 50
"""Below the loudest place of the enhanced speech, phases are not shown: nobody hears them."""

NEAR_SECONDS, NEAR_HERTZ = 0.1, 500.0
"""What counts as near a query, in the numbers."""

Numbers = dict[str, Any]


def extent_of(pass_: Pass, start: float) -> Extent:
    """The edges of maps of the spectra, whose frames and bins are in the middle of their places."""
    _, bins, frames = pass_.noisy.mag.shape
    left, bottom = start - pass_.frame_seconds / 2, -pass_.bin_hz / 2000
    return (left, left + frames * pass_.frame_seconds, bottom, bottom + bins * pass_.bin_hz / 1000)


def decibels(mag: torch.Tensor, config: Config) -> np.ndarray:
    """Compressed magnitudes `[F, T]` as `[frames, bins]` in dB, 0 for the loudest."""
    mag = mag.T / mag.max().clamp_min(1e-9)
    return (20 / config.stft.compress_factor * mag.clamp_min(1e-6).log10()).numpy()


def draw_mask(pass_: Pass, config: Config, extent: Extent) -> tuple[bytes, Numbers]:
    """mask.png, and how the mask and the phase change are distributed."""
    mask, change = inspection.mask_of(pass_).T.numpy(), inspection.phase_change_of(pass_).T.numpy()
    audible = decibels(pass_.enhanced.mag[0], config) > -AUDIBLE_DB
    power = config.stft.compress_factor
    unit = f"(enhanced / noisy){f'^{power:g}' if power != 1 else ''}"
    numbers = {
        "percentiles_5_25_50_75_95": np.percentile(mask, (5, 25, 50, 75, 95)).tolist(),
        "share_below_0.1": float((mask < 0.1).mean()),
        "share_above_1": float((mask > 1).mean()),
        "largest": float(mask.max()),
        "median_phase_change_rad_where_audible": float(np.median(np.abs(change[audible]))),
    }
    return mask_figure(mask, change, audible, inspection.largest_mask(config), extent, unit), numbers


def draw_attention(
    pass_: Pass, places: Mapping[str, Place], config: Config, start: float, extent: Extent
) -> tuple[bytes, list[Numbers]]:
    """attention.png, of the sharpest head of each stage, and what its maps come to."""
    stages = list(dict.fromkeys(caught.stage for caught in pass_.caught))
    heads = {stage: inspection.sharpest_head(pass_, stage, list(places.values())) for stage in stages}
    queries: list[QueryMaps] = []
    numbers: list[Numbers] = []
    for index, (name, place) in enumerate(places.items()):
        maps: dict[str, dict[str, np.ndarray]] = {stage: {} for stage in stages}
        for stage, head in heads.items():
            for attention, weights in head.weights.items():
                spread = pass_.spread(weights[index], stage)
                maps[stage][attention] = spread.numpy()
                told = {"query": name, "stage": stage, "block": head.caught.block, "head": head.number}
                numbers.append(told | {"attention": attention} | weigh(weights[index], spread, place, pass_))
        seconds, kilohertz = start + place.frame * pass_.frame_seconds, place.bin * pass_.bin_hz / 1000
        queries.append(QueryMaps(name, seconds, kilohertz, maps))
    levels = {
        name: decibels(each.mag[0], config) for name, each in (("noisy", pass_.noisy), ("enhanced", pass_.enhanced))
    }
    titles = {stage: f"{stage}, block {head.caught.block}, head {head.number}" for stage, head in heads.items()}
    return attention_figure(queries, levels, titles, extent), numbers


def weigh(weights: torch.Tensor, spread: torch.Tensor, place: Place, pass_: Pass) -> Numbers:
    """What a map of weights times N comes to, `[T', F']` and at the resolution of the spectra."""
    frames, bins = (torch.arange(size) for size in spread.shape)
    near_frames = (frames - place.frame).abs() * pass_.frame_seconds <= NEAR_SECONDS
    near = near_frames[:, None] & ((bins - place.bin).abs() * pass_.bin_hz <= NEAR_HERTZ)
    both = torch.stack([spread.flatten(), pass_.enhanced.mag[0].T.flatten()])
    return {
        "sum": float(weights.mean()),
        "standard_deviation": float(weights.std()),
        "smallest": float(weights.min()),
        "largest": float(weights.max()),
        "share_negative": float((weights < 0).float().mean()),
        "mean_near": float(spread[near].mean()),
        "correlation_with_enhanced_magnitude": float(torch.corrcoef(both)[0, 1]),
    }


def draw_idconv(pass_: Pass, network: nn.Module) -> tuple[bytes, list[Numbers]] | None:
    """idconv.png, and what each band kernel lets through; None where the network has no IDConv."""
    kernels: list[StageKernels] = []
    numbers: list[Numbers] = []
    for name, stage in inspection.shown_stages(network).items():
        if not isinstance(stage.local, IDConv):
            continue
        frames, bins = pass_.step(name)
        along_frequency = _band(stage.local.along_frequency, 1000 / (bins * pass_.bin_hz), "ms")
        along_time = _band(stage.local.along_time, 1 / (frames * pass_.frame_seconds), "Hz")
        square = stage.local.square
        squares = square.weight.detach()[:, 0].numpy() if isinstance(square, nn.Conv2d) else None
        kernels.append(StageKernels(name, along_frequency, along_time, squares))
        for direction, band in (("along frequency", along_frequency), ("along time", along_time)):
            for number, gains in enumerate(band.gains if band else (), start=1):
                told = {"stage": name, "direction": direction, "kernel": number, "gain_at_0": float(gains[0])}
                assert band
                told |= {"largest_gain": float(gains.max()), "at": float(band.frequencies[gains.argmax()])}
                numbers.append(told | {"unit": band.unit})
    return (idconv_figure(kernels), numbers) if kernels else None


def _band(conv: nn.Module, rate: float, unit: str) -> BandKernels | None:
    if not isinstance(conv, nn.Conv2d):
        return None  # taken out, in an ablation
    taps = conv.weight.detach().flatten(1)
    frequencies, gains = inspection.frequency_response(taps, rate)
    return BandKernels(taps.numpy(), frequencies.numpy(), gains.numpy(), unit)
