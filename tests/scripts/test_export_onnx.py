"""export_onnx.py: a complete file or none, and one line for each error."""

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
from scripts import export_onnx
from tests.fixtures.commands import ROOT, call_main, run_module
from tests.fixtures.signals import speech_like, with_noise

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)

NOISY = with_noise(speech_like(1), 5).astype(np.float32)


@pytest.fixture(scope="module")
def causal_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(ROOT / "configs/lite_rtse.json")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "lite_rtse.safetensors"
    save_checkpoint(path, build(config), config)
    return path


def test_a_complete_file(causal_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "network.onnx").write_text("an older one")
    options = "--checkpoint_file", causal_checkpoint, "--output", "network.onnx", "--stream"
    done = call_main(export_onnx.main, *options, cwd=tmp_path)
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


def test_a_failure_leaves_the_existing_file(small_checkpoint: Path, causal_checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "network.onnx"
    output.write_text("an older one")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(small_checkpoint.read_bytes()[:1000])
    for arguments, words in (
        (("--checkpoint_file", small_checkpoint, "--stream"), "IMSE cannot stream"),
        (("--checkpoint_file", broken), "damaged or cut short"),
        (("--checkpoint_file", tmp_path / "none"), "No such file"),
    ):
        failed = call_main(export_onnx.main, *arguments, "--output", output, cwd=tmp_path)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert words in failed.stderr
        assert failed.stderr.count("\n") == 1
    failed = call_main(
        export_onnx.main, "--checkpoint_file", causal_checkpoint, "--output", output / "below", cwd=tmp_path
    )
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith(f"{output}/below: cannot be written: ")
    assert failed.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"network.onnx", "broken.safetensors"}
    assert output.read_text() == "an older one"


def test_output_is_required(tmp_path: Path) -> None:
    wrong = run_module("scripts.export_onnx", cwd=tmp_path, minutes=3)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--output" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
