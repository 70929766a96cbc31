"""Exported networks equal PyTorch's, whole and in pieces; unusable .onnx files are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.torch_version import TorchVersion

from cli import UserError
from config import Config, load_config
from enhance.enhancer import Enhancer
from enhance.graphs import GraphNetwork, StreamingGraphNetwork, check_graph
from enhance.onnx_export import export, with_onnxruntime
from enhance.onnx_runtime import load_onnx, open_session, session_network
from enhance.runtimes import fast_stream
from enhance.streaming import Stream, StreamingNetwork
from models import build
from models.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from models.stft import AnySpectra, Spectra, Spectrogram
from tests.fixtures.commands import ROOT, error_line
from tests.fixtures.networks import assert_same_spectra, noise, random_network
from tests.fixtures.signals import speech_like, with_noise

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

WHOLE = ("lite_rtse", "imse", "muse", "cnunet", "dccrn", "dpcrn", "dpcrn_ac", "dpcrn_cf", "mpsenet")
NETWORKS = tuple(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE)
LIVE = ("dccrn", "dpcrn", "dpcrn_ac", "dpcrn_cf", "imse_live")
STREAMS = ("lite_rtse stream", *(pytest.param(f"{name} stream", marks=pytest.mark.slow) for name in LIVE))
NOISY = with_noise(speech_like(1.5), 5).astype(np.float32)


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Export a network to a file, once; as "lite_rtse stream" with its state."""
    folder = tmp_path_factory.mktemp("onnx")

    @cache
    def exported(name: str) -> Path:
        network, config = random_network(name.split()[0])
        path = folder / f"{name}.onnx"
        path.write_bytes(export(network, config, stream=name.endswith("stream")))
        return path

    return exported


@pytest.mark.parametrize("name", [*NETWORKS, *STREAMS])
def test_results_equal_pytorch(name: str, file_of: Callable[[str], Path]) -> None:
    network, config = random_network(name.split()[0])
    exported, _ = load_onnx(file_of(name), threads=1)
    for batch, frames in ((1, 1), (2, 40)):
        noisy = noise(config, batch, frames)
        with torch.inference_mode():
            expected, enhanced = network(noisy), exported(noisy)
        assert_same_spectra(enhanced, expected, 1e-4)


@pytest.mark.parametrize("name", [*NETWORKS, "lite_rtse stream"])
def test_a_file_is_complete(name: str, file_of: Callable[[str], Path]) -> None:
    network, config = random_network(name.split()[0])
    _, read = load_onnx(file_of(name), threads=1)
    assert read == config
    weights = sum(weight.numel() for weight in network.parameters())
    assert file_of(name).stat().st_size < 4 * weights + 500_000
    model = onnx.load(file_of(name))
    onnx.checker.check_model(model)
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["config"]) == config.to_dict()
    bins = config.stft.bins
    axes = {
        each.name: [axis.dim_param or axis.dim_value for axis in each.type.tensor_type.shape.dim]
        for each in (*model.graph.input, *model.graph.output)
    }
    parts = ("real", "imaginary") if config.model.complex_spectra else ("mag", "pha")
    spectra = {key: ["batch", bins, "frames"] for key in (*parts, *(f"enhanced_{part}" for part in parts))}
    assert axes | spectra == axes
    state = [each for each in axes if each not in spectra]
    if not name.endswith("stream"):
        assert state == []
        return
    assert len(state) == 20
    for before in state[:10]:
        assert axes[before] == axes[f"next_{before}"]
    assert axes["state_0"] == axes["state_9"] == ["batch", bins]
    assert axes["state_2"] == ["batch", 2, bins, 32]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_equals_one_pass(name: str, file_of: Callable[[str], Path]) -> None:
    network, config = random_network(name.split()[0])
    exported, _ = load_onnx(file_of(name), threads=1)
    assert isinstance(exported, StreamingNetwork)
    with torch.inference_mode():
        expected = Enhancer(network, config).enhance_batch(torch.from_numpy(NOISY)[None])[0].numpy()
    assert np.abs(expected - NOISY).max() > 0.01
    for pieces in (1, 256, 1000, len(NOISY)):
        stream = Stream(exported, config)
        starts = range(0, len(NOISY) if pieces > 1 else 1000, pieces)
        enhanced = np.concatenate([stream.process(NOISY[start : start + pieces]) for start in starts])
        np.testing.assert_allclose(enhanced, expected[: len(enhanced)], rtol=0, atol=1e-5)
        assert len(enhanced) >= 512
    assert len(enhanced) + len(stream.flush()) == len(NOISY)


def test_networks_that_cannot_stream() -> None:
    with pytest.raises(UserError, match="without a state cannot stream"):
        fast_stream(GraphNetwork(lambda inputs: [*inputs.values()]), random_network("lite_rtse")[1])


def test_an_older_pytorch_cannot_export_lstms(monkeypatch: pytest.MonkeyPatch) -> None:
    network, config = random_network("lite_rtse")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cu124"))
    with pytest.raises(UserError, match=r"LiteRTSE .* 2\.8 .* 2\.6\.0\+cu124"):
        export(network, config)


def test_check_finds_another_networks_weights(file_of: Callable[[str], Path]) -> None:
    network, config = random_network("lite_rtse")
    exported, _ = load_onnx(file_of("lite_rtse stream"), threads=1)
    check_graph(exported, network, config)
    with torch.no_grad():
        network.get_parameter("mask.bias").add_(0.01)
    with pytest.raises(UserError, match=r"magnitudes of 1 x 1 frames "):
        check_graph(exported, network, config)


def test_check_finds_another_shape() -> None:
    network, config = random_network("lite_rtse")
    empty = GraphNetwork(lambda inputs: [np.empty((0, *x.shape[1:]), np.float32) for x in inputs.values()])
    with pytest.raises(UserError, match=r"LiteRTSE.*\(0, 257, 1\) instead of \(1, 257, 1\)"):
        check_graph(empty, network, config)


def test_check_finds_a_lost_state(file_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    exported, config = load_onnx(file_of("lite_rtse stream"), threads=1)
    assert isinstance(exported, StreamingGraphNetwork)
    remembering = exported.stream

    def forgetful(noisy: Spectra, state: dict[str, np.ndarray] | None) -> tuple[AnySpectra, dict[str, np.ndarray]]:
        enhanced, after = remembering(noisy, state)
        return enhanced, after | {"state_7": state["state_7"] if state else 0 * after["state_7"]}

    monkeypatch.setattr(exported, "stream", forgetful)
    with pytest.raises(UserError, match="2 x 7 frames"):
        check_graph(exported, random_network("lite_rtse")[0], config)


@pytest.mark.slow
def test_exporting_leaves_the_network_as_it_was() -> None:
    network, config = random_network("lite_rtse")
    noisy = noise(config, 1, 5)
    before = network(noisy).mag
    exported = with_onnxruntime(network, config, threads=2)
    assert isinstance(exported, StreamingNetwork)
    assert not exported.training
    assert all(weight.requires_grad for weight in network.parameters())
    torch.testing.assert_close(network(noisy).mag, before)


def message_of(path: Path) -> str:
    return error_line(lambda: load_onnx(path, threads=1), start=f"{path}: ")


def test_files_that_are_not_onnx_or_cut_short(file_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    assert "cannot be read: No such file" in message_of(path)
    whole = file_of("lite_rtse stream").read_bytes()
    foreign = b"these are no weights\n" * 100, DEFAULT_CHECKPOINT.read_bytes()[:5000]
    for content in (b"", *foreign, whole[: len(whole) // 1000], whole[: -len(whole) // 10_000]):
        path.write_bytes(content)
        assert "not an ONNX file, or cut short" in message_of(path)


def test_files_of_other_projects(file_of: Callable[[str], Path], tmp_path: Path, small_config: Config) -> None:
    path = tmp_path / "foreign.onnx"
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    assert "an ONNX file without this project's configuration" in message_of(path)
    onnx.helper.set_model_props(model, {"config": json.dumps(small_config.to_dict())})
    onnx.save(model, path)
    assert "its inputs are not those of imse" in message_of(path)

    model = onnx.load(file_of("lite_rtse stream"))
    for config, words in (("{", "its configuration cannot be used"), ("{}", "model: missing")):
        onnx.helper.set_model_props(model, {"config": config})
        onnx.save(model, path)
        assert words in message_of(path)


def test_a_missing_package_is_named(
    file_of: Callable[[str], Path], small_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install onnxruntime" in message_of(file_of("lite_rtse stream"))
    with pytest.raises(UserError, match="onnxruntime"):
        with_onnxruntime(build(small_config).eval(), small_config, threads=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "largest"),
    [
        *(("default", 3e6), ("imse/g_best_pesq_3.373", 3e6), ("muse/g_best", 4e6), ("lite_rtse", 7e6), ("cnunet", 7e6)),
        *(("dccrn", 15e6), ("dpcrn", 1.5e6), ("dpcrn_ac", 2e6), ("dpcrn_cf", 2e6), ("mpsenet", 1e7)),
    ],
)
def test_whole_networks(name: str, largest: float, request: pytest.FixtureRequest) -> None:
    if name in ("lite_rtse", "cnunet", "dccrn", "dpcrn", "dpcrn_ac", "dpcrn_cf", "mpsenet"):
        torch.manual_seed(0)
        config = load_config(ROOT / f"configs/{name}.json")
        network = build(config).eval()
    else:
        released = name != "default"
        network, config = load_checkpoint(
            request.getfixturevalue("reference") / name if released else DEFAULT_CHECKPOINT
        )
    content = export(network, config)  # compares the values for few frames
    assert len(content) < largest
    level = 1 if config.data.normalize_level else 0.1
    noisy = Spectrogram(config.stft, config.model.complex_spectra)(level * torch.randn(1, config.data.segment_size))
    with torch.inference_mode():
        expected, found = network(noisy).mag, session_network(open_session(content, 1, "a network"), config)(noisy).mag
    assert (found - expected).abs().max() < 1e-4 * expected.max()
