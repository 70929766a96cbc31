"""The networks, and what turns their spectra into sound."""

from __future__ import annotations

from torch import nn

from config import Config
from models.cnunet import CNUNet
from models.imse import IMSE
from models.imse_ablation import AblatedIMSE
from models.lite_rtse import LiteRTSE
from models.muse import MUSE

__all__ = ["build"]


def build(config: Config) -> nn.Module:
    """The network that `config.model` names, with fresh random weights: `Spectra` → `Spectra`."""
    networks = {"imse": IMSE, "imse_ablation": AblatedIMSE, "muse": MUSE, "lite_rtse": LiteRTSE, "cnunet": CNUNet}
    return networks[config.model.name](config.model, config.stft.bins)
