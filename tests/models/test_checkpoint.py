"""Checkpoint files: round trip, released and older files, and damaged or hostile ones (more: the fuzz test)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from cli import UserError
from config import Config, ImseConfig
from models import build
from models.checkpoint import load_checkpoint, save_checkpoint
from tests.fixtures.commands import error_line
from tests.models.spectra import random_spectra
from tests.reference.imse import ReferenceIMSE


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Return a file as the authors release them, of half the width, with its flat config.json beside it."""
    torch.manual_seed(0)
    path = tmp_path / "g_best"
    torch.save({"generator": ReferenceIMSE(8).state_dict()}, path)
    path.with_name("config.json").write_text(json.dumps({"dense_channel": 8, "adam_b1": 0.9, "seed": 7, "num_gpus": 0}))
    return path


def test_round_trip(tmp_path: Path, small_config: Config) -> None:
    torch.manual_seed(0)
    network = build(small_config)
    path = tmp_path / "deep" / "network.safetensors"
    save_checkpoint(path, network, small_config)
    loaded, config = load_checkpoint(path)
    assert config == small_config
    assert not loaded.training
    assert type(loaded) is type(network)
    weights = network.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == ["network.safetensors"]


def test_released_file_with_its_config(published: Path) -> None:
    network, config = load_checkpoint(published)
    assert isinstance(config.model, ImseConfig)
    assert (config.model.channels, config.optim.adam_b1, config.train.seed, config.loss.metric) == (8, 0.9, 7, 0.05)
    plain = ReferenceIMSE(8).eval()
    plain.load_state_dict(torch.load(published, weights_only=True)["generator"])
    noisy = random_spectra(1, 4)
    with torch.inference_mode():
        assert torch.allclose(network.double()(noisy).mag, plain.double()(noisy.mag, noisy.pha)[0], atol=1e-5)


def test_names_of_version_0_1(small_checkpoint: Path, tmp_path: Path, small_config: Config) -> None:
    """MALA's `lepe` and `output_gate` were `local` and `gate`; the feed-forward network still has a `gate`."""
    weights = safetensors.torch.load_file(small_checkpoint)
    old = {
        name.replace(".lepe.", ".local.").replace(".output_gate.", ".gate."): tensor for name, tensor in weights.items()
    }
    assert len(old.keys() - weights.keys()) == 2 * 2 * 7 * 4
    path = tmp_path / "old.safetensors"
    safetensors.torch.save_file(old, path, metadata={"config": json.dumps(small_config.to_dict())})
    loaded = load_checkpoint(path)[0].state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


def message_of(path: Path) -> str:
    message = error_line(lambda: load_checkpoint(path))
    assert str(path) in message or "config.json" in message
    return message


def test_missing_empty_and_text_files(tmp_path: Path) -> None:
    assert "No such file" in message_of(tmp_path / "nothing")
    for content in ("", "these are no weights\n" * 100):
        (tmp_path / "text").write_text(content)
        assert "not a checkpoint" in message_of(tmp_path / "text")


@pytest.mark.parametrize("share", [0.001, 0.99])
def test_files_cut_short(published: Path, small_checkpoint: Path, tmp_path: Path, share: float) -> None:
    for whole in (published, small_checkpoint):
        content = whole.read_bytes()
        path = tmp_path / "cut"
        path.write_bytes(content[: int(len(content) * share)])
        assert "cut short" in message_of(path)


class Trap:
    """Create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_executed(tmp_path: Path, zipped: bool) -> None:
    path, sign = tmp_path / "trap", tmp_path / "executed"
    torch.save({"generator": Trap(sign)}, path, _use_new_zipfile_serialization=zipped)
    assert "not a checkpoint" in message_of(path)
    assert not sign.exists()
    torch.load(path, weights_only=False)
    assert sign.exists()  # the trap works


def test_another_networks_tensors(tmp_path: Path, small_config: Config) -> None:
    path = tmp_path / "other"
    torch.save({"generator": {"lstm.weight": torch.zeros(3)}}, path)
    assert "another network" in message_of(path)
    torch.save({"weights": 1}, path)
    assert "generator" in message_of(path)
    metadata = {"config": json.dumps(small_config.to_dict())}
    safetensors.torch.save_file({"lstm.weight": torch.zeros(3)}, path, metadata=metadata)
    assert "'lstm.weight'" in message_of(path)
    safetensors.torch.save_file({"lstm\n\u2028weight": torch.zeros(3)}, path, metadata=metadata)
    assert r"'lstm\n\u2028weight'" in message_of(path)
    safetensors.torch.save_file({"lstm.weight": torch.zeros(3)}, path)
    assert "configuration" in message_of(path)


@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
        torch.zeros(1).expand(1000),
        torch.nn.Parameter(torch.zeros(2)),
    ],
)
def test_entries_that_are_not_weights(tmp_path: Path, weight: Tensor) -> None:
    for weights in ({"a.mala.qkvo.weight": weight}, {1: torch.zeros(2)}):
        torch.save({"generator": weights}, tmp_path / "odd")
        assert "without a 'generator' state dict" in message_of(tmp_path / "odd")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int32])
def test_weights_of_another_dtype(small_checkpoint: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    weights = safetensors.torch.load_file(small_checkpoint)
    with safetensors.safe_open(small_checkpoint, framework="pt") as file:
        metadata = file.metadata()
    name = next(iter(weights))
    path = tmp_path / "other"
    safetensors.torch.save_file({**weights, name: weights[name].to(dtype)}, path, metadata=metadata)
    message = message_of(path)
    assert name in message and str(dtype) in message


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"weight":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}', "shape"),
        (b'{"a\\nb":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', "a; b"),
    ],
)
def test_shape_too_large_for_pytorch_and_name_with_a_line_break(tmp_path: Path, header: bytes, words: str) -> None:
    (tmp_path / "odd").write_bytes(len(header).to_bytes(8, "little") + header)
    assert words in message_of(tmp_path / "odd")


@pytest.mark.parametrize(
    ("content", "keyword"),
    [
        ('{"dense_channel": 16}', "shape"),
        ('{"dense_channel": "wide"}', "model.channels"),
        ('{"dense_channel": 8000000}', "channels"),  # too large to be built
        ("{", "JSON"),
        ("[]", "object"),
    ],
)
def test_wrong_config_beside_a_released_file(published: Path, content: str, keyword: str) -> None:
    published.with_name("config.json").write_text(content)
    assert keyword in message_of(published)


def test_nan_weights(tmp_path: Path, small_config: Config) -> None:
    network = build(small_config)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    save_checkpoint(tmp_path / "nan.safetensors", network, small_config)
    assert "NaN" in message_of(tmp_path / "nan.safetensors")


def test_failed_write_leaves_the_earlier_file(tmp_path: Path, small_config: Config) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        save_checkpoint(blocked / "network.safetensors", build(small_config), small_config)
    assert blocked.read_text() == "in the way"
