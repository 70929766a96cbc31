"""The networks, and what turns their spectra into sound."""

from __future__ import annotations

from config import Config
from models.imse import IMSE

__all__ = ["build"]


def build(config: Config) -> IMSE:
    """The network that `config.model` names, with fresh random weights: `Spectra` → `Spectra`."""
    networks = {"imse": IMSE}
    return networks[config.model.name](config.model, config.stft.bins)
