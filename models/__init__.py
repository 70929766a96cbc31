"""The networks, and what turns their spectra into sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from config import Config
from models.cnunet import CNUNet
from models.imse import IMSE
from models.lite_rtse import LiteRTSE
from models.muse import MUSE

__all__ = ["NETWORKS", "build"]

NETWORKS: Mapping[str, Callable[[Any, int], nn.Module]] = {
    "imse": IMSE,
    "muse": MUSE,
    "lite_rtse": LiteRTSE,
    "cnunet": CNUNet,
}
"""What makes each network of its settings and the number of frequency bins, by the name that `model.name` gives."""


def build(config: Config) -> nn.Module:
    """The network that `config.model` names, with fresh random weights: `Spectra` → `Spectra`."""
    return NETWORKS[config.model.name](config.model, config.stft.bins)
