"""downsampling.py, run as a user runs it, on a tiny set laid out like VoiceBank+DEMAND."""

from __future__ import annotations

import os
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import soundfile

from data.audio import read_audio
from tests.fixtures.commands import run_script

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


def downsample(root: Path, *arguments: object, stub: Path | None = None) -> CompletedProcess[str]:
    """Run the script on `root`; its outputs are in the folder 16k beside it."""
    environment = {"PYTHONPATH": str(stub)} if stub else None
    everything = ("--input_dir", root, "--output_dir", root.parent / "16k", "--jobs", 1, *arguments)
    return run_script("downsampling.py", *everything, cwd=root.parent, environment=environment)


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


def test_the_whole_set_goes_to_the_default_folders(tmp_path: Path) -> None:
    root = tmp_path / "VoiceBank+DEMAND"
    names = ["p226_001.wav", 'sub folder/it\'s "quoted".wav', "тест.声.wav"]
    for folders in SETS.values():
        for name in names:
            write_pair(root, name, folders=folders)
    done = run_script("downsampling.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 pairs written, 0 already there, 0 failed" in done.stdout
    assert files_in(root / "16k") == {f"{folder}/{name}" for pair in SETS.values() for folder in pair for name in names}
    info = soundfile.info(str(root / "16k" / NOISY / names[1]))
    assert (info.samplerate, info.channels, info.format, info.subtype) == (RATE, 1, "WAV", "PCM_16")


def test_a_tone_keeps_amplitude_and_phase_and_what_16_khz_cannot_hold_is_gone(root: Path) -> None:
    write(root / CLEAN / "a.wav", tone(1_000, 48_000, SOURCE_RATE), subtype="FLOAT")
    write(root / NOISY / "a.wav", tone(10_000, 48_000, SOURCE_RATE), subtype="FLOAT")
    assert downsample(root).returncode == 0
    low, high = (read_audio(root.parent / "16k" / folder / "a.wav")[0][:, 0] for folder in (CLEAN, NOISY))
    inside = slice(800, -800)
    assert len(low) == len(high) == RATE
    assert np.abs(low - tone(1_000, RATE, RATE))[inside].max() < 1e-3
    residue = np.sqrt(np.mean(high[inside] ** 2)) / np.sqrt(np.mean(tone(10_000, 48_000, SOURCE_RATE) ** 2))
    assert 20 * np.log10(residue + 1e-12) < -60


@pytest.mark.parametrize(("frames", "expected"), [(4_800, 1_600), (4_801, 1_601), (4_802, 1_601), (1, 1)])
def test_lengths_round_up(root: Path, frames: int, expected: int) -> None:
    write_pair(root, "a.wav", frames)
    assert downsample(root).returncode == 0
    assert soundfile.info(str(root.parent / "16k" / CLEAN / "a.wav")).frames == expected


def test_a_set_at_16_khz_is_copied_sample_for_sample(root: Path) -> None:
    steps = np.random.default_rng(0).integers(-32_768, 32_768, 5_000).astype(np.int16)
    steps[:2] = -32_768, 32_767
    for folder in (CLEAN, NOISY):
        write(root / folder / "a.flac", steps, RATE)
    assert downsample(root).returncode == 0
    copy, rate = soundfile.read(root.parent / "16k" / NOISY / "a.wav", dtype="int16")
    assert rate == RATE
    assert np.array_equal(copy, steps)


def test_a_rerun_skips_what_is_whole_and_mends_what_is_not(root: Path) -> None:
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


def test_files_without_a_twin_are_named_and_not_written(root: Path) -> None:
    write_pair(root, "both.wav")
    write(root / CLEAN / "only clean.wav", tone(440, 480, SOURCE_RATE))
    write(root / NOISY / "only noisy.wav", tone(440, 480, SOURCE_RATE))
    # Pairing is by name within a split: the training file of the same name is no twin.
    write_pair(root, "only noisy.wav", folders=SETS["train"])
    done = downsample(root)
    assert done.returncode == 1
    assert f"{root / CLEAN / 'only clean.wav'}: no file of this name" in done.stderr
    assert f"{root / NOISY / 'only noisy.wav'}: no file of this name" in done.stderr
    assert files_in(root.parent / "16k" / CLEAN) == files_in(root.parent / "16k" / NOISY) == {"both.wav"}


def test_bad_pairs_are_named_and_the_others_done(root: Path) -> None:
    for name in ("cut", "nan", "stereo", "length", "rate", "low", "text", "empty", "ok"):
        write_pair(root, f"{name}.wav")
    clean, noisy = root / CLEAN, root / NOISY
    (noisy / "cut.wav").write_bytes((noisy / "cut.wav").read_bytes()[:-100])
    write(clean / "nan.wav", np.array([0.0, np.nan] * 2_400), subtype="FLOAT")
    write(noisy / "stereo.wav", np.zeros((4_800, 2)))
    write(noisy / "length.wav", np.zeros(4_799))
    write(noisy / "rate.wav", np.zeros(4_800), 44_100)
    write(clean / "low.wav", np.zeros(4_800), 8_000)
    (clean / "text.wav").write_text("not audio", encoding="utf-8")
    (noisy / "empty.wav").write_bytes(b"")
    done = downsample(root, "--quiet")
    assert done.returncode == 1
    absent_split, *lines = done.stderr.splitlines()
    assert absent_split.startswith("left out, no such folder: ")
    assert len(lines) == 8
    for bad, words in (
        (noisy / "cut.wav", "cut short"),
        (clean / "nan.wav", "NaN"),
        (noisy / "stereo.wav", "2 channels"),
        (noisy / "length.wav", "differ in length: 4800 and 4799"),
        (noisy / "rate.wav", "differ in rate: 48000 and 44100"),
        (clean / "low.wav", "8000 Hz is below"),
        (clean / "text.wav", "not an audio file"),
        (noisy / "empty.wav", "the file is empty"),
    ):
        assert any(str(bad) in line and words in line for line in lines), (bad, lines)
    assert done.stdout == ""
    assert files_in(root.parent / "16k") == {f"{CLEAN}/ok.wav", f"{NOISY}/ok.wav"}


def test_a_split_that_is_not_there_is_named_and_left_out(root: Path) -> None:
    write_pair(root, "a.wav")
    done = downsample(root)
    assert done.returncode == 0
    assert all(str(root / name) in done.stderr for name in SETS["train"])
    assert "1 pairs written" in done.stdout


@pytest.mark.parametrize("present", [[], [CLEAN], [*SETS["train"], NOISY]])
def test_no_split_or_half_a_split_is_an_error_before_any_work(root: Path, present: list[str]) -> None:
    for folder in present:
        write(root / folder / "a.wav", np.zeros(480))
    done = downsample(root)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    missing = [name for names in SETS.values() for name in names if name not in present]
    assert all(str(root / name) in done.stderr for name in missing)
    assert not (root.parent / "16k").exists()


def test_other_folder_names_can_be_given(root: Path) -> None:
    write_pair(root, "a.wav", folders=("clean_trainset_56spk_wav", "noisy_trainset_56spk_wav"))
    done = downsample(root, "--train_folders", "clean_trainset_56spk_wav", "noisy_trainset_56spk_wav")
    assert done.returncode == 0
    assert files_in(root.parent / "16k") == {
        "clean_trainset_56spk_wav/a.wav",
        "noisy_trainset_56spk_wav/a.wav",
    }


@pytest.mark.parametrize("output", [".", f"{CLEAN}/16k", f"./{NOISY}/.."])
def test_outputs_never_land_among_the_inputs(root: Path, output: str) -> None:
    write_pair(root, "a.wav")
    before = (root / CLEAN / "a.wav").read_bytes()
    done = run_script("downsampling.py", "--input_dir", ".", "--output_dir", output, cwd=root)
    assert done.returncode == 2
    assert "choose another --output_dir" in done.stderr
    assert (root / CLEAN / "a.wav").read_bytes() == before
    assert files_in(root) == {f"{CLEAN}/a.wav", f"{NOISY}/a.wav"}


def test_an_output_folder_that_cannot_be_made_is_named(root: Path) -> None:
    write_pair(root, "a.wav")
    (root.parent / "16k").write_text("a file", encoding="utf-8")
    done = downsample(root)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2  # the training set is not there, and then the error
    assert f"{root.parent / '16k' / CLEAN}: cannot be written: " in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_output_folder_is_named_once(root: Path) -> None:
    write_pair(root, "a.wav")
    write_pair(root, "b.wav")
    target = root.parent / "16k" / CLEAN
    target.mkdir(parents=True)
    target.chmod(0o500)
    done = downsample(root)
    target.chmod(0o700)
    assert done.returncode == 2
    assert done.stderr.count("cannot be written") == 1


def test_two_files_of_one_name_are_named(root: Path) -> None:
    write_pair(root, "a.wav")
    write(root / CLEAN / "a.flac", np.zeros(480))
    done = downsample(root)
    assert done.returncode == 2
    assert "a.flac and a.wav have the same name" in done.stderr


@pytest.mark.parametrize("arguments", [["--jobs", 0], ["--resampler", "linear"], ["--train_folders", "one"]])
def test_wrong_arguments_are_refused(root: Path, arguments: list[object]) -> None:
    write_pair(root, "a.wav")
    done = downsample(root, *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(arguments[0]) in done.stderr


@pytest.mark.parametrize("error", ["ImportError('no module')", "OSError('libcudart.so: not found\\nmore')"])
def test_a_torchaudio_that_cannot_be_imported_gets_one_line(root: Path, tmp_path: Path, error: str) -> None:
    write_pair(root, "a.wav")
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "torchaudio.py").write_text(f"raise {error}\n", encoding="utf-8")
    done = downsample(root, "--resampler", "torchaudio", stub=stub)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "torchaudio cannot be imported" in done.stderr
    assert not (root.parent / "16k").exists()


def test_torchaudio_resamples_where_it_is_asked_for(root: Path, tmp_path: Path) -> None:
    write_pair(root, "a.wav", 4_801)
    stub = tmp_path / "stub" / "torchaudio"
    stub.mkdir(parents=True)
    (stub / "__init__.py").touch()
    # It takes every third sample, which no real resampler does, so that its work is recognised.
    text = "def resample(waveform, rate, new_rate):\n    return waveform[..., :: rate // new_rate]\n"
    (stub / "functional.py").write_text(text, encoding="utf-8")
    assert downsample(root, "--resampler", "torchaudio", stub=stub.parent).returncode == 0
    source = soundfile.read(root / NOISY / "a.wav", dtype="int16")[0]
    assert np.array_equal(soundfile.read(root.parent / "16k" / NOISY / "a.wav", dtype="int16")[0], source[::3])
