"""The comparison of a GPU with the CPU, here with the CPU itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.fixtures.commands import call_main
from tools import gpu_check


@pytest.mark.slow
def test_runs_on_a_cpu(tmp_path: Path) -> None:
    done = call_main(gpu_check.main, "--device", "cpu", "--small", "--output", tmp_path / "GPU.md")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "GPU.md").read_text()
    for line in ("| imse: gradient | 0 | 0.01 |", "| enhanced files | 0 | 2 |", "| form | batch | hours per hour |"):
        assert line in text
    assert "epoch, minutes" in text


def test_differences_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "compare", lambda _: [{"of": "x", "difference": 0.2, "limit": 0.1}])
    monkeypatch.setattr(gpu_check, "measure_inference", lambda _: [])
    monkeypatch.setattr(gpu_check, "measure_training", lambda _: [])
    done = call_main(gpu_check.main, "--device", "cpu", "--small", "--output", tmp_path / "GPU.md")
    assert done.returncode == 1
    assert "| x | 0.2 | 0.1 |" in (tmp_path / "GPU.md").read_text()


def test_a_failed_measurement_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> list[gpu_check.Row]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_check, "compare", lambda _: [{"of": "x", "difference": 0.0, "limit": 0.1}])
    monkeypatch.setattr(gpu_check, "measure_inference", lambda _: [{"form": "float32", "hours per hour": 7.0}])
    monkeypatch.setattr(gpu_check, "measure_training", fail)
    done = call_main(gpu_check.main, "--device", "cpu", "--batch_sizes", 2, 64, "--output", tmp_path / "GPU.md")
    assert done.returncode == 0
    text = (tmp_path / "GPU.md").read_text()
    assert "| float32 | 7 |" in text
    assert "| imse | bf16, compiled | 64 | out of memory |" in text


def test_difference_by_hand() -> None:
    assert gpu_check.difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == 0.5
    long = torch.arange(200.0)
    assert gpu_check.difference(1.1 * long, long) == pytest.approx(0.1)
