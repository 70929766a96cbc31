"""CONTRIBUTING's way to a network of one's own, followed: a class, its settings, an entry for each, a recipe."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

import config as configuration
import models
from config import LossConfig, NetworkConfig, PositiveFloat, load_config
from enhance.enhancer import Enhancer
from enhance.onnx_export import export
from enhance.onnx_runtime import load_onnx
from enhance.streaming import Stream
from models import losses
from models.checkpoint import load_checkpoint
from models.stft import Spectra
from tests.fixtures.commands import ROOT
from tests.fixtures.recordings import NOISY
from tests.fixtures.training import train_here, write_pairs


@dataclass(frozen=True)
class GateConfig(NetworkConfig):
    """A network that has one setting."""

    slope: PositiveFloat = 1.0


class State(NamedTuple):
    """The magnitudes of the frame before, in two halves of the bins, to have a tuple among the tensors."""

    frames: Tensor
    halves: tuple[Tensor, ...]


class Gate(nn.Module):
    """Each bin is weighted by what it and the frame before hold: causal, so that it can stream."""

    def __init__(self, config: GateConfig, bins: int) -> None:
        super().__init__()
        self.slope, self.bins = config.slope, bins
        self.weight = nn.Parameter(torch.full((bins, 1), 0.1))

    def forward(self, noisy: Spectra) -> Spectra:
        return self.stream(noisy, self.initial_state(len(noisy.mag)))[0]

    def initial_state(self, batch: int) -> State:
        low = self.bins // 2
        halves = self.weight.new_zeros(batch, low, 1), self.weight.new_zeros(batch, self.bins - low, 1)
        return State(self.weight.new_zeros(batch, 1), halves)

    def stream(self, noisy: Spectra, state: State) -> tuple[Spectra, State]:
        before = torch.cat([torch.cat(state.halves, dim=1), noisy.mag[:, :, :-1]], dim=2)
        gate = torch.sigmoid(self.slope * self.weight * (noisy.mag + before))
        low = self.bins // 2
        last = noisy.mag[:, :, -1:]
        return Spectra(noisy.mag * gate, noisy.pha), State(state.frames + 1, (last[:, :low], last[:, low:]))


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two entries, and a config on the base of Lite-RTSE's, whose level suits a stream."""
    monkeypatch.setattr(configuration, "MODEL_CONFIGS", {**configuration.MODEL_CONFIGS, "gate": GateConfig})
    monkeypatch.setattr(models, "NETWORKS", {**models.NETWORKS, "gate": Gate})
    of_others = json.loads((ROOT / "configs/lite_rtse.json").read_text())
    small = {"data": {**of_others["data"], "segment_size": 4800}, "train": {**of_others["train"], "batch_size": 4}}
    path = tmp_path / "gate.json"
    path.write_text(json.dumps({**of_others, **small, "model": {"name": "gate", "slope": 2}}))
    return path


def test_it_trains_enhances_streams_and_is_exported(recipe: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    ended = train_here(
        tmp_path, "--config", recipe, "--checkpoint_path=run", "--max_steps=2", "--device=cpu", "--quiet"
    )
    assert ended.code == 0, ended.errors
    network, config = load_checkpoint(tmp_path / "run/best.safetensors")
    assert config.model == GateConfig("gate", 2.0)
    assert isinstance(network, Gate)
    assert (network.weight != 0.1).all()  # it has learnt

    noisy = NOISY[:20_000].astype(np.float32)
    whole = Enhancer(network, config).enhance_signal(noisy, "whole")
    stream = Stream(network, config)
    live = np.concatenate([*(stream.process(part) for part in np.array_split(noisy, 9)), stream.flush()])
    assert np.abs(live - whole).max() < 1e-5

    for streams in (False, True):
        (tmp_path / "gate.onnx").write_bytes(export(network, config, stream=streams))
        exported, its_config = load_onnx(tmp_path / "gate.onnx", 1)
        assert its_config == config
        assert np.abs(Enhancer(exported, config).enhance_signal(noisy, "whole") - whole).max() < 1e-5


def test_its_settings_are_checked_as_those_of_others(recipe: Path) -> None:
    with pytest.raises(configuration.UserError, match=r"gate\.json: model\.slope: ") as caught:
        load_config(recipe, ["model.slope=-1", "model.colour=red"])
    assert "model.colour: unknown key" in str(caught.value)


def test_every_loss_weight_has_its_term() -> None:
    assert {*losses.TERMS, "metric"} == set(asdict(LossConfig()))
