"""`scripts/report.py` and `cal_metrics.py --report` as a user runs them: what is written, and what goes wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cal_metrics
from metrics.paired import paired_test
from metrics.score import METRICS
from tests.fixtures.commands import ROOT
from tests.fixtures.one_process import stay_in_one_process
from tests.fixtures.recordings import RATE, files_below, save
from tests.fixtures.signals import speech_like, with_noise
from tools.report import __main__ as report
from tools.report import page as listening_page
from tools.report.page import Content, write_page
from tools.report.versions import Version


@pytest.fixture(autouse=True)
def _in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_in_one_process(monkeypatch)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with three recordings in `noisy/`, `clean/` and `enhanced/`."""
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        clean = speech_like(0.6, seed=number)
        save(tmp_path / f"clean/p{number}.flac", clean, container="FLAC")
        save(tmp_path / f"noisy/p{number}.wav", with_noise(clean, 5 * number))
        save(tmp_path / f"enhanced/p{number}.wav", with_noise(clean, 15 - number))
    return tmp_path


def make(*arguments: str) -> int:
    return report.main(["--input_noisy_wavs_dir", "noisy", "--output_dir", "out", "--jobs", "2", "--quiet", *arguments])


def text_of(out: str = "out") -> str:
    return Path(out, "index.html").read_text(encoding="utf-8")


def data_of(out: str = "out") -> dict:
    """What the page's scripts read."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text_of(out), re.DOTALL)
    assert match
    return json.loads(match[1])


def table_of(section: str, out: str = "out") -> dict[str, list[str]]:
    """The rows of a section's first table: texts by label."""
    text = text_of(out).split(f'<section id="{section}"')[1].split("</table>")[0]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text)
    return {name: [re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", cells)] for name, cells in rows}


def test_the_summary_is_that_of_cal_metrics(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_options = ["--clean_wav_dir", "clean", "--noisy_wav_dir", "enhanced", "--report", "scores"]
    assert cal_metrics.main([*folder_options, "--jobs", "2", "--quiet"]) == 0
    printed = capsys.readouterr().out.splitlines()[2:]
    assert files_below(folders / "scores") == {"scores.csv", "summary.json", "index.html"}
    assert make("--input_clean_wavs_dir", "clean", "--enhanced", "system=enhanced") == 0
    for out, column in (("scores", 0), ("out", 1)):
        shown = [f"{name} {cells[column]}" for name, cells in table_of("summary", out).items()]
        assert [line.replace("−", "-").split() for line in shown] == [line.split() for line in printed]
        assert len(shown) == len(METRICS)
    assert [version["name"] for version in data_of("scores")["versions"]] == ["enhanced", "clean"]
    assert 'id="paired"' not in text_of("scores")


@pytest.mark.usefixtures("folders")
def test_the_paired_test_is_that_of_the_scores() -> None:
    assert make("--input_clean_wavs_dir", "clean", "--enhanced", "a=enhanced", "--enhanced", "b=noisy") == 0
    titles = re.findall(r"<summary>(.*?)</summary>", text_of())
    titles = [re.sub("<.*?>", "", title) for title in titles]
    assert titles == ["a against noisy", "b against noisy", "b against a"]
    recordings = data_of()["recordings"]
    noisy, enhanced = ([recording["scores"][version][0] for recording in recordings] for version in (0, 1))
    test = paired_test(noisy, enhanced)
    mean, interval, t_p, wilcoxon_p, improved, files = table_of("paired")["PESQ"]
    assert float(mean) == pytest.approx(test.mean, abs=2e-4)
    low, high = (float(value.replace("−", "-")) for value in interval.split(" … "))
    assert (low, high) == pytest.approx((test.mean - test.ci95, test.mean + test.ci95), abs=2e-4)
    assert float(t_p) == pytest.approx(test.t_p, rel=0.01)
    assert float(wilcoxon_p) == test.wilcoxon_p == 0.25
    assert (improved, files) == ("100.0 %", "3")


@pytest.mark.usefixtures("folders")
def test_input_snr_and_durations() -> None:
    assert make("--input_clean_wavs_dir", "clean") == 0
    recordings = data_of()["recordings"]
    assert [recording["seconds"] for recording in recordings] == [0.6] * 3
    assert [recording["snr"] for recording in recordings] == pytest.approx([0, 5, 10], abs=0.05)


@pytest.mark.usefixtures("folders")
def test_without_clean_it_lists_names_and_durations() -> None:
    assert make("--enhanced", "system=enhanced") == 0
    data = data_of()
    assert [version["scored"] for version in data["versions"]] == [False, False]
    assert [recording["snr"] for recording in data["recordings"]] == [None] * 3
    assert [recording["name"] for recording in data["recordings"]] == ["p0", "p1", "p2"]
    assert re.findall('<section id="(.*?)"', text_of()) == ["files"]


def test_bad_files_are_named_and_the_others_are_shown(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speech = speech_like(0.6)
    for name in ("broken", "short", "stereo", "silent", "rate"):
        save(folders / f"clean/{name}.wav", speech[:100] if name == "short" else speech)
        save(folders / f"noisy/{name}.wav", speech[:100] if name == "short" else with_noise(speech, 5))
        save(folders / f"enhanced/{name}.wav", {"short": speech[:100], "silent": 0 * speech}.get(name, speech))
    (folders / "enhanced/broken.wav").write_bytes((folders / "clean/broken.wav").read_bytes()[:5000])
    save(folders / "noisy/stereo.wav", np.stack([speech, speech], axis=1))
    save(folders / "noisy/rate.wav", with_noise(speech, 5)[::2], rate=RATE // 2)
    save(folders / "noisy/lonely.wav", speech)
    (folders / "clean/sub").mkdir()
    (folders / "clean/p0.flac").rename(folders / "clean/sub/p0.flac")
    assert make("--input_clean_wavs_dir", "clean", "--enhanced", "system=enhanced") == 1
    lines = capsys.readouterr().err.splitlines()
    for line, words in zip(
        lines,
        [
            "noisy/lonely.wav: left out: has no partner in 'system' and 'clean'",
            "noisy/p0.wav: left out: has no partner in 'clean'",
            "enhanced/p0.wav: left out: has no partner in 'clean'",
            "clean/sub/p0.flac: left out: has no partner in 'noisy' and 'system'",
            "broken: system: enhanced/broken.wav: cut short",
            "rate: noisy: the rates differ",
            "short: noisy, system: shorter than 1/4 s",
            "silent: system: the other signal is silent",
            "stereo: noisy: the channels differ",
        ],
        strict=True,
    ):
        assert line.startswith(words), lines
    recordings = {recording["name"]: recording for recording in data_of()["recordings"]}
    assert set(recordings) == {"broken", "p1", "p2", "rate", "short", "silent", "stereo"}
    assert recordings["p1"]["problem"] == ""
    assert "cut short" in recordings["broken"]["problem"]
    assert recordings["broken"]["scores"][1] == [None] * len(METRICS)
    assert all(recording["playable"] for recording in recordings.values())
    assert "9 problems with files" in text_of()
    assert table_of("paired")["PESQ"][-1] == "2 (5 without)"


def test_without_clean_an_unreadable_file_is_named(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "noisy/p1.wav").write_bytes(b"not sound")
    assert make() == 1
    assert capsys.readouterr().err.startswith("noisy/p1.wav: not an audio file that can be decoded")
    assert [recording["playable"] for recording in data_of()["recordings"]] == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input_noisy_wavs_dir", "none"], "none: no such folder"),
        (["--input_clean_wavs_dir", "empty"], "empty: holds no audio files"),
        (["--input_clean_wavs_dir", "other"], "noisy: no file is in all of 'noisy', 'clean' under one name"),
        (["--enhanced", "enhanced"], "argument --enhanced: expected NAME=DIR, not 'enhanced'"),
        (["--enhanced", "clean=enhanced"], "'clean' is the name of another version"),
        (["--enhanced", "a=enhanced", "--enhanced", "a=enhanced"], "'a' is the name of another version"),
        (["--output_dir", "noisy/p0.wav"], "argument --output_dir: noisy/p0.wav: cannot be written: File exists"),
        (["--jobs", "0"], "argument --jobs: at least 1, not 0"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    folders: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders / "empty").mkdir()
    save(folders / "other/q.wav", speech_like(0.6))
    try:
        code = make(*arguments)
    except SystemExit as error:
        code = error.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not Path("out/index.html").exists()


def test_without_matplotlib_scores_are_written_all_the_same(folders: Path) -> None:
    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        code = f"import sys; sys.modules['matplotlib'] = None; import {module} as it; sys.exit(it.main())"
        command = [sys.executable, "-c", code, *arguments, "--quiet", "--jobs", "1"]
        return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, check=False)

    scored = run("cal_metrics", "--clean_wav_dir", "clean", "--noisy_wav_dir", "noisy", "--report", "scores")
    assert (scored.returncode, scored.stderr) == (0, "no index.html: needs matplotlib: pip install -e '.[report]'\n")
    assert files_below(folders / "scores") == {"scores.csv", "summary.json"}
    refused = run("tools.report.__main__", "--input_noisy_wavs_dir", "noisy", "--output_dir", "out")
    assert refused.returncode == 2
    assert "needs matplotlib: pip install -e '.[report]'" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def content_of(folder: Path) -> Content:
    versions = [Version("noisy", "noisy", {f"p{number}": folder / f"noisy/p{number}.wav" for number in range(3)})]
    return Content("three files", versions, ["p0", "p1", "p2"], [None], "published")


def test_large_recordings_lie_beside_the_page(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folders / "out"
    save(out / "mine.wav", speech_like(0.1))
    assert write_page(out, content_of(folders), jobs=1) == []
    assert files_below(out) == {"mine.wav", "index.html"}
    assert text_of().count('id="media-') == 3
    monkeypatch.setattr(listening_page, "INLINE_BYTES", 50_000)
    write_page(out, content_of(folders), jobs=1)
    media = {f"index_files/000{number}.js" for number in (1, 2, 3)}
    assert files_below(out) == {"mine.wav", "index.html", *media}
    assert 'id="media-' not in text_of()
    monkeypatch.undo()
    write_page(out, content_of(folders), jobs=1)
    assert files_below(out) == {"mine.wav", "index.html"}


def test_a_page_that_fails_leaves_none(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("killed")

    write_page(folders / "out", content_of(folders), jobs=1)
    monkeypatch.setattr(listening_page, "_html", fail)
    with pytest.raises(RuntimeError):
        write_page(folders / "out", content_of(folders), jobs=1)
    assert files_below(folders / "out") == set()
