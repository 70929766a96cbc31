"""The script that makes the environment: which PyTorch it asks for. pip is played by a script that takes notes."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.commands import ROOT

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose environment has a Python that writes down what it is called with, and fails where told to."""
    for folder in ("scripts", ".venv/bin", "programs"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    program(tmp_path / ".venv/bin/python", 'echo "$*" >> calls\n[[ "$*" != *"${REFUSED:-nothing}"* ]]')
    program(tmp_path / "programs/uname", "echo Linux")
    for name in ("bash", "dirname"):
        (tmp_path / "programs" / name).symlink_to(shutil.which(name) or name)
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def set_up(project: Path, *arguments: str, refused: str = "nothing") -> tuple[subprocess.CompletedProcess, list[str]]:
    environment = {"PATH": str(project / "programs"), "REFUSED": refused, "HOME": os.environ.get("HOME", "/")}
    command = [str(project / "programs/bash"), "scripts/setup.sh", *arguments]
    result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    calls = project / "calls"
    return result, calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []


def test_without_a_gpu_pytorch_comes_from_the_index_for_cpus_and_alone(project: Path) -> None:
    result, calls = set_up(project, "dev")
    assert (result.returncode, result.stderr, len(calls)) == (0, "", 2)
    assert f"--constraint constraints.txt --no-deps --retries 1 --index-url {CPU_INDEX} torch" in calls[0]
    assert calls[1].endswith("--constraint constraints.txt --editable .[dev]")


def test_with_a_gpu_it_comes_with_the_rest(project: Path) -> None:
    program(project / "programs/nvidia-smi", "true")
    result, calls = set_up(project)
    assert (result.returncode, len(calls)) == (0, 1)
    assert calls[0].endswith("--constraint constraints.txt --editable .")


def test_where_that_index_cannot_be_reached_all_comes_from_the_usual_one(project: Path) -> None:
    result, calls = set_up(project, refused=CPU_INDEX)
    assert (result.returncode, len(calls)) == (0, 2)
    assert result.stderr == "PyTorch's index for CPUs cannot be reached: taking PyPI's build\n"


def test_a_failure_of_the_usual_one_is_that_of_the_script(project: Path) -> None:
    result, _ = set_up(project, refused="--editable")
    assert result.returncode != 0
