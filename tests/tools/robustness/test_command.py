"""The robustness command: its files, interrupted runs, held-out data, and failures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from config import Config
from data.splits import hold_out_speakers
from enhance.runtimes import fast_enhancer
from metrics.score import score_signals
from models.checkpoint import load_checkpoint
from tests.fixtures.commands import Result, call_main, run_python
from tests.fixtures.networks import save_random
from tests.fixtures.one_process import stay_in_one_process
from tests.fixtures.recordings import files_below, load, save
from tests.fixtures.signals import speech_like, with_noise
from tools.robustness import __main__ as robustness
from tools.robustness.conditions import BASE
from tools.robustness.mixes import Material, find_pool, make_mix

FOLDERS = ("--input_clean_wavs_dir", "speech", "--input_noise_dir", "noise")
OPTIONS = (
    *("--checkpoint_file", "small.safetensors", "--output_dir", "out", "--files", "2", "--seconds", "1"),
    *("--num_threads", "1", "--jobs", "1", "--quiet"),
)
SPEECH = ("de/p3_1", "de/p4_1", "en/p1_1", "en/p2_1")
HELD_OUT = SPEECH[hold_out_speakers(SPEECH, 1234)[1][0]]  # with the seed in the checkpoint
RESULTS = {f"robustness.{kind}" for kind in ("csv", "json", "md", "png")}


@pytest.fixture
def folder(tmp_path: Path, lite_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Speech of two groups, noise, recordings and a checkpoint; scoring is patched to run in this process."""
    for name in SPEECH:
        save(tmp_path / f"speech/{name}.wav", 0.5 * speech_like(1.5, seed=sum(name.encode())))
    for number in range(2):
        save(tmp_path / f"noise/{number}.wav", np.random.default_rng(number).uniform(-0.3, 0.3, 20_000))
        save(tmp_path / f"noisy/{number}.wav", with_noise(speech_like(1), 5))
    (tmp_path / "small.safetensors").write_bytes(lite_checkpoint.read_bytes())

    stay_in_one_process(monkeypatch)
    monkeypatch.setattr("tools.robustness.chart.draw", lambda *_: b"a plot")
    return tmp_path


def call(folder: Path, *options: object) -> Result:
    return call_main(robustness.main, *FOLDERS, *OPTIONS, *options, cwd=folder)


def read_rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "out/robustness.csv").open(encoding="utf-8")))


def test_files(folder: Path) -> None:
    done = call(folder, "--files", 1, "--conditions", "band")
    assert (done.returncode, done.stderr) == (0, "")
    out = folder / "out"
    assert files_below(out) == RESULTS
    assert done.stdout == (out / "robustness.md").read_text(encoding="utf-8")
    content = json.loads((out / "robustness.json").read_text(encoding="utf-8"))
    assert {axis: list(values) for axis, values in content["axes"].items()} == {
        "band": ["full, to 8 kHz", "to 4 kHz", "300 to 3400 Hz"]
    }
    assert content["settings"]["files"] == 1
    first, *others = read_rows(folder)
    assert len(others) == 2
    # The first row, step by step.
    mix = make_mix(Material(find_pool(folder / "speech", folder / "noise", None), 1, 1.0, 0), BASE, 0)
    enhancer = fast_enhancer(*load_checkpoint(folder / "small.safetensors"), threads=1)
    for state, signal in (("noisy", mix.noisy), ("enhanced", enhancer.enhance_signal(mix.noisy).astype(np.float64))):
        for metric, value in score_signals(mix.reference, signal, "published")[0].items():
            assert float(first[f"{state}_{metric}"]) == pytest.approx(value, abs=1e-2), (state, metric)
    names = ("band", "full, to 8 kHz", "de/p3_1", "small")
    assert tuple(first[key] for key in ("axis", "condition", "file", "checkpoint")) == names


def test_audio(folder: Path) -> None:
    done = call(folder, "--conditions", "level", "band", "--audio_dir", "audio")
    assert (done.returncode, done.stderr) == (0, "")
    names = [*(f"level_{level}" for level in (-10, -26, -40, -60, 0)), "band_300_to_3400_Hz", "band_full_to_8_kHz"]
    names.append("band_to_4_kHz")
    assert files_below(folder / "audio") == {
        f"{kind}/{name}.wav" for kind in ("clean", "noisy", "small") for name in names
    }
    clean, noisy, enhanced = (
        load(folder / f"audio/{kind}/level_-10.wav")[:, 0] for kind in ("clean", "noisy", "small")
    )
    # The fourth condition, of two utterances.
    mix = make_mix(
        Material(find_pool(folder / "speech", folder / "noise", None), 2, 1.0, 0), replace(BASE, level=-10.0), 1
    )
    np.testing.assert_allclose(noisy, mix.noisy, atol=1e-6)
    np.testing.assert_allclose(clean, mix.reference, atol=1e-6)
    enhancer = fast_enhancer(*load_checkpoint(folder / "small.safetensors"), threads=1)
    expected = enhancer.enhance_signal(noisy)
    # Random weights amplify rounding errors, where the spectrum is near zero to 2e-4.
    assert np.linalg.norm(enhanced - expected) < 1e-2 * np.linalg.norm(expected)


def test_unreadable_file(folder: Path) -> None:
    (folder / "speech/en/p2_1.wav").write_bytes(b"RIFF")
    done = call(folder, "--files", 4, "--conditions", "group")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "speech/en/p2_1.wav: " in line
    assert "3 utterances" in done.stdout


def test_held_out(folder: Path) -> None:
    """One speaker of four is held out, and one noise of two; the other group was seen in training."""
    assert HELD_OUT.startswith("en/")
    done = call(folder, "--held_out", "--conditions", "group")
    assert done.returncode == 0
    for text in ("1 utterances", "1 noise files", "| speech | all |", "|  | de (not held out) |", "|  | en |"):
        assert text in done.stdout
    files: dict[str, set[str]] = {}
    for row in read_rows(folder):
        files.setdefault(row["condition"], set()).add(row["file"])
    assert files == {"all": {HELD_OUT}, "en": {HELD_OUT}, "de (not held out)": {"de/p3_1", "de/p4_1"}}


def test_recordings_without_a_reference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake() -> Callable:
        return lambda samples: dict.fromkeys(("ovrl_mos", "sig_mos", "bak_mos", "p808_mos"), float(np.std(samples)))

    monkeypatch.setattr(robustness, "load_dnsmos", fake)
    monkeypatch.setattr(robustness, "find_spec", lambda _: True)
    (folder / "noisy/broken.wav").write_bytes(b"RIFF")
    done = call_main(robustness.main, "--input_noisy_wavs_dir", "noisy", *OPTIONS, "--files", 3, cwd=folder)
    assert done.returncode == 1
    assert "noisy/broken.wav: " in done.stderr
    assert "DNSMOS of 2 files" in done.stdout
    assert files_below(folder / "out") == {"robustness.csv", "robustness.md"}
    first, second = read_rows(folder)
    assert (first["file"], second["file"]) == ("0", "1")
    expected = np.std(np.rint(with_noise(speech_like(1), 5) * 32_768) / 32_768)
    assert float(first["noisy_sig_mos"]) == pytest.approx(expected, abs=1e-6)
    assert first["enhanced_sig_mos"] != first["noisy_sig_mos"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input_noise_dir", "nowhere"], "nowhere"),
        (["--input_clean_wavs_dir", "empty"], "empty"),
        (["--checkpoint_file", "speech/en/p1_1.wav"], "speech/en/p1_1.wav"),
        (["--checkpoint_file", "eight.safetensors"], "eight.safetensors: for 8000 Hz"),
        (["--checkpoint_file", "small.safetensors", "small.safetensors"], "small.safetensors: the name small"),
        (["--checkpoint_file", "small.safetensors", "seed.safetensors", "--held_out"], "--held_out"),
        (["--output_dir", "small.safetensors/out"], "small.safetensors/out"),
        (["--audio_dir", "small.safetensors/out"], "small.safetensors/out"),
        (["--seconds", "nan"], "--seconds"),
        (["--input_noisy_wavs_dir", "noisy"], "--input_noisy_wavs_dir"),
    ],
)
def test_wrong_command_line(folder: Path, small_config: Config, options: list[str], words: str) -> None:
    (folder / "empty").mkdir()
    eight = replace(small_config, data=replace(small_config.data, sampling_rate=8000))
    seed = replace(small_config, train=replace(small_config.train, seed=5))
    for name, config in (("eight", eight), ("seed", seed)):
        if f"{name}.safetensors" in options:
            save_random(folder / f"{name}.safetensors", config)
    done = call(folder, *options)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert words in line


@pytest.mark.parametrize(
    ("package", "folders"), [("matplotlib", FOLDERS), ("speechmos", ("--input_noisy_wavs_dir", "noisy"))]
)
def test_missing_package(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, folders: tuple[str, ...]) -> None:
    monkeypatch.setattr(robustness, "find_spec", lambda name: None if name == package else True)
    done = call_main(robustness.main, *folders, "--output_dir", "out", cwd=folder)
    assert done.returncode == 2
    assert f"needs {package}: pip install" in done.stderr
    assert not (folder / "out").exists()


@pytest.mark.slow
def test_command_in_a_process(folder: Path) -> None:
    options = (*FOLDERS, *OPTIONS, "--files", 1, "--conditions", "band")
    done = run_python("-m", "tools.robustness", *options, cwd=folder, minutes=3)
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "out/robustness.png").read_bytes().startswith(b"\x89PNG")
