"""`cal_metrics.py` as a user runs it: the table, the report, and one line for everything that goes wrong."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cal_metrics
from data.audio import AudioFormat, write_audio
from metrics import score as scores
from tests.fixtures.commands import ROOT, run_script
from tests.fixtures.one_process import stay_in_one_process
from tests.fixtures.signals import speech_like, with_noise

METRICS = ["PESQ", "CSIG", "CBAK", "COVL", "SSNR", "STOI", "ESTOI", "SI-SDR"]
UNSCORED = {
    "short": "shorter than 1/4 s",
    "silent": "the other signal is silent",
    "cut_off": "the lengths differ: clean 19200, other 18200 samples",
    "rate": "the rates differ: clean 16000 Hz, other 8000 Hz",
    "channels": "the channels differ: clean has 1, other 2",
    "broken": "cut short",
}


def write(path: Path, *channels: np.ndarray, rate: int = 16_000, container: str = "WAV") -> None:
    write_audio(path, np.stack(channels, axis=1), AudioFormat(rate, len(channels), container))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """`clean/` and `enhanced/` with three pairs; the clean files are FLAC and the others WAV."""
    for number in range(3):
        clean = speech_like(1.2, seed=number)
        write(tmp_path / f"clean/p{number}.flac", clean, container="FLAC")
        write(tmp_path / f"enhanced/p{number}.wav", with_noise(clean, 15 + 5 * number)[: -100 * number or None])
    return tmp_path


def score(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_script("cal_metrics.py", *arguments, cwd=folder)


def both(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return score(folder, "--clean_wav_dir", "clean", "--noisy_wav_dir", "enhanced", "--jobs", 2, *arguments)


def rows_of(report: Path) -> dict[str, dict[str, str]]:
    with (report / "scores.csv").open(encoding="utf-8", newline="") as stream:
        return {row.pop("file"): row for row in csv.DictReader(stream)}


def test_table_and_report(folders: Path) -> None:
    result = both(folders, "--report", "report")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("3 files, 0 failed; composite measures 'published'")
    assert [line.split()[0] for line in lines[2:]] == METRICS
    assert all(line.split()[-1] == "3" for line in lines[2:])
    assert "3/3" in result.stderr
    rows = rows_of(folders / "report")
    assert list(rows) == ["p0", "p1", "p2"]
    values = [float(row["pesq"]) for row in rows.values()]
    assert values == sorted(values)
    summary = json.loads((folders / "report/summary.json").read_text(encoding="utf-8"))
    assert summary["metrics"]["pesq"]["mean"] == pytest.approx(np.mean(values))
    assert f"{np.mean(values):.4f}" in lines[2]

    loizou = both(folders, "--report", "loizou", "--composite", "loizou", "--quiet")
    assert (loizou.returncode, loizou.stderr) == (0, "")
    assert loizou.stdout.startswith("3 files, 0 failed; composite measures 'loizou'")
    other = rows_of(folders / "loizou")
    for name in rows:
        assert other[name]["csig"] < rows[name]["csig"]
        assert {k: v for k, v in other[name].items() if k[0] != "c"} == {
            k: v for k, v in rows[name].items() if k[0] != "c"
        }


def test_a_metric_is_one_entry(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def peak(clean: np.ndarray, degraded: np.ndarray) -> float:
        if len(degraded) < len(speech_like(1.2)):  # p1 and p2
            raise scores.ScoreError("no peak: cut off")
        return float(np.max(np.abs(clean)))

    monkeypatch.setitem(scores.METRICS, "peak", scores.Metric("peak ±1", 2, peak))
    stay_in_one_process(monkeypatch)
    monkeypatch.chdir(folders)
    arguments = ["--clean_wav_dir", "clean", "--noisy_wav_dir", "enhanced", "--report", "report", "--quiet"]
    assert cal_metrics.main(arguments) == 1
    expected = np.max(np.abs(np.rint(speech_like(1.2, seed=0) * 32768) / 32768))
    out, errors = capsys.readouterr()
    assert errors == "p1: no peak: cut off\np2: no peak: cut off\n"
    assert out.splitlines()[-1].split() == ["peak", "±1", f"{expected:.4f}", "-", "1"]
    values = [row["peak"] for row in rows_of(folders / "report").values()]
    assert values == [str(expected), "NaN", "NaN"]
    summary = json.loads((folders / "report/summary.json").read_text(encoding="utf-8"))
    assert summary["metrics"]["peak"] == {"mean": expected, "ci95": None, "files": 1}
    page = (folders / "report/index.html").read_text(encoding="utf-8")
    assert '{"label": "peak \\u00b11", "digits": 2}' in page
    assert "Histogram of peak ±1 of the files" in page


def test_every_bad_file_is_named_and_the_others_are_scored(folders: Path) -> None:
    clean = speech_like(1.2)
    for name, enhanced in (("short", clean[:3000]), ("silent", np.zeros_like(clean)), ("cut_off", clean[:-1000])):
        write(folders / f"clean/{name}.wav", clean[:3000] if name == "short" else clean)
        write(folders / f"enhanced/{name}.wav", enhanced)
    for name in ("clean/rate", "clean/channels", "clean/broken", "clean/only_clean", "enhanced/only_enhanced"):
        write(folders / f"{name}.wav", clean)
    write(folders / "enhanced/rate.wav", clean, rate=8000)
    write(folders / "enhanced/channels.wav", clean, clean)
    (folders / "enhanced/broken.wav").write_bytes((folders / "clean/broken.wav").read_bytes()[:9000])

    result = both(folders, "--report", "report", "--quiet")
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 8
    for name, words in {**UNSCORED, "only_clean": "has no twin", "only_enhanced": "has no twin"}.items():
        assert any(name in line and words in line for line in lines), (name, result.stderr)
    assert result.stdout.startswith("9 files, 6 failed")
    assert result.stdout.splitlines()[2].split()[-1] == "3"
    rows = rows_of(folders / "report")
    assert {name for name, row in rows.items() if row["pesq"] == "NaN"} == set(UNSCORED)
    summary = json.loads((folders / "report/summary.json").read_text(encoding="utf-8"))
    assert set(summary["failed"]) == set(UNSCORED)
    assert summary["unpaired"] == ["clean/only_clean.wav", "enhanced/only_enhanced.wav"]


def test_file_list_with_folders(folders: Path) -> None:
    # An id alone, one with extension, and one whose path (of the noisy files) gives way to the folder.
    (folders / "list.txt").write_text("p2\np0.wav\np1|nowhere/p1.wav|nowhere/p1.wav\n", encoding="utf-8")
    result = both(folders, "--input_test_file", "list.txt", "--report", "report", "--quiet")
    assert (result.returncode, result.stderr) == (0, "")
    assert list(rows_of(folders / "report")) == ["p2", "p0.wav", "p1"]


def test_file_list_alone_and_with_a_missing_file(folders: Path) -> None:
    lines = "p0|clean/p0.flac|enhanced/p0.wav\np1|clean/p1.flac|gone.wav\n"
    (folders / "list.txt").write_text(lines, encoding="utf-8")
    result = score(folders, "--input_test_file", "list.txt", "--quiet", "--jobs", 1)
    assert result.returncode == 1
    assert result.stderr == "p1: gone.wav: cannot be read: No such file or directory\n"
    assert result.stdout.startswith("2 files, 1 failed")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--clean_wav_dir is needed"),
        (["--clean_wav_dir", "clean"], "--noisy_wav_dir is needed"),
        (["--clean_wav_dir", "none", "--noisy_wav_dir", "enhanced"], "none: no such folder"),
        (["--clean_wav_dir", "clean", "--noisy_wav_dir", "other"], "no file has a twin in clean"),
        (["--input_test_file", "none.txt"], "none.txt: cannot be read: No such file"),
        (["--input_test_file", "ids.txt"], "names no clean file for 'p0'"),
        (
            ["--clean_wav_dir", "clean", "--noisy_wav_dir", "enhanced", "--composite", "x"],
            "invalid choice: 'x'",
        ),
        (
            ["--clean_wav_dir", "clean", "--noisy_wav_dir", "enhanced", "--jobs", "0"],
            "--jobs: at least 1, not 0",
        ),
        (
            ["--clean_wav_dir", "clean", "--noisy_wav_dir", "enhanced", "--report", "ids.txt"],
            "ids.txt: File exists",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    clean = speech_like(0.5)
    for name in ("clean/p0", "enhanced/p0", "other/q0"):
        write(tmp_path / f"{name}.wav", clean)
    (tmp_path / "ids.txt").write_text("p0\n", encoding="utf-8")
    result = score(tmp_path, *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert words in result.stderr


def test_scoring_needs_no_torch() -> None:
    code = "import sys, cal_metrics; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == "False\n"
