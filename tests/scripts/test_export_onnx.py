"""export_onnx.py as a user runs it: a file that is whole or not there, and one line for what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from config import load_config
from enhance.enhancer import Enhancer
from enhance.onnx_runtime import load_onnx
from enhance.streaming import Stream
from models import build
from models.checkpoint import save_checkpoint
from tests.fixtures.commands import ROOT, run_module
from tests.fixtures.signals import speech_like, with_noise

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="the extra onnx is not installed")

SCRIPT = "scripts.export_onnx"
NOISY = with_noise(speech_like(1), 5).astype(np.float32)


@pytest.fixture(scope="module")
def causal_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(ROOT / "configs/lite_rtse.json")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "lite_rtse.safetensors"
    save_checkpoint(path, build(config), config)
    return path


def test_it_writes_a_file_and_nothing_else(causal_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "network.onnx").write_text("an older one")
    done = run_module(
        SCRIPT, "--checkpoint_file", causal_checkpoint, "--output", "network.onnx", "--stream", cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]
    network, config = load_onnx(tmp_path / "network.onnx", threads=1)
    assert config == load_config(ROOT / "configs/lite_rtse.json")
    stream = Stream(network, config)
    enhanced = np.concatenate([stream.process(NOISY), stream.flush()])
    torch.manual_seed(0)
    with torch.inference_mode():
        expected = Enhancer(build(config).eval(), config)(torch.from_numpy(NOISY)[None])[0].numpy()
    np.testing.assert_allclose(enhanced, expected, rtol=0, atol=1e-5)


def test_what_cannot_be_exported_leaves_what_was_there(
    small_checkpoint: Path, causal_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "network.onnx"
    output.write_text("an older one")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(small_checkpoint.read_bytes()[:1000])
    for arguments, words in (
        (("--checkpoint_file", small_checkpoint, "--stream"), "IMSE cannot stream: it needs the whole signal"),
        (("--checkpoint_file", broken), "damaged or cut short"),
        (("--checkpoint_file", tmp_path / "none"), "No such file"),
    ):
        failed = run_module(SCRIPT, *arguments, "--output", output, cwd=tmp_path)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert words in failed.stderr
        assert failed.stderr.count("\n") == 1
    failed = run_module(SCRIPT, "--checkpoint_file", causal_checkpoint, "--output", output / "below", cwd=tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith(f"{output}/below: cannot be written: ")
    assert failed.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"network.onnx", "broken.safetensors"}
    assert output.read_text() == "an older one"


def test_the_output_must_be_named(tmp_path: Path) -> None:
    wrong = run_module(SCRIPT, cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--output" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
