"""`export_onnx.py`: one line for each error. A complete export is in tests/test_own_network.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import export_onnx
from tests.fixtures.commands import call_main, run_python

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


def test_a_failure_leaves_the_existing_file(small_checkpoint: Path, tmp_path: Path) -> None:
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
    assert {path.name for path in tmp_path.iterdir()} == {"network.onnx", "broken.safetensors"}
    assert output.read_text() == "an older one"


def test_output_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_onnx, "export", lambda *_: b"content")
    (tmp_path / "file").write_text("in the way")
    failed = call_main(export_onnx.main, "--output", "file/below", cwd=tmp_path)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
    assert failed.stderr.startswith("file/below: cannot be written: ")


def test_output_is_required(tmp_path: Path) -> None:
    wrong = run_python("-m", "scripts.export_onnx", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    assert "--output" in wrong.stderr
