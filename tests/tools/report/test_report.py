"""`tools.report` and `cal_metrics.py --report`: the content of the page, its media, and errors."""

from __future__ import annotations

import json
import math
import re
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("matplotlib", reason="the extra report is not installed")
pytest.importorskip("librosa", reason="the extra report is not installed")
from PIL import Image

import cal_metrics
from metrics.score import METRICS
from metrics.stats import paired_test
from tests.fixtures.commands import Result, call_main
from tests.fixtures.one_process import stay_in_one_process
from tests.fixtures.recordings import RATE, files_below, save
from tests.fixtures.signals import speech_like, with_noise
from tools.report import __main__ as report
from tools.report import page, recording
from tools.report.page import Content, Version, write_page
from tools.report.recording import Prepared, prepare


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


def make(*arguments: str) -> Result:
    options = ["--input_noisy_wavs_dir", "noisy", "--output_dir", "out", "--jobs", "2", "--quiet", *arguments]
    return call_main(report.main, *options)


def html_of(out: str = "out") -> str:
    return Path(out, "index.html").read_text(encoding="utf-8")


def data_of(out: str = "out") -> dict[str, Any]:
    """The data that the scripts of the page read."""
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', html_of(out), re.DOTALL)
    assert match
    return json.loads(match[1])


def table_of(section: str, out: str = "out") -> dict[str, list[str]]:
    """The rows of the first table of a section: texts by label."""
    html = html_of(out).split(f'<section id="{section}"')[1].split("</table>")[0]
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', html)
    return {name: [re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", cells)] for name, cells in rows}


def sections_of(out: str = "out") -> list[str]:
    return re.findall('<section id="(.*?)"', html_of(out))


def test_summary_equals_that_of_cal_metrics(folders: Path) -> None:
    options = ["--clean_wav_dir", "clean", "--noisy_wav_dir", "enhanced", "--report", "scores", "--jobs", "2"]
    scored = call_main(cal_metrics.main, *options, "--quiet")
    assert scored.returncode == 0
    printed = scored.stdout.splitlines()[2:]
    assert files_below(folders / "scores") == {"scores.csv", "summary.json", "index.html"}
    assert make("--input_clean_wavs_dir", "clean", "--enhanced", "system=enhanced").returncode == 0
    for out, column in (("scores", 0), ("out", 1)):
        shown = [f"{name} {cells[column]}" for name, cells in table_of("summary", out).items()]
        assert [line.replace("−", "-").split() for line in shown] == [line.split() for line in printed]
        assert len(shown) == len(METRICS)
    assert [version["name"] for version in data_of("scores")["versions"]] == ["enhanced", "clean"]
    # The players come first, the statistics below them.
    assert sections_of() == ["files", "summary", "paired"]
    assert sections_of("scores") == ["files", "summary"]


@pytest.mark.usefixtures("folders")
def test_paired_tests_are_those_of_the_scores() -> None:
    done = make("--input_clean_wavs_dir", "clean", "--enhanced", "a=enhanced", "--enhanced", "b=noisy")
    assert done.returncode == 0
    titles = [re.sub("<.*?>", "", title) for title in re.findall(r"<summary>(.*?)</summary>", html_of())]
    assert titles == ["a against noisy", "b against noisy", "b against a"]
    recordings = data_of()["recordings"]
    noisy, enhanced = ([each["scores"][version][0] for each in recordings] for version in (0, 1))
    test = paired_test(noisy, enhanced)
    mean, interval, t_p, wilcoxon_p, improved, files = table_of("paired")["PESQ"]
    assert float(mean) == pytest.approx(test.mean, abs=2e-4)
    low, high = (float(value.replace("−", "-")) for value in interval.split(" … "))
    assert (low, high) == pytest.approx((test.mean - test.ci95, test.mean + test.ci95), abs=2e-4)
    assert float(t_p) == pytest.approx(test.t_p, rel=0.01)
    assert float(wilcoxon_p) == test.wilcoxon_p == 0.25
    assert (improved, files) == ("100.0 %", "3")
    assert [each["seconds"] for each in recordings] == [0.6] * 3


@pytest.mark.usefixtures("folders")
def test_without_clean_files_there_are_no_scores() -> None:
    assert make("--enhanced", "system=enhanced").returncode == 0
    data = data_of()
    assert [version["scored"] for version in data["versions"]] == [False, False]
    assert [each["name"] for each in data["recordings"]] == ["p0", "p1", "p2"]
    assert sections_of() == ["files"]


def test_bad_files_are_named_and_the_others_are_shown(folders: Path) -> None:
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
    done = make("--input_clean_wavs_dir", "clean", "--enhanced", "system=enhanced")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    for line, (file, keyword) in zip(
        lines,
        [
            ("noisy/lonely.wav: left out", "'system' and 'clean'"),
            ("noisy/p0.wav: left out", "'clean'"),
            ("enhanced/p0.wav: left out", "'clean'"),
            ("clean/sub/p0.flac: left out", "'noisy' and 'system'"),
            ("broken: system: enhanced/broken.wav", ""),
            ("rate: noisy", "rate"),
            ("short: noisy, system", ""),
            ("silent: system", "silent"),
            ("stereo: noisy", "channels"),
        ],
        strict=True,
    ):
        assert line.startswith(file) and keyword in line, lines
    recordings = {each["name"]: each for each in data_of()["recordings"]}
    assert set(recordings) == {"broken", "p1", "p2", "rate", "short", "silent", "stereo"}
    assert recordings["p1"]["problem"] == ""
    assert "enhanced/broken.wav" in recordings["broken"]["problem"]
    assert recordings["broken"]["scores"][1] == [None] * len(METRICS)
    assert all(each["playable"] for each in recordings.values())
    assert "9 problems with files" in html_of()
    assert table_of("paired")["PESQ"][-1] == "2 (5 without)"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input_noisy_wavs_dir", "none"], "none"),
        (["--input_clean_wavs_dir", "empty"], "empty"),
        (["--input_clean_wavs_dir", "other"], "all of 'noisy', 'clean'"),
        (["--enhanced", "enhanced"], "--enhanced: expected NAME=DIR"),
        (["--enhanced", "clean=enhanced"], "--enhanced: the name 'clean' is taken"),
        (["--enhanced", "a=enhanced", "--enhanced", "a=enhanced"], "--enhanced: the name 'a' is taken"),
        (["--output_dir", "noisy/p0.wav"], "noisy/p0.wav: cannot be written"),
    ],
)
def test_invalid_command_lines(folders: Path, arguments: list[str], words: str) -> None:
    (folders / "empty").mkdir()
    save(folders / "other/q.wav", speech_like(0.6))
    done = make(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr
    assert not Path("out/index.html").exists()


@pytest.mark.usefixtures("folders")
def test_missing_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    library = "librosa"
    monkeypatch.setitem(sys.modules, library, None)
    done = make()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{library}: pip install -e '.[report]'" in done.stderr
    # cal_metrics.py writes the scores without the page.
    options = ["--clean_wav_dir", "clean", "--noisy_wav_dir", "noisy", "--report", "scores", "--jobs", "1", "--quiet"]
    done = call_main(cal_metrics.main, *options)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert f"{library}: pip install -e '.[report]'" in done.stderr
    assert files_below(Path("scores")) == {"scores.csv", "summary.json"}


def content_of(folder: Path) -> Content:
    versions = [Version("noisy", "noisy", {f"p{number}": folder / f"noisy/p{number}.wav" for number in range(3)})]
    return Content("three files", versions, ["p0", "p1", "p2"], [None], "published")


def test_large_recordings_are_beside_the_page(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folders / "out"
    save(out / "mine.wav", speech_like(0.1))
    assert write_page(out, content_of(folders), jobs=1) == []
    assert files_below(out) == {"mine.wav", "index.html"}
    assert html_of().count('id="media-') == 3
    monkeypatch.setattr(page, "MAX_EMBEDDED_BYTES", 50_000)
    write_page(out, content_of(folders), jobs=1)
    media = {f"index_files/000{number}.js" for number in (1, 2, 3)}
    assert files_below(out) == {"mine.wav", "index.html", *media}
    assert 'id="media-' not in html_of()
    monkeypatch.undo()
    stay_in_one_process(monkeypatch)
    write_page(out, content_of(folders), jobs=1)
    assert files_below(out) == {"mine.wav", "index.html"}


def test_failed_page_leaves_no_page(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("killed")

    write_page(folders / "out", content_of(folders), jobs=1)
    monkeypatch.setattr(page, "page_html", fail)
    with pytest.raises(RuntimeError):
        write_page(folders / "out", content_of(folders), jobs=1)
    assert files_below(folders / "out") == set()


# One recording


def tone(hz: float, seconds: float = 1.0, rate: int = RATE, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def media_of(prepared: Prepared) -> list[dict[str, str] | None]:
    assert prepared.media is not None
    return json.loads(prepared.media)["versions"]


def brightness(content: bytes) -> np.ndarray:
    """Pixels `[height, width]` of an image, 0 to 255."""
    return np.asarray(Image.open(BytesIO(content)).convert("L")).astype(float)


def test_versions_share_the_scales_of_the_images(tmp_path: Path) -> None:
    save(tmp_path / "loud.wav", tone(1000))
    save(tmp_path / "quiet.wav", tone(1000, 0.5, level=0.05))
    versions = media_of(prepare((tmp_path / "loud.wav", tmp_path / "quiet.wav")))
    loud, quiet = (brightness(b64decode(version["spectrogram"])) for version in versions if version)
    assert loud.shape == quiet.shape
    assert loud.max() > quiet.max() + 20
    assert quiet[:, quiet.shape[1] // 2 + 4 :].max() < 20  # after the end


def test_sound_is_flac(tmp_path: Path) -> None:
    stereo = np.stack([tone(300, 0.2, 44_100), tone(500, 0.2, 44_100)], axis=1)
    save(tmp_path / "a.wav", stereo, rate=44_100)
    (version,) = media_of(prepare((tmp_path / "a.wav",)))
    assert version
    samples, rate = soundfile.read(BytesIO(b64decode(version["sound"])))
    assert rate == 44_100
    assert np.array_equal(samples, np.rint(stereo * 32768) / 32768)


def test_unreadable_versions_are_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "good.wav", tone(1000))
    save(tmp_path / "long.wav", tone(1000, 3.0))
    monkeypatch.setattr(recording, "MAX_SECONDS", 2)
    prepared = prepare((tmp_path / "good.wav", tmp_path / "long.wav", tmp_path / "none.wav"))
    too_long, missing = prepared.problems
    assert too_long.startswith(f"{tmp_path}/long.wav: longer than 2 s")
    assert missing.startswith(f"{tmp_path}/none.wav")
    assert [version is None for version in media_of(prepared)] == [False, True, True]
    assert prepared.seconds == 1.0
    nothing = prepare((tmp_path / "none.wav",))
    assert math.isnan(nothing.seconds) and nothing.media is None
