"""What TensorBoard shows of a validation, as pictures `[3, height, width]` of 8-bit colours, low frequencies below.

Drawn with numpy alone, so that training needs no matplotlib; `scripts/inspect_model.py` draws the same with axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from config import Config
from enhance.enhancer import Enhancer
from models.stft import Spectrogram
from tools.inspect import inspection
from tools.inspect.inspection import Pass

RANGE_DB = 80
"""From the loudest place of any version down to what is drawn darkest."""

# Evenly spaced stops of matplotlib's magma and RdBu_r.
_FROM_DARK = ((0, 0, 3), (28, 16, 70), (80, 18, 123), (130, 37, 129), (182, 54, 121), (230, 81, 98), (251, 136, 97),
              (254, 196, 136), (251, 252, 191))  # fmt: skip
_SIGNED = ((5, 48, 97), (107, 172, 208), (247, 247, 247), (228, 128, 101), (103, 0, 31))

_GAP = 4
_MARK = 4
"""Pixels between pictures, and from the middle of a cross to its ends."""
_SHOWN_PERCENTILE = 99.5
"""Few weights are far larger than the others."""


@torch.no_grad()
def spectrogram_picture(wavs: Sequence[np.ndarray], spectrogram: Spectrogram) -> np.ndarray:
    """Spectrograms of waveforms `[N]` side by side, on one scale of dB."""
    device = spectrogram.window.device
    mags = [spectrogram(torch.from_numpy(wav).float()[None].to(device)).mag[0].cpu().numpy() for wav in wavs]
    loudest = max(float(mag.max()) for mag in mags)
    scale = 20 / spectrogram.config.compress_factor / RANGE_DB
    relative = (np.maximum(mag / max(loudest, 1e-9), 1e-9) for mag in mags)
    return _in_a_row([_coloured(1 + scale * np.log10(each[::-1]), _FROM_DARK) for each in relative])


@torch.inference_mode()
def inner_pictures(network: nn.Module, config: Config, wav: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
    """What a network does with the middle segment of a noisy utterance `[N]`: its mask, and where its attention looks.

    `attention` has a row a stage, of the sharpest head's weights for the query at the cross, where the speech is
    loudest: blue ones are negative, white is 0. Beside MALA's are those of plain linear attention, on the same scale.
    Networks without such an attention have none.
    """
    first = max(0, len(wav) - config.data.segment_size) // 2
    training = network.training
    enhancer = Enhancer(network.eval(), config).to(device)
    pass_ = inspection.run_once(enhancer, wav[first : first + config.data.segment_size])
    network.train(training)
    mask = inspection.mask_of(pass_).flip(0).cpu().numpy()
    pictures = {"mask": _coloured(mask / inspection.largest_mask(config), _FROM_DARK)}
    if pass_.caught:
        pictures["attention"] = _attention_picture(pass_)
    return pictures


def _attention_picture(pass_: Pass) -> np.ndarray:
    place = inspection.place_in_speech(pass_)
    rows: list[np.ndarray] = []
    for stage in dict.fromkeys(caught.stage for caught in pass_.caught):
        head = inspection.sharpest_head(pass_, stage, [place])
        maps = [pass_.spread(weights[0], stage).T.flip(0).cpu().numpy() for weights in head.weights.values()]
        limit = max(float(np.percentile(np.abs(each), _SHOWN_PERCENTILE)) for each in maps)
        row = _in_a_row([_coloured(0.5 + 0.5 * each / max(limit, 1e-9), _SIGNED) for each in maps])
        rows.append(row.swapaxes(1, 2))
    widest = max(row.shape[1] for row in rows)  # a softmax attention has no linear one beside it
    rows = [np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    marked = _in_a_row(rows).swapaxes(1, 2)
    bins = pass_.noisy.mag.shape[1]
    for top in range(0, marked.shape[1], bins + _GAP):
        _cross(marked[:, top : top + bins], bins - 1 - place.bin, place.frame)
    return marked


def _cross(picture: np.ndarray, row: int, column: int) -> None:
    rows, columns = (slice(max(0, middle - _MARK), middle + _MARK + 1) for middle in (row, column))
    picture[:, rows, column] = 0
    picture[:, row, columns] = 0


def _coloured(values: np.ndarray, stops: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Values from 0 to 1, clipped there, `[H, W]` → colours between the stops `[3, H, W]`; NaN is the first stop."""
    places = np.linspace(0, 1, len(stops))
    channels = [np.interp(np.nan_to_num(values), places, channel) for channel in zip(*stops, strict=True)]
    return np.rint(np.stack(channels)).astype(np.uint8)


def _in_a_row(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures `[3, H, …]` of one height beside each other, with a white gap."""
    height = pictures[0].shape[1]
    gap = np.full((3, height, _GAP), 255, np.uint8)
    return np.concatenate([part for each in pictures for part in (gap, each)][1:], axis=2)
