"""cal_metrics.py: table, report, unusable files and wrong command lines."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import cal_metrics
from metrics import score as scores
from tests.fixtures.commands import Result, call_main, run_python
from tests.fixtures.one_process import stay_in_one_process
from tests.fixtures.recordings import save
from tests.fixtures.signals import speech_like, with_noise
from tools.report import page

METRICS = ["PESQ", "CSIG", "CBAK", "COVL", "SSNR", "STOI", "ESTOI", "SI-SDR"]
BOTH = ("--clean_wav_dir", "clean", "--noisy_wav_dir", "enhanced")
UNSCORED = {
    "short": "shorter than 1/4 s",
    "silent": "silent",
    "cut_off": "the lengths differ: clean 19200, other 18687",
    "rate": "the rates differ",
    "channels": "the channels differ",
    "broken": "cut short",
}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """`clean/` and `enhanced/` with three pairs: clean files in FLAC, enhanced ones in WAV."""
    for number in range(3):
        clean = speech_like(1.2, seed=number)
        save(tmp_path / f"clean/p{number}.flac", clean, container="FLAC")
        save(tmp_path / f"enhanced/p{number}.wav", with_noise(clean, 15 + 5 * number)[: -100 * number or None])
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score in this process and write no listening page."""
    stay_in_one_process(monkeypatch)
    monkeypatch.setattr(page, "write_page", lambda *_, **__: [])


def score(folder: Path, *arguments: object) -> Result:
    return call_main(cal_metrics.main, *arguments, cwd=folder)


def rows_of(report: Path) -> dict[str, dict[str, str]]:
    with (report / "scores.csv").open(encoding="utf-8", newline="") as stream:
        return {row.pop("file"): row for row in csv.DictReader(stream)}


def test_the_table_needs_no_torch(folders: Path) -> None:
    code = "import sys, cal_metrics; print(cal_metrics.main(), 'torch' in sys.modules)"
    result = run_python("-c", code, *BOTH, "--jobs", 1, cwd=folders)
    heading, _, *rows, end = result.stdout.splitlines()
    assert heading.startswith("3 files, 0 failed; composite measures 'published'")
    assert [row.split()[0] for row in rows] == METRICS
    assert all(row.split()[-1] == "3" for row in rows)
    assert end == "0 False"
    assert "3/3" in result.stderr


@pytest.mark.usefixtures("quick")
def test_a_scored_folder_may_be_called_clean(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(
        page, "write_page", lambda _, content, *__, **___: names.extend(each.name for each in content.versions) or []
    )
    (folders / "results").mkdir()
    (folders / "enhanced").rename(folders / "results/clean")
    score(folders, "--clean_wav_dir=clean", "--noisy_wav_dir=results/clean", "--quiet", "--report=report")
    assert names == ["scored", "clean"]


@pytest.mark.usefixtures("quick")
def test_reports_of_both_variants(folders: Path) -> None:
    rows: dict[str, list[dict[str, str]]] = {}
    for variant in ("published", "loizou"):
        result = score(folders, *BOTH, "--quiet", "--composite", variant, "--report", variant)
        assert result.returncode == 0
        assert f"'{variant}'" in result.stdout.splitlines()[0]
        report = rows_of(folders / variant)
        assert list(report) == ["p0", "p1", "p2"]
        rows[variant] = list(report.values())
        values = [float(row["pesq"]) for row in rows[variant]]
        assert values == sorted(values)
        summary = json.loads((folders / variant / "summary.json").read_text(encoding="utf-8"))
        assert summary["metrics"]["pesq"]["mean"] == pytest.approx(np.mean(values))
        assert f"{np.mean(values):.4f}" in result.stdout.splitlines()[2]
    for published, loizou in zip(rows["published"], rows["loizou"], strict=True):
        assert float(loizou["csig"]) < float(published["csig"])
        different = {name for name in published if float(published[name]) != pytest.approx(float(loizou[name]))}
        assert different == {"csig", "cbak", "covl"}


@pytest.mark.usefixtures("quick")
def test_a_metric_is_added_with_one_entry(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def peak(clean: np.ndarray, degraded: np.ndarray) -> float:
        if len(degraded) < len(speech_like(1.2)):  # p1 and p2
            raise scores.ScoreError("no peak: cut off")
        return float(np.max(np.abs(clean)))

    monkeypatch.setitem(scores.METRICS, "peak", scores.Metric("peak ±1", 2, peak))
    result = score(folders, *BOTH, "--report", "report", "--quiet")
    assert (result.returncode, result.stderr) == (1, "p1: no peak: cut off\np2: no peak: cut off\n")
    expected = np.max(np.abs(np.rint(speech_like(1.2, seed=0) * 32768) / 32768))
    assert result.stdout.splitlines()[-1].split() == ["peak", "±1", f"{expected:.4f}", "-", "1"]
    assert [row["peak"] for row in rows_of(folders / "report").values()] == [str(expected), "NaN", "NaN"]
    summary = json.loads((folders / "report/summary.json").read_text(encoding="utf-8"))
    assert summary["metrics"]["peak"] == {"mean": expected, "ci95": None, "files": 1}


@pytest.mark.usefixtures("quick")
def test_unusable_files_are_named_and_the_others_scored(folders: Path) -> None:
    clean = speech_like(1.2)
    for name, enhanced in (("short", clean[:3000]), ("silent", np.zeros_like(clean)), ("cut_off", clean[:-513])):
        save(folders / f"clean/{name}.wav", clean[:3000] if name == "short" else clean)
        save(folders / f"enhanced/{name}.wav", enhanced)
    for name in ("clean/rate", "clean/channels", "clean/broken"):
        save(folders / f"{name}.wav", clean)
    save(folders / "enhanced/rate.wav", clean, rate=8000)
    save(folders / "enhanced/channels.wav", np.stack([clean, clean], axis=1))
    (folders / "enhanced/broken.wav").write_bytes((folders / "clean/broken.wav").read_bytes()[:9000])
    result = score(folders, *BOTH, "--report", "report", "--quiet")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 6 and "Error" not in result.stderr
    for name, words in UNSCORED.items():
        assert any(name in line and words in line for line in result.stderr.splitlines()), (name, result.stderr)
    assert result.stdout.startswith("9 files, 6 failed")
    assert result.stdout.splitlines()[2].split()[-1] == "3"
    assert {name for name, row in rows_of(folders / "report").items() if row["pesq"] == "NaN"} == set(UNSCORED)
    summary = json.loads((folders / "report/summary.json").read_text(encoding="utf-8"))
    assert set(summary["failed"]) == set(UNSCORED)


@pytest.mark.usefixtures("quick")
def test_unpaired_files_are_counted_and_three_named(folders: Path) -> None:
    names = [f"sub/only{number}.wav" for number in range(5)]
    for name in names:
        save(folders / "clean" / name, np.zeros(10))
    save(folders / "enhanced/extra.wav", np.zeros(10))
    result = score(folders, *BOTH, "--report", "report", "--quiet")
    assert result.returncode == 1
    clean, enhanced = result.stderr.splitlines()
    assert clean.startswith("clean: 5 ")
    assert clean.endswith(": sub/only0.wav, sub/only1.wav, sub/only2.wav, …")
    assert enhanced.startswith("enhanced: 1 ")
    assert enhanced.endswith(": extra.wav")
    summary = json.loads((folders / "report/summary.json").read_text(encoding="utf-8"))
    assert summary["unpaired"] == [*(f"clean/{name}" for name in names), "enhanced/extra.wav"]


@pytest.mark.usefixtures("quick")
def test_file_lists(folders: Path) -> None:
    # An id, an id with extension, and paths that give way to the folders.
    (folders / "ids.txt").write_text("p2\np0.wav\np1|nowhere/p1.wav|nowhere/p1.wav\n", encoding="utf-8")
    result = score(folders, *BOTH, "--input_test_file", "ids.txt", "--report", "report", "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    assert list(rows_of(folders / "report")) == ["p2", "p0.wav", "p1"]
    lines = "p0|clean/p0.flac|enhanced/p0.wav\np1|clean/p1.flac|gone.wav\n"
    (folders / "paths.txt").write_text(lines, encoding="utf-8")
    result = score(folders, "--input_test_file", "paths.txt", "--quiet")
    assert result.returncode == 1
    assert result.stderr == "p1: gone.wav: cannot be read: No such file or directory\n"
    assert result.stdout.startswith("2 files, 1 failed")


@pytest.mark.usefixtures("quick")
def test_a_report_that_cannot_be_written(folders: Path) -> None:
    (folders / "report/scores.csv").mkdir(parents=True)
    result = score(folders, *BOTH, "--report", "report", "--quiet")
    assert result.returncode == 1
    assert result.stdout.startswith("3 files, 0 failed")
    assert result.stderr.startswith("report: cannot be written")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--clean_wav_dir"),
        (["--clean_wav_dir", "clean"], "--noisy_wav_dir"),
        (["--clean_wav_dir", "none", "--noisy_wav_dir", "enhanced"], "none: no such folder"),
        (["--clean_wav_dir", "clean", "--noisy_wav_dir", "other"], "other: no file has the name of one in clean"),
        (["--input_test_file", "none.txt"], "none.txt: cannot be read"),
        (["--input_test_file", "ids.txt"], "names no clean file for 'p0'"),
        ([*BOTH, "--jobs", "0"], "--jobs"),
        ([*BOTH, "--report", "ids.txt"], "ids.txt: cannot be written"),
    ],
)
def test_wrong_command_lines(tmp_path: Path, arguments: list[str], words: str) -> None:
    for name in ("clean/p0", "enhanced/p0", "other/q0"):
        save(tmp_path / f"{name}.wav", speech_like(0.5))
    (tmp_path / "ids.txt").write_text("p0\n", encoding="utf-8")
    result = score(tmp_path, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr
