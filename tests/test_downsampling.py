"""downsampling.py on a tiny set with the layout of VoiceBank+DEMAND."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile

import downsampling
from data.audio import read_audio
from tests.fixtures.commands import ROOT, Result, call_main, run_python
from tests.fixtures.one_process import stay_in_one_process
from tests.fixtures.recordings import files_below, save_without_length

SOURCE_RATE = 48_000
RATE = 16_000
SETS = {
    "train": ("clean_trainset_28spk_wav", "noisy_trainset_28spk_wav"),
    "test": ("clean_testset_wav", "noisy_testset_wav"),
}
CLEAN, NOISY = SETS["test"]


def tone(hertz: float, frames: int, rate: int, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(frames) / rate)


def write(path: Path, samples: np.ndarray, rate: int = SOURCE_RATE, subtype: str = "PCM_16") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)


def write_pair(root: Path, name: str, frames: int = 4_800, folders: tuple[str, str] = (CLEAN, NOISY)) -> None:
    for folder, hertz in zip(folders, (440.0, 1_000.0), strict=True):
        write(root / folder / name, tone(hertz, frames, SOURCE_RATE))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_in_one_process(monkeypatch)


def downsample(root: Path, *arguments: object) -> Result:
    """Convert `root`; outputs go to the folder 16k beside it."""
    return call_main(downsampling.main, "--input_dir", root, "--output_dir", root.parent / "16k", *arguments)


def test_the_whole_set_goes_to_the_default_folders(tmp_path: Path) -> None:
    root = tmp_path / "VoiceBank+DEMAND"
    names = ["p226_001.wav", 'sub folder/it\'s "quoted".wav', "тест.声.wav"]
    for folders in SETS.values():
        for name in names:
            write_pair(root, name, folders=folders)
    done = run_python(ROOT / "downsampling.py", "--jobs", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 pairs written, 0 already there, 0 failed" in done.stdout
    assert files_below(root / "16k") == {
        f"{folder}/{name}" for folders in SETS.values() for folder in folders for name in names
    }
    info = soundfile.info(str(root / "16k" / NOISY / names[1]))
    assert (info.samplerate, info.channels, info.format, info.subtype) == (RATE, 1, "WAV", "PCM_16")


def test_tones_below_8_khz_are_kept_and_others_removed(root: Path) -> None:
    write(root / CLEAN / "a.wav", tone(1_000, 48_000, SOURCE_RATE), subtype="FLOAT")
    write(root / NOISY / "a.wav", tone(10_000, 48_000, SOURCE_RATE), subtype="FLOAT")
    assert downsample(root).returncode == 0
    low, high = (read_audio(root.parent / "16k" / folder / "a.wav")[0][:, 0] for folder in (CLEAN, NOISY))
    inside = slice(800, -800)
    assert len(low) == len(high) == RATE
    np.testing.assert_allclose(low[inside], tone(1_000, RATE, RATE)[inside], rtol=0, atol=1e-3)
    assert np.sqrt(np.mean(high[inside] ** 2)) < 1e-3 * 0.5 / np.sqrt(2)  # −60 dB


@pytest.mark.parametrize(("frames", "expected"), [(4_800, 1_600), (4_801, 1_601), (4_802, 1_601), (1, 1)])
def test_lengths_are_rounded_up(root: Path, frames: int, expected: int) -> None:
    write_pair(root, "a.wav", frames)
    assert downsample(root).returncode == 0
    assert soundfile.info(str(root.parent / "16k" / CLEAN / "a.wav")).frames == expected


def test_files_at_16_khz_are_copied_sample_for_sample(root: Path) -> None:
    steps = np.array([-32_768, 32_767, *np.random.default_rng(0).integers(-32_768, 32_768, 5_000)], np.int16)
    for folder in (CLEAN, NOISY):
        write(root / folder / "a.flac", steps, RATE)
    assert downsample(root).returncode == 0
    copy, rate = soundfile.read(root.parent / "16k" / NOISY / "a.wav", dtype="int16")
    assert rate == RATE
    assert np.array_equal(copy, steps)


def test_a_rerun_skips_complete_pairs_and_repairs_others(root: Path) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        write_pair(root, name)
    assert downsample(root).returncode == 0
    output = root.parent / "16k"
    kept, cut = output / NOISY / "a.wav", output / NOISY / "b.wav"
    kept_time = kept.stat().st_mtime_ns
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-10])
    write(output / CLEAN / "c.wav", tone(440, 1_599, RATE), RATE)
    done = downsample(root)
    assert done.returncode == 0
    assert "2 pairs written, 1 already there" in done.stdout
    assert kept.stat().st_mtime_ns == kept_time
    assert cut.read_bytes() == whole
    assert soundfile.info(str(output / CLEAN / "c.wav")).frames == 1_600


def test_unpaired_files_are_named_and_skipped(root: Path) -> None:
    write_pair(root, "both.wav")
    write(root / CLEAN / "only clean.wav", np.zeros(480))
    write(root / NOISY / "only noisy.wav", np.zeros(480))
    write_pair(root, "only noisy.wav", folders=SETS["train"])  # of another split: no pair with the file above
    done = downsample(root)
    assert done.returncode == 1
    for path in (root / CLEAN / "only clean.wav", root / NOISY / "only noisy.wav"):
        assert f"{path}: no file of this name" in done.stderr
    assert files_below(root.parent / "16k" / CLEAN) == files_below(root.parent / "16k" / NOISY) == {"both.wav"}


def test_unusable_pairs_are_named_and_the_others_converted(root: Path) -> None:
    for name in ("cut", "nan", "stereo", "length", "rate", "low", "empty", "unknown", "ok"):
        write_pair(root, f"{name}.wav")
    clean, noisy = root / CLEAN, root / NOISY
    (noisy / "cut.wav").write_bytes((noisy / "cut.wav").read_bytes()[:-100])
    write(clean / "nan.wav", np.array([0.0, np.nan] * 2_400), subtype="FLOAT")
    write(noisy / "stereo.wav", np.zeros((4_800, 2)))
    write(noisy / "length.wav", np.zeros(4_799))
    write(noisy / "rate.wav", np.zeros(4_800), 44_100)
    write(clean / "low.wav", np.zeros(4_800), 8_000)
    (noisy / "empty.wav").write_bytes(b"")
    save_without_length(noisy / "unknown.wav", np.zeros(4_800), 48_000)
    done = downsample(root, "--quiet")
    assert (done.returncode, done.stdout) == (1, "")
    missing_split, *lines = done.stderr.splitlines()
    assert all(str(root / name) in missing_split for name in SETS["train"])
    assert len(lines) == 8
    for path, words in (
        (noisy / "cut.wav", "cut short"),
        (clean / "nan.wav", "NaN"),
        (noisy / "stereo.wav", "2 channels"),
        (noisy / "length.wav", "length: 4800 and 4799"),
        (noisy / "rate.wav", "rate: 48000 and 44100"),
        (clean / "low.wav", "8000 Hz"),
        (noisy / "empty.wav", "empty"),
        (noisy / "unknown.wav", "does not give its length"),
    ):
        assert any(str(path) in line and words in line for line in lines), (path, lines)
    assert files_below(root.parent / "16k") == {f"{CLEAN}/ok.wav", f"{NOISY}/ok.wav"}


@pytest.mark.parametrize("present", [[], [CLEAN], [*SETS["train"], NOISY]])
def test_without_a_split_or_with_half_a_split_nothing_is_done(root: Path, present: list[str]) -> None:
    for folder in present:
        write(root / folder / "a.wav", np.zeros(480))
    done = downsample(root)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    missing = [name for names in SETS.values() for name in names if name not in present]
    assert all(str(root / name) in done.stderr for name in missing)
    assert not (root.parent / "16k").exists()


@pytest.mark.parametrize("output", [".", f"{CLEAN}/16k", f"./{NOISY}/.."])
def test_outputs_never_replace_inputs(root: Path, output: str) -> None:
    write_pair(root, "a.wav")
    before = (root / CLEAN / "a.wav").read_bytes()
    done = call_main(downsampling.main, "--input_dir", ".", "--output_dir", output, cwd=root)
    assert done.returncode == 2
    assert "--output_dir" in done.stderr
    assert (root / CLEAN / "a.wav").read_bytes() == before
    assert files_below(root) == {f"{CLEAN}/a.wav", f"{NOISY}/a.wav"}


def test_an_output_folder_that_cannot_be_made(root: Path) -> None:
    write_pair(root, "a.wav")
    (root.parent / "16k").write_text("a file", encoding="utf-8")
    done = downsample(root)
    assert done.returncode == 2
    assert f"{root.parent / '16k' / CLEAN}: cannot be written" in done.stderr.splitlines()[-1]


def install_torchaudio(monkeypatch: pytest.MonkeyPatch, resample: Callable | None) -> None:
    """Replace torchaudio by a module with this `resample`; None: by one that cannot be imported."""
    functional = SimpleNamespace(resample=resample) if resample else None
    monkeypatch.setitem(sys.modules, "torchaudio", ModuleType("torchaudio"))
    monkeypatch.setitem(sys.modules, "torchaudio.functional", functional)


def test_without_torchaudio_one_line_is_printed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(root, "a.wav")
    install_torchaudio(monkeypatch, None)
    done = downsample(root, "--resampler", "torchaudio")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "torchaudio cannot be imported" in done.stderr
    assert not (root.parent / "16k").exists()


def test_torchaudio_is_used_on_request(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(root, "a.wav", 4_801)
    # Every third sample without a filter identifies its output.
    install_torchaudio(monkeypatch, lambda waveform, rate, new_rate: waveform[..., :: rate // new_rate])
    assert downsample(root, "--resampler", "torchaudio").returncode == 0
    source = soundfile.read(root / NOISY / "a.wav", dtype="int16")[0]
    assert np.array_equal(soundfile.read(root.parent / "16k" / NOISY / "a.wav", dtype="int16")[0], source[::3])
