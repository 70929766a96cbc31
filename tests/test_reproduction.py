"""The published results through the commands that a reader of the paper runs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.fixtures.commands import ROOT

TABLE = {"pesq": 3.3759, "csig": 4.6417, "cbak": 3.8024, "covl": 4.1108, "ssnr": 9.1910, "stoi": 0.9518}
MUSE_TABLE = {"pesq": 3.3516, "csig": 4.6172, "cbak": 3.7794, "covl": 4.0829, "ssnr": 9.0235, "stoi": 0.9502}
TABLE_LOIZOU = {"csig": 4.5517, "cbak": 3.7075, "covl": 4.0162}


@pytest.fixture(scope="module")
def voicebank(reference: Path) -> Path:
    """The folders `clean` and `noisy` of the VoiceBank+DEMAND test set."""
    return reference.parent / "vbd_test"


def run(script: str, *options: object) -> None:
    """Run a script for as long as it takes."""
    subprocess.run([sys.executable, str(ROOT / script), *map(str, options), "--quiet"], check=True)


def enhance(
    noisy: Path, enhanced: Path, reference: Path, protocol: str, checkpoint: str = "imse/g_best_pesq_3.373"
) -> None:
    options = ("--checkpoint_file", reference / checkpoint, "--protocol", protocol)
    run("inference.py", "--input_noisy_wavs_dir", noisy, "--output_dir", enhanced, *options)


def means(clean: Path, enhanced: Path, report: Path, composite: str) -> dict[str, float]:
    folders = ("--clean_wav_dir", clean, "--noisy_wav_dir", enhanced)
    run("cal_metrics.py", *folders, "--composite", composite, "--report", report)
    summary = json.loads((report / "summary.json").read_text(encoding="utf-8"))
    assert (summary["files"], summary["failed"]) == (824, {})
    return {name: value["mean"] for name, value in summary["metrics"].items()}


def test_the_released_outputs_come_out_within_two_steps(tmp_path: Path, voicebank: Path, reference: Path) -> None:
    released = sorted((reference / "imse" / "enhanced_3.373").iterdir())
    (tmp_path / "noisy").mkdir()
    for path in released:
        (tmp_path / "noisy" / path.name).symlink_to(voicebank / "noisy" / path.name)
    enhance(tmp_path / "noisy", tmp_path / "enhanced", reference, "paper")
    assert len(released) == 8
    for path in released:
        expected, _ = soundfile.read(path, dtype="int16")
        ours, _ = soundfile.read(tmp_path / "enhanced" / path.name, dtype="int16")
        assert np.abs(ours.astype(int) - expected).max() <= 2, path.name


@pytest.mark.slow
def test_the_published_table(tmp_path: Path, voicebank: Path, reference: Path) -> None:
    enhanced = tmp_path / "enhanced"
    enhance(voicebank / "noisy", enhanced, reference, "paper")
    scores = means(voicebank / "clean", enhanced, tmp_path / "published", "published")
    for name, expected in TABLE.items():
        assert scores[name] == pytest.approx(expected, abs=0.001 if name == "stoi" else 0.002), name
    with (reference / "imse" / "metrics_enhanced_3.373.csv").open(encoding="utf-8") as stream:
        published = {row["file"].removesuffix(".wav"): row for row in csv.DictReader(stream)}
    with (tmp_path / "published" / "scores.csv").open(encoding="utf-8") as stream:
        ours = {row["file"]: row for row in csv.DictReader(stream)}
    # The release rounds its 16-bit files down, which moves the scores of single files a little.
    for name, row in published.items():
        assert float(ours[name]["pesq"]) == pytest.approx(float(row["pesq"]), abs=0.02), name
    scores = means(voicebank / "clean", enhanced, tmp_path / "loizou", "loizou")
    for name, expected in TABLE_LOIZOU.items():
        assert scores[name] == pytest.approx(expected, abs=0.002), name


@pytest.mark.slow
def test_the_published_table_of_muse(tmp_path: Path, voicebank: Path, reference: Path) -> None:
    enhance(voicebank / "noisy", tmp_path / "enhanced", reference, "paper", "muse/g_best")
    scores = means(voicebank / "clean", tmp_path / "enhanced", tmp_path / "scores", "published")
    for name, expected in MUSE_TABLE.items():
        assert scores[name] == pytest.approx(expected, abs=0.001 if name == "stoi" else 0.002), name


@pytest.mark.slow
def test_overlapping_windows_beat_the_paper_protocol(tmp_path: Path, voicebank: Path, reference: Path) -> None:
    enhance(voicebank / "noisy", tmp_path / "enhanced", reference, "overlap")
    scores = means(voicebank / "clean", tmp_path / "enhanced", tmp_path / "report", "published")
    assert scores["pesq"] > TABLE["pesq"] + 0.008
