"""The networks by name, and how `models.build` makes one from a configuration.

A network maps noisy to enhanced spectra, `models.stft.Spectra` or `ComplexSpectra`. Its constructor takes its settings,
a subclass of `config.NetworkConfig`, and the number of frequency bins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

import config as settings
from config import Config, NetworkConfig
from models.cnunet import CNUNet
from models.dccrn import make_dccrn
from models.dpcrn import DPCRN
from models.imse import IMSE
from models.imse_live import ImseLive
from models.lite_rtse import LiteRTSE
from models.mpsenet import MPSENet
from models.muse import MUSE

__all__ = ["NETWORKS", "build", "register"]

NETWORKS: dict[str, Callable[[Any, int], nn.Module]] = {
    "imse": IMSE,
    "imse_live": ImseLive,
    "muse": MUSE,
    "lite_rtse": LiteRTSE,
    "cnunet": CNUNet,
    "dccrn": make_dccrn,
    "dpcrn": DPCRN,
    "mpsenet": MPSENet,
}
"""Network class, or function that builds it, by `model.name`; `config.MODEL_CONFIGS` has the settings of each."""


def register(name: str, config_class: type[NetworkConfig], network_class: Callable[[Any, int], nn.Module]) -> None:
    """Make a network available as `model.name` in configurations and checkpoints."""
    settings.MODEL_CONFIGS[name] = config_class
    NETWORKS[name] = network_class


def build(config: Config) -> nn.Module:
    """Return the network `config.model.name` with new random weights."""
    return NETWORKS[config.model.name](config.model, config.stft.bins)
