"""Add a network as CONTRIBUTING describes: a settings class, a network class, `models.register`, a configuration."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

import config as configuration
import models
from config import LossConfig, NetworkConfig, PositiveFloat, load_config
from enhance.onnx_runtime import load_onnx
from enhance.streaming import Stream
from models import losses
from models.checkpoint import load_checkpoint
from models.stft import Spectra
from scripts import export_onnx
from tests.fixtures.commands import ROOT, call_main
from tests.fixtures.networks import one_pass
from tests.fixtures.recordings import NOISY
from tests.fixtures.training import train_here, write_pairs


@dataclass(frozen=True)
class GateConfig(NetworkConfig):
    """Settings of the network."""

    slope: PositiveFloat = 1.0


class Gate(nn.Module):
    """Gate each bin by its magnitude in this and the previous frame: causal, so that it can stream."""

    def __init__(self, config: GateConfig, bins: int) -> None:
        super().__init__()
        self.slope = config.slope
        self.weight = nn.Parameter(torch.full((bins, 1), 0.1))

    def forward(self, noisy: Spectra) -> Spectra:
        return self.stream(noisy, None)[0]

    def stream(self, noisy: Spectra, state: tuple[Tensor] | None) -> tuple[Spectra, tuple[Tensor]]:
        before = torch.zeros_like(noisy.mag[:, :, :1]) if state is None else state[0]
        before = torch.cat([before, noisy.mag[:, :, :-1]], dim=2)
        gate = torch.sigmoid(self.slope * self.weight * (noisy.mag + before))
        return Spectra(noisy.mag * gate, noisy.pha), (noisy.mag[:, :, -1:],)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Register the network and write its configuration, based on that of Lite-RTSE, whose level suits a stream."""
    # register() adds to these, and the test takes it back.
    monkeypatch.setattr(configuration, "MODEL_CONFIGS", {**configuration.MODEL_CONFIGS})
    monkeypatch.setattr(models, "NETWORKS", {**models.NETWORKS})
    models.register("gate", GateConfig, Gate)
    content = json.loads((ROOT / "configs/lite_rtse.json").read_text())
    content["model"] = {"name": "gate", "slope": 2}
    content["data"]["segment_size"], content["train"]["batch_size"] = 4800, 4
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(content))
    return path


def test_own_network_trains_enhances_streams_and_is_exported(recipe: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    ended = train_here(
        tmp_path, "--config", recipe, "--checkpoint_path=run", "--max_steps=2", "--device=cpu", "--quiet"
    )
    assert ended.returncode == 0, ended.stderr
    network, config = load_checkpoint(tmp_path / "run/best.safetensors")
    assert config.model == GateConfig("gate", 2.0)
    assert isinstance(network, Gate)
    assert (network.weight != 0.1).all()  # trained

    noisy = NOISY[:20_000].astype(np.float32)
    whole = one_pass(network, config, noisy)
    stream = Stream(network, config)
    live = np.concatenate([*(stream.process(part) for part in np.array_split(noisy, 9)), stream.flush()])
    assert np.abs(live - whole).max() < 1e-5

    for options in ((), ("--stream",)):
        output = "--checkpoint_file", "run/best.safetensors", "--output", "gate.onnx"
        assert call_main(export_onnx.main, *output, *options, cwd=tmp_path) == (0, "", "")
        exported, its_config = load_onnx(tmp_path / "gate.onnx", 1)
        assert its_config == config
        assert np.abs(one_pass(exported, config, noisy) - whole).max() < 1e-5


def test_own_settings_are_checked(recipe: Path) -> None:
    with pytest.raises(configuration.UserError, match=r"gate\.json: model\.slope: ") as caught:
        load_config(recipe, ["model.slope=-1", "model.colour=red"])
    assert "model.colour: unknown key" in str(caught.value)


def test_every_loss_weight_has_its_term() -> None:
    assert {*losses.TERMS, "metric", *configuration.NETWORK_TERMS} == set(asdict(LossConfig()))
