"""The script that makes the table of the released weights: what it calls, and how.

Python is played by a script that takes notes; tests/test_readme.py runs it with nothing played but the setup.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.commands import ROOT

WEIGHTS = "checkpoints/published/g_best_pesq_3.373"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a test set and a Python that writes down what it is called with."""
    project = tmp_path / "the project"
    for folder in ("scripts", ".venv/bin", "data/clean", "data/noisy"):
        (project / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts/reproduce.sh", project / "scripts")
    (project / "scripts/setup.sh").write_text("echo setup >> calls\n", encoding="utf-8")
    python = project / ".venv/bin/python"
    python.write_text('#!/bin/sh\necho "$*" >> calls\n', encoding="utf-8")
    python.chmod(0o755)
    return project


def reproduce(project: Path, *arguments: str) -> list[str]:
    """Call it from the folder `data`; returns what it called."""
    command = ["bash", "../scripts/reproduce.sh", *arguments]
    subprocess.run(command, cwd=project / "data", check=True, timeout=60)
    return (project / "calls").read_text(encoding="utf-8").splitlines()


def test_it_enhances_lists_and_scores(project: Path) -> None:
    (project / WEIGHTS).parent.mkdir(parents=True)
    (project / WEIGHTS).touch()
    out = project / "enhanced/reproduced"
    assert reproduce(project, "clean", "noisy") == [
        "setup",
        f"inference.py --input_noisy_wavs_dir {project}/data/noisy --output_dir {out}/enhanced"
        f" --checkpoint_file {WEIGHTS} --protocol paper",
        f"create_test_list.py --test_dir_to_scan {out}/enhanced --output_file {out}/test_final.txt",
        f"cal_metrics.py --clean_wav_dir {project}/data/clean --noisy_wav_dir {out}/enhanced"
        f" --input_test_file {out}/test_final.txt",
    ]


def test_weights_that_are_not_there_are_fetched_and_another_folder_is_below_the_current_one(project: Path) -> None:
    calls = reproduce(project, "clean", "noisy", "out")
    assert calls[1] == "-m scripts.download_published g_best_pesq_3.373"
    assert f"--output_dir {project}/data/out/enhanced " in calls[2]


@pytest.mark.parametrize("arguments", [[], ["clean"], ["clean", "noisy", "out", "more"]])
def test_other_numbers_of_folders_are_refused(arguments: list[str]) -> None:
    command = ["bash", str(ROOT / "scripts/reproduce.sh"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (2, "usage: bash scripts/reproduce.sh CLEAN NOISY [OUT]\n")
