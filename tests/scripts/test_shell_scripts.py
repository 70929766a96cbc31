"""setup.sh, test.sh, reproduce.sh: the commands that they call, recorded by fake programs. train_*.sh run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from config import load_config
from models import build
from models.checkpoint import load_checkpoint, save_checkpoint
from tests.fixtures.commands import ROOT
from tests.fixtures.recordings import save
from tests.fixtures.signals import speech_like
from tests.fixtures.training import settings, write_noises

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
WEIGHTS = "checkpoints/published/g_best_pesq_3.373"


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose programs append their arguments to the file `calls`; Python fails on those in $REFUSED.

    Code for Python (-c) is not recorded.
    """
    project = tmp_path / "the project"
    shutil.copytree(ROOT / "scripts", project / "scripts")
    (project / "data/clean").mkdir(parents=True)
    (project / "data/noisy").mkdir()
    calls = f"'{project}/calls'"
    record = f'[ "$1" = -c ] || echo "$*" >> {calls}\n[[ "$*" != *"${{REFUSED:-nothing}}"* ]]'
    for program in (".venv/bin/python", "programs/python3"):
        write_program(project / program, record)
    for name in ("ruff", "basedpyright", "pytest"):
        write_program(project / f".venv/bin/{name}", f'echo "{name} $*" >> {calls}')
    write_program(project / "programs/uname", "echo Linux")
    for name in ("bash", "dirname", "realpath", "mkdir"):
        (project / "programs" / name).symlink_to(shutil.which(name) or name)
    return project


def run_shell(
    project: Path, script: str, *arguments: str, cwd: str = ".", refused: str = "nothing"
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run a script of the project; return the result and the recorded calls."""
    result = subprocess.run(
        ["bash", str(project / "scripts" / script), *arguments],
        cwd=project / cwd,
        env={"PATH": str(project / "programs"), "REFUSED": refused},
        executable=str(project / "programs/bash"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    calls = project / "calls"
    return result, calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []


def test_setup_installs_the_cpu_build_without_a_gpu(project: Path) -> None:
    result, calls = run_shell(project, "setup.sh", "dev")
    assert (result.returncode, result.stderr, len(calls)) == (0, "", 2)
    assert f"--constraint constraints.txt --no-deps --retries 1 --index-url {CPU_INDEX} torch" in calls[0]
    assert calls[1].endswith("--constraint constraints.txt --editable .[dev]")


def test_setup_installs_the_cuda_build_with_a_gpu(project: Path) -> None:
    write_program(project / "programs/nvidia-smi", "true")
    result, calls = run_shell(project, "setup.sh", refused="+cpu")
    assert (result.returncode, len(calls)) == (0, 1)
    assert calls[0].endswith("--constraint constraints.txt --editable .")
    _, (*_, removed, installed) = run_shell(project, "setup.sh")  # the CPU build is installed
    assert removed.endswith("uninstall --quiet --yes torch")
    assert installed == calls[0]


def test_setup_falls_back_to_pypi_and_fails_if_that_fails(project: Path) -> None:
    result, calls = run_shell(project, "setup.sh", refused=CPU_INDEX)
    assert (result.returncode, len(calls)) == (0, 2)
    assert "PyPI" in result.stderr
    assert run_shell(project, "setup.sh", refused="--constraint constraints.txt --editable .")[0].returncode != 0


def test_setup_replaces_an_unusable_environment(project: Path) -> None:
    _, calls = run_shell(project, "setup.sh", refused="import pip, sys")
    assert calls[0] == "-m venv --clear .venv"
    result, more = run_shell(project, "setup.sh", refused="import")  # Python is too old
    assert (result.returncode, more) == (2, calls)
    assert "3.11" in result.stderr and "PYTHON" in result.stderr


def test_reproduce_enhances_and_scores(project: Path) -> None:
    (project / WEIGHTS).parent.mkdir(parents=True)
    (project / WEIGHTS).touch()
    result, calls = run_shell(project, "reproduce.sh", "clean", "noisy", cwd="data")
    out = f"{project}/enhanced/reproduced"
    assert result.returncode == 0, result.stderr
    assert calls[2:] == [
        f"inference.py --input_noisy_wavs_dir {project}/data/noisy --output_dir {out}"
        f" --checkpoint_file {WEIGHTS} --protocol paper",
        f"cal_metrics.py --clean_wav_dir {project}/data/clean --noisy_wav_dir {out}",
    ]
    (project / WEIGHTS).unlink()
    _, calls = run_shell(project, "reproduce.sh", "clean", "noisy", "out", cwd="data")
    assert calls[6] == "-m scripts.download_published g_best_pesq_3.373"
    assert f"--output_dir {project}/data/out " in calls[7]


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("reproduce.sh", ["clean"]),
        ("reproduce.sh", ["clean", "noisy", "out", "more"]),
        ("train_default.sh", ["speech"]),
    ],
)
def test_usage(project: Path, script: str, arguments: list[str]) -> None:
    result, calls = run_shell(project, script, *arguments)
    assert (result.returncode, calls) == (2, [])
    assert result.stderr.startswith(f"usage: bash scripts/{script} ")


@pytest.fixture
def real_project(tmp_path: Path) -> Path:
    """A project with a setup.sh that does nothing: scripts must not install into the environment of the tests."""
    project = tmp_path / "project"
    (project / "scripts").mkdir(parents=True)
    (project / "scripts/setup.sh").touch()
    for name in ("train_default.sh", "train_paper.sh"):
        shutil.copy(ROOT / "scripts" / name, project / "scripts")
    for path in (*ROOT.glob("*.py"), ROOT / "configs"):
        (project / path.name).symlink_to(path)
    write_program(project / ".venv/bin/python", f'exec {shlex.quote(sys.executable)} "$@"')
    return project


@pytest.mark.slow
def test_train_default_trains_resumes_and_averages(tmp_path: Path, real_project: Path) -> None:
    for index, name in enumerate(("anna_1", "ben_1", "carl_1")):
        save(tmp_path / f"speech/{name}.wav", speech_like(1.5, seed=index))
    write_noises(tmp_path / "noise", 2)
    for index in range(10):
        save(tmp_path / f"rooms/{index}.wav", np.eye(1, 800, dtype=np.float32)[0])
    released, output = tmp_path / "released.safetensors", tmp_path / "trained.safetensors"
    config = load_config(ROOT / "configs/imse.json", ["model.channels=8"])
    save_checkpoint(released, build(config), config)
    small = [
        *settings(model_channels=8, data_segment_size=8000, mix_validation_mixes=1),
        *settings(train_compile="false", train_bf16="false", train_epochs=9),
    ]
    command = ["bash", str(real_project / "scripts/train_default.sh"), "speech", "noise", "--device=cpu", "--quiet"]
    paths = {"OUTPUT": str(output), "RELEASED": str(released), "ROOMS": str(tmp_path / "rooms")}
    environment = os.environ | paths | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for runs in (3, 0):  # the second time, all are complete
        result = subprocess.run(
            [*command, *small, "--max_steps=2"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("step 2: ") == runs
    runs = real_project / "runs/default"
    assert (runs / "first/latest.pt").exists()
    averaged, config = load_checkpoint(output)
    assert (config.model.name, config.data.segment_size) == ("imse", 8000)
    parts = (released, runs / "second/latest.safetensors", runs / "third/latest.safetensors")
    start, second, third = (load_checkpoint(path)[0].state_dict() for path in parts)
    for name, weight in averaged.state_dict().items():
        torch.testing.assert_close(weight, 0.4 * start[name] + 0.3 * second[name] + 0.3 * third[name])
    assert any((second[name] != third[name]).any() for name in second)


@pytest.mark.slow
def test_train_paper_goes_from_the_data_to_the_scores(tmp_path: Path, real_project: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for split, speakers in (("train", ("p1", "p2", "p3")), ("test", ("p4",))):
        rows: list[dict[str, object]] = []
        for index, speaker in enumerate(speakers):
            row: dict[str, object] = {"id": f"{speaker}_001"}
            for column, noise in (("clean", 0.0), ("noisy", 0.02)):
                path = tmp_path / f"{column}.wav"
                rng = np.random.default_rng(index)
                save(path, speech_like(1.5, seed=index) + noise * rng.standard_normal(24_000).astype(np.float32))
                row[column] = {"bytes": path.read_bytes(), "path": path.name}
            rows.append(row)
        (tmp_path / "hub").mkdir(exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"hub/{split}.parquet")
    small = settings(model_channels=8, data_segment_size=8000)
    command = ["bash", str(real_project / "scripts/train_paper.sh"), "--device=cpu", "--quiet", *small]
    environment = os.environ | {"HUB": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    for steps, written in ((2, 4), (3, 0)):
        result = subprocess.run(
            [*command, f"--max_steps={steps}"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        for text in (f"{written} pairs written", f"step {steps}: ", "1 files, 0 failed", "PESQ"):
            assert text in result.stdout
