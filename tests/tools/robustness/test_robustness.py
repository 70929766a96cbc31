"""`tools.robustness.__main__` as a user runs it: what it writes, that a run can be repeated and ended, and what goes wrong."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from config import Config
from data.splits import hold_out_speakers
from enhance.enhancer import LevelMeter
from enhance.files import Load
from enhance.runtimes import fast_enhancer
from metrics.score import score_signals
from models import build
from models.checkpoint import load_checkpoint, save_checkpoint
from tests.fixtures.commands import run_module
from tests.fixtures.recordings import files_below, save
from tests.fixtures.signals import speech_like, with_noise
from tools.robustness import __main__ as robustness
from tools.robustness import chart, measure, run
from tools.robustness.material import Material, find_pool
from tools.robustness.mixes import make_trial
from tools.robustness.plan import BASE

FOLDERS = ("--input_clean_wavs_dir", "speech", "--input_noise_dir", "noise")
SMALL = (*FOLDERS, "--checkpoint_file", "small.safetensors", "--files", "2", "--seconds", "1", "--output_dir", "out")
ONE = ("--num_threads", "1", "--jobs", "1", "--quiet")
SPEECH = ("de/p3_1", "de/p4_1", "en/p1_1", "en/p2_1")
HELD_OUT = SPEECH[hold_out_speakers(SPEECH, 1234)[1][0]]  # by the seed in the checkpoint
RESULTS = {f"robustness.{kind}" for kind in ("csv", "json", "md", "png", "svg")}


@pytest.fixture
def folder(tmp_path: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with speech of two groups, noise, recordings and a network; scores are made in it too."""
    for name in SPEECH:
        save(tmp_path / f"speech/{name}.wav", 0.5 * speech_like(1.5, seed=sum(name.encode())))
    for number in range(2):
        noise = np.random.default_rng(number).uniform(-0.3, 0.3, 20_000)
        save(tmp_path / f"noise/{number}.wav", noise)
        save(tmp_path / f"noisy/{number}.wav", with_noise(speech_like(1), 5))
    (tmp_path / "small.safetensors").write_bytes(small_checkpoint.read_bytes())

    def here(task: Callable, items: Sequence, jobs: int) -> Iterator[tuple[int, object]]:
        assert jobs >= 1
        return ((index, task(items[index])) for index in range(len(items)))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "run_in_processes", here)
    monkeypatch.setattr(chart, "draw", lambda *arguments: f"a {arguments[-1]}".encode())
    return tmp_path


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, small_config: Config) -> Path:
    """A folder with networks of another rate and of another seed."""
    folder = tmp_path_factory.mktemp("others")
    eight = replace(small_config, data=replace(small_config.data, sampling_rate=8000))
    save_checkpoint(folder / "eight.safetensors", build(eight), eight)
    seed = replace(small_config, train=replace(small_config.train, seed=5))
    save_checkpoint(folder / "seed.safetensors", build(seed), seed)
    return folder


def test_the_command_measures_and_writes(folder: Path) -> None:
    done = run_module("tools.robustness.__main__", *SMALL, *ONE, "--files", "1", "--conditions", "band", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    out = folder / "out"
    assert {path for path in files_below(out) if not path.startswith("parts/")} == RESULTS
    assert len(list((out / "parts").iterdir())) == 3
    assert done.stdout == (out / "robustness.md").read_text(encoding="utf-8")
    content = json.loads((out / "robustness.json").read_text(encoding="utf-8"))
    assert {axis: list(values) for axis, values in content["axes"].items()} == {
        "band": ["full, to 8 kHz", "to 4 kHz", "300 to 3400 Hz"]
    }
    assert content["settings"]["files"] == 1
    rows = list(csv.DictReader((out / "robustness.csv").open(encoding="utf-8")))
    assert len(rows) == 3
    # The first row by hand: the mix, the network as inference.py uses it, the scores.
    trial = make_trial(Material(find_pool(folder / "speech", folder / "noise", None), 1, 1.0, 0), BASE, 0, 0)
    network, config = load_checkpoint(folder / "small.safetensors")
    enhancer = fast_enhancer(network, config, "cpu", "overlap", Load(1, 1), False, False)
    blocks = [trial.noisy.astype(np.float32)[:, None]]
    enhanced = np.concatenate(list(enhancer.enhance(blocks, LevelMeter().measure(blocks), "overlap")))[:, 0]
    for state, signal in (("noisy", trial.noisy), ("enhanced", enhanced)):
        for metric, value in score_signals(trial.reference, signal, "published")[0].items():
            assert float(rows[0][f"{state}_{metric}"]) == pytest.approx(value, abs=1e-2), (state, metric)
    assert (rows[0]["axis"], rows[0]["condition"], rows[0]["file"]) == ("band", "full, to 8 kHz", "de/p3_1")
    assert rows[0]["checkpoint"] == "small"


def test_a_run_that_was_ended_gives_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*SMALL, *ONE, "--files", "1", "--conditions", "band"]
    assert robustness.main(arguments) == 0
    before = {name: (folder / "out" / name).read_bytes() for name in files_below(folder / "out")}
    parts = sorted((folder / "out/parts").iterdir())
    for path in (*parts[:2], folder / "out/robustness.csv", folder / "out/robustness.png"):
        path.unlink()
    measured: list[str] = []
    enhance = measure.enhance
    monkeypatch.setattr(measure, "enhance", lambda *arguments: (measured.append(""), enhance(*arguments))[1])
    assert robustness.main(arguments) == 0
    assert len(measured) == 2
    assert {name: (folder / "out" / name).read_bytes() for name in files_below(folder / "out")} == before


def test_a_file_that_cannot_be_read_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "speech/en/p2_1.wav").write_bytes(b"RIFF")
    code = robustness.main([*SMALL, *ONE, "--files", "4", "--conditions", "group"])
    output = capsys.readouterr()
    assert code == 1
    assert len(output.err.splitlines()) == 1
    assert "speech/en/p2_1.wav: " in output.err
    assert "3 utterances a condition" in output.out


def test_held_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One speaker of four is held out, and one noise of two; the other group is known."""
    assert HELD_OUT.startswith("en/")
    assert robustness.main([*SMALL, *ONE, "--held_out", "--conditions", "group"]) == 0
    output = capsys.readouterr().out
    assert "1 utterances a condition" in output
    assert "1 noise files; held out from training" in output
    assert "| speech | all |" in output
    assert "|  | de (not held out) |" in output
    assert "|  | en |" in output
    rows = list(csv.DictReader((folder / "out/robustness.csv").open(encoding="utf-8")))
    assert {row["file"] for row in rows if row["condition"] == "all"} == {HELD_OUT}
    assert {row["file"] for row in rows if row["condition"] == "en"} == {HELD_OUT}
    assert {row["file"] for row in rows if row["condition"].startswith("de")} == {"de/p3_1", "de/p4_1"}


def test_recordings_without_a_clean_version(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake() -> Callable:
        return lambda samples: dict.fromkeys(("ovrl_mos", "sig_mos", "bak_mos", "p808_mos"), float(np.std(samples)))

    monkeypatch.setattr(run, "load_dnsmos", fake)
    monkeypatch.setattr(robustness, "find_spec", lambda _: True)
    (folder / "noisy/broken.wav").write_bytes(b"RIFF")
    options = ("--checkpoint_file", "small.safetensors", "--output_dir", "out", *ONE)
    code = robustness.main(["--input_noisy_wavs_dir", "noisy", *options])
    output = capsys.readouterr()
    assert code == 1
    assert "noisy/broken.wav: " in output.err
    assert output.out.startswith("**DNSMOS** of 2 files")
    content = json.loads((folder / "out/robustness.json").read_text())
    expected = np.std(np.rint(with_noise(speech_like(1), 5) * 32_768) / 32_768)
    assert content["noisy"]["sig_mos"] == pytest.approx(expected, abs=1e-3)
    assert content["small"]["sig_mos"]["gain"] != 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input_noise_dir", "nowhere"], "nowhere: no such folder"),
        (["--input_clean_wavs_dir", "empty"], "empty: holds no audio files"),
        (["--checkpoint_file", "speech/en/p1_1.wav"], "speech/en/p1_1.wav"),
        (["--checkpoint_file", "eight.safetensors"], "eight.safetensors: made for 8000 Hz; only those for 16000 Hz"),
        (["--checkpoint_file", "small.safetensors", "small.safetensors"], "another checkpoint is called small too"),
        (["--checkpoint_file", "small.safetensors", "seed.safetensors", "--held_out"], "different seeds"),
        (["--output_dir", "small.safetensors/out"], "small.safetensors/out: cannot be written: Not a directory"),
        (["--conditions", "wind"], "invalid choice: 'wind'"),
        (["--files", "0"], "--files, --num_threads, --jobs: must be 1 or more"),
        (["--seconds", "nan"], "--seconds: from 1 to 40"),
        (["--seed", "-1"], "--seed: must not be negative"),
        (["--input_noisy_wavs_dir", "noisy"], "or --input_noisy_wavs_dir"),
    ],
)
def test_a_wrong_command_line_gets_one_line(
    folder: Path, others: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    (folder / "empty").mkdir()
    for path in others.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    try:
        code = robustness.main([*SMALL, *ONE, *options])
    except SystemExit as end:
        code = end.code
    output = capsys.readouterr()
    assert (code, output.out) == (2, "")
    assert len(output.err.splitlines()) == 1
    assert words in output.err


@pytest.mark.parametrize(
    ("package", "folders"),
    [("matplotlib", FOLDERS), ("speechmos", ("--input_noisy_wavs_dir", "noisy"))],
)
def test_what_is_not_installed_is_said_before_the_work(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    folders: tuple[str, ...],
) -> None:
    monkeypatch.setattr(robustness, "find_spec", lambda name: None if name == package else True)
    with pytest.raises(SystemExit, match="2"):
        robustness.main([*folders, "--output_dir", "out"])
    assert f"needs {package}: pip install -e '.[" in capsys.readouterr().err
    assert not (folder / "out").exists()
