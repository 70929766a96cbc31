"""`inference.py` on files: odd recordings, bad input, scores, interruption and several processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import inference
from config import Config
from data.audio import AudioFormat, read_audio, write_audio
from metrics.pesq import wideband_pesq
from metrics.si_sdr import si_sdr
from models.checkpoint import DEFAULT_CHECKPOINT
from tests.fixtures.commands import ROOT, TORCHRUN, Result, call_main, run_python
from tests.fixtures.networks import save_random
from tests.fixtures.recordings import NOISY, QUANTISED, RATE, files_below, load, save
from tests.fixtures.signals import speech_like, with_noise

TIMEOUT = 60  # seconds, for a busy machine
UNKNOWN_SIZE = b"\xff" * 4


def enhance(folder: Path, checkpoint: Path | str, *options: object, source: str = "in", output: str = "out") -> Result:
    """Run the command in this process, in `folder`."""
    folders = "--input_noisy_wavs_dir", source, "--output_dir", output, "--checkpoint_file", checkpoint
    return call_main(inference.main, *folders, "--quiet", *options, cwd=folder)


@pytest.fixture(scope="module")
def checkpoint(quick_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("checkpoint") / "quick.safetensors", quick_config)


def odd_recordings() -> dict[str, tuple[np.ndarray, AudioFormat]]:
    """Files that must work, by their path in the input folder: samples `[N, channels]` and format."""
    quiet = QUANTISED[:6000, None].astype(np.float32) / 4
    surround = np.concatenate([np.roll(quiet, 1000 * i, axis=0) for i in range(6)], axis=1)
    surround[:, 3] = 0
    return {
        "one sample.wav": (np.full((1, 1), 0.5), AudioFormat(RATE, 1)),
        "one sample at 48 kHz.wav": (np.full((1, 2), 0.5), AudioFormat(48_000, 2)),
        "silence at 44.1 kHz.wav": (np.zeros((20_000, 2)), AudioFormat(44_100, 2, "WAV", "PCM_24")),
        "8 kHz.wav": (NOISY[:6000, None], AudioFormat(8000, 1)),
        "formats/float.wav": (4 * quiet, AudioFormat(RATE, 1, "WAV", "FLOAT")),
        "formats/24.wav": (4 * quiet, AudioFormat(RATE, 1, "WAV", "PCM_24")),
        "formats/c.flac": (4 * quiet, AudioFormat(RATE, 1, "FLAC", "PCM_16")),
        "formats/beyond full scale.wav": (64 * quiet, AudioFormat(RATE, 1, "WAV", "FLOAT")),
        "formats/surround.wav": (surround, AudioFormat(RATE, 6, "WAV", "PCM_24")),
        "formats/channel 2.wav": (surround[:, 2:3], AudioFormat(RATE, 1, "WAV", "PCM_24")),
        "formats/b.mp3": (NOISY[:8000, None], AudioFormat(RATE, 1, "MP3", "MPEG_LAYER_III")),
        'naïve/deep/it\'s "quoted" 鳥.FLAC': (4 * quiet, AudioFormat(RATE, 1, "FLAC", "PCM_24")),
        os.fsdecode(b"caf\xe9\t.wav"): (4 * quiet, AudioFormat(RATE, 1)),
    }


def test_odd_recordings(tmp_path: Path, checkpoint: Path) -> None:
    recordings = odd_recordings()
    for name, (samples, audio_format) in recordings.items():
        write_audio(tmp_path / "in" / name, samples, audio_format)
    (tmp_path / "in/notes.txt").write_text("neither audio nor named so", encoding="utf-8")
    assert enhance(tmp_path, checkpoint) == (0, "", "")

    out = tmp_path / "out"
    assert files_below(out) == set(recordings)
    for name, (_, audio_format) in recordings.items():
        noisy, enhanced = load(tmp_path / "in" / name), load(out / name)
        assert read_audio(out / name)[1] == audio_format, name
        assert enhanced.shape == noisy.shape, name
        if "silence" in name:
            assert not enhanced.any()
        elif "sample" not in name:
            assert np.abs(enhanced).max() > 1e-3, name
            assert np.abs(enhanced - noisy).max() > 1e-3, name

    exact = load(out / "formats/float.wav")
    assert np.abs(exact).max() < 1
    for name, step in (("24.wav", 2**-23), ("c.flac", 2**-15)):
        np.testing.assert_allclose(load(out / "formats" / name), exact, rtol=0, atol=0.51 * step, err_msg=name)
    loud = load(out / "formats/beyond full scale.wav")
    np.testing.assert_allclose(loud, 16 * exact, rtol=0, atol=1e-4)
    assert np.abs(loud).max() > 1
    surround = load(out / "formats/surround.wav")
    np.testing.assert_allclose(surround[:, 2:3], load(out / "formats/channel 2.wav"), rtol=0, atol=1e-5)
    assert not surround[:, 3].any()


@pytest.mark.parametrize("files", [1, pytest.param(None, marks=pytest.mark.slow)])
def test_embedded_checkpoint_improves_the_samples(tmp_path: Path, files: int | None) -> None:
    assert DEFAULT_CHECKPOINT.stat().st_size < 2 * 2**20
    samples = sorted((ROOT / "samples" / "noisy").iterdir(), key=lambda path: path.stat().st_size)[:files]
    for noisy in samples:
        done = call_main(inference.main, "--input_noisy_wavs_dir", noisy, "--output_dir", tmp_path, "--quiet")
        assert done == (0, "", "")
        clean, before, after = (
            load(each / noisy.name)[:, 0] for each in (ROOT / "samples/clean", noisy.parent, tmp_path)
        )
        assert wideband_pesq(clean, after) > wideband_pesq(clean, before)
        assert si_sdr(clean, after) > si_sdr(clean, before)


def test_standard_input_to_standard_output(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in.wav", NOISY[:8000])
    piped = bytearray((tmp_path / "in.wav").read_bytes())
    piped[4:8] = piped[40:44] = UNKNOWN_SIZE
    script = [sys.executable, ROOT / "inference.py", "--input_noisy_wavs_dir", "-", "--quiet"]
    result = subprocess.run(
        [*script, "--checkpoint_file", checkpoint], input=piped, cwd=tmp_path, capture_output=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert enhance(tmp_path, checkpoint, source="in.wav") == (0, "", "")
    (tmp_path / "piped.wav").write_bytes(result.stdout)
    np.testing.assert_allclose(load(tmp_path / "piped.wav"), load(tmp_path / "out/in.wav"), rtol=0, atol=1.1 * 2**-15)


@pytest.mark.parametrize(("output", "error"), [("closed", ""), ("full", "standard input or output: No space left")])
def test_failing_pipes(tmp_path: Path, checkpoint: Path, output: str, error: str) -> None:
    save(tmp_path / "in.wav", QUANTISED)
    reading, writing = os.pipe()
    os.close(reading)
    script = [sys.executable, ROOT / "inference.py", "--input_noisy_wavs_dir", "-", "--checkpoint_file", checkpoint]
    with (tmp_path / "in.wav").open("rb") as source, Path("/dev/full").open("wb") as full:
        stdout = full if output == "full" else writing
        result = subprocess.run(script, stdin=source, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert result.returncode == 1
    assert result.stderr.startswith(error)
    assert len(result.stderr.splitlines()) == bool(error)


def test_bad_files_are_named_and_the_others_done(tmp_path: Path, checkpoint: Path) -> None:
    """More files are in tests/data/test_audio.py."""
    folder = tmp_path / "in"
    save(folder / "good.wav", NOISY[:5000])
    save(folder / "last.wav", NOISY[:5000])
    (folder / "text.wav").write_text("Dear diary,\n")
    (folder / "data.wav").write_bytes((folder / "good.wav").read_bytes()[:3044])
    soundfile.write(folder / "nan.wav", np.where(np.arange(300) == 200, np.nan, NOISY[:300]), RATE, subtype="FLOAT")
    (folder / "folder.wav").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/nan.wav").write_bytes(b"of an earlier run")

    result = enhance(tmp_path, checkpoint)
    assert (result.returncode, result.stdout) == (1, "")
    problems = dict(line.split(": ", 1) for line in result.stderr.splitlines())
    assert problems.keys() == {"in/text.wav", "in/data.wav", "in/nan.wav"}
    assert "not an audio file" in problems["in/text.wav"]
    assert "1500 of 5000 samples" in problems["in/data.wav"]
    assert "NaN or infinite samples (the first at sample 200)" in problems["in/nan.wav"]
    assert files_below(tmp_path / "out") == {"good.wav", "last.wav", "nan.wav"}
    assert len(load(tmp_path / "out/last.wav")) == 5000
    assert (tmp_path / "out/nan.wav").read_bytes() == b"of an earlier run"


def test_scores(tmp_path: Path, checkpoint: Path) -> None:
    clean, noisy = speech_like(1.5), with_noise(speech_like(1.5), 10)
    for name in ("a/pair", "a/other", "b/pair", "length", "rate", "no_noisy", "broken"):
        save(tmp_path / f"clean/{name}.flac", clean, container="FLAC")
    save(tmp_path / "in/a/pair.wav", noisy)
    save(tmp_path / "in/b/pair.wav", noisy)
    save(tmp_path / "in/b/pair.flac", noisy, container="FLAC")
    save(tmp_path / "in/length.wav", noisy[:-2000])
    save(tmp_path / "in/rate.wav", noisy, 8000)
    save(tmp_path / "in/no_clean.wav", noisy)
    (tmp_path / "in/broken.wav").write_text("no sound")
    result = enhance(tmp_path, checkpoint, "--input_clean_wavs_dir", "clean")
    assert result.returncode == 1
    assert result.stdout.startswith("5 files, 3 failed")  # also those that could not be enhanced
    assert files_below(tmp_path / "out") == files_below(tmp_path / "in") - {"broken.wav"}
    lines = result.stderr.splitlines()
    assert len(lines) == 7
    for start, keyword in (
        ("in/broken.wav: ", "not an audio file"),
        ("clean/a/other.flac: ", "noisy"),
        ("clean/no_noisy.flac: ", "noisy"),
        ("out/no_clean.wav: ", "clean"),
        ("length: ", "lengths differ"),
        ("rate: ", "rates differ"),
        ("out/b/pair.wav: ", "same name 'b/pair'"),
    ):
        assert any(line.startswith(start) and keyword in line for line in lines), (start, result.stderr)
    assert [line.split()[-1] for line in result.stdout.splitlines()[2:]] == ["2"] * 8  # pairs scored
    # Of one file, the other clean files are no problem.
    one = enhance(tmp_path, checkpoint, "--input_clean_wavs_dir", "clean/a", source="in/a/pair.wav", output="one")
    assert (one.returncode, one.stderr) == (0, "")
    assert one.stdout.startswith("1 files")


@pytest.mark.parametrize(
    ("source", "output", "error"),
    [
        ("none", "out", "none: no such file or folder"),
        ("/dev/null", "out", "/dev/null: neither a file nor a folder"),
        ("empty", "out", "empty: holds no audio"),
        ("in", "in", "in: results would replace their inputs"),
        ("in/a.wav", "in", "in: results would replace their inputs"),
        ("in", "in/a.wav", "in/a.wav: cannot be written"),
        ("in", "/proc/out", "/proc/out: cannot be written"),
    ],
)
def test_unusable_folders(tmp_path: Path, checkpoint: Path, source: str, output: str, error: str) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("in/a.wav", "in/sub/a.wav"):
        save(tmp_path / name, NOISY[:100])
    before = files_below(tmp_path)
    result = enhance(tmp_path, checkpoint, source=source, output=output)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(error)
    assert files_below(tmp_path) == before


def test_results_within_or_above_the_input(tmp_path: Path, checkpoint: Path) -> None:
    save(tmp_path / "in/sub/a.wav", NOISY[:100])
    for _ in range(2):  # results of the first run are not inputs of the second
        assert enhance(tmp_path, checkpoint, output="in/out") == (0, "", "")
        assert files_below(tmp_path) == {"in/sub/a.wav", "in/out/sub/a.wav"}
    assert enhance(tmp_path, checkpoint, source="in/sub/a.wav", output=".") == (0, "", "")
    assert files_below(tmp_path) == {"in/sub/a.wav", "in/out/sub/a.wav", "a.wav"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "required: --input_noisy_wavs_dir"),
        (["--input_noisy_wavs_dir", "in"], "--output_dir is needed"),
        (["--input_noisy_wavs_dir", "", "--output_dir", "out"], "empty"),
        (["--input_noisy_wavs_dir", "-", "--input_clean_wavs_dir", "in"], "--input_clean_wavs_dir"),
        (["--input_noisy_wavs_dir", "-", "--device", "gpu"], "--device gpu"),
        (["--input_noisy_wavs_dir", "-", "--checkpoint_file", "none"], "none: the checkpoint cannot be read"),
        (["--input_noisy_wavs_dir", "-", "--checkpoint_file", "none.onnx"], "none.onnx: the network cannot be read"),
        (["--input_noisy_wavs_dir", "-", "--batch_size", "0"], "--batch_size: must be 1 or more"),
        (["--input_noisy_wavs_dir", "-", "--compile", "--protocol", "whole"], "--compile"),
        (["--input_noisy_wavs_dir", "-", "--backend", "onnxruntime", "--bf16"], "--backend onnxruntime"),
        (["--input_noisy_wavs_dir", "-", "--backend", "torch", "--checkpoint_file", "a.onnx"], ".onnx"),
        (["--input_noisy_wavs_dir", "-", "--backend", "openvino", "--checkpoint_file", "a.onnx"], ".onnx"),
        (["--input_noisy_wavs_dir", "-", "--backend", "openvino", "--device", "cuda"], "--backend openvino"),
        (["--input_noisy_wavs_dir", "-", "--protocol", "paper", "--passes", "2"], "--passes"),
        (["--stream", "--output_dir", "out"], "--output_dir: not with --stream"),
        (["--stream", "--input_clean_wavs_dir", "in", "--protocol", "paper"], "--input_clean_wavs_dir, --protocol"),
    ],
)
def test_wrong_command_lines(arguments: list[str], error: str) -> None:
    result = call_main(inference.main, *arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert error in result.stderr


def test_standard_input_is_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for arguments in (["--input_noisy_wavs_dir", "-"], ["--stream"]):
        result = call_main(inference.main, *arguments)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert "torchrun" in result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    """`in` with eight files, and `out` with their results."""
    folder = tmp_path_factory.mktemp("folder")
    for number in range(8):
        save(folder / f"in/{number % 2}/{number}.wav", NOISY[: 10_000 + 100 * number])
    assert enhance(folder, checkpoint) == (0, "", "")
    return folder


def steps(folder: Path) -> dict[str, np.ndarray]:
    """Samples in steps of 16 bits, by file name; without the half-written files of a killed process."""
    names = (name for name in files_below(folder) if not name.endswith(".part"))
    return {name: soundfile.read(folder / name, dtype="int16")[0].astype(int) for name in names}


def assert_same_results(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() <= expected.keys()
    for name, samples in found.items():
        np.testing.assert_allclose(samples, expected[name], rtol=0, atol=2, err_msg=name)


def test_resume(folder: Path, checkpoint: Path) -> None:
    expected = steps(folder / "out")
    shutil.copytree(folder / "out", folder / "resumed")
    for name in ("0/2.wav", "1/5.wav"):
        (folder / "resumed" / name).unlink()
    times = {path: path.stat().st_mtime_ns for path in (folder / "resumed").rglob("*.wav")}
    resumed = enhance(folder, checkpoint, "--resume", output="resumed")
    assert (resumed.returncode, resumed.stderr.count("\n")) == (0, 1)
    assert resumed.stderr.startswith("6 of 8 files")
    assert_same_results(steps(folder / "resumed"), expected)
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "error"),
    [
        (signal.SIGINT, 130, "interrupted\n"),
        (signal.SIGTERM, 143, ""),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_interrupted_and_resumed(folder: Path, checkpoint: Path, number: int, code: int, error: str) -> None:
    out = folder / f"out_{number}"
    folders = "--input_noisy_wavs_dir", "in", "--output_dir", out.name, "--checkpoint_file", checkpoint
    command = [sys.executable, ROOT / "inference.py", *folders, "--num_threads", "1", "--quiet"]
    with subprocess.Popen([*map(str, command)], cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + TIMEOUT
        while len(list(out.rglob("*.wav"))) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (code, error)
    there, uninterrupted = steps(out), steps(folder / "out")
    assert 2 <= len(there) < 8
    assert_same_results(there, uninterrupted)
    if number != signal.SIGKILL:
        assert files_below(out) == set(there)  # nothing half written
    assert enhance(folder, checkpoint, "--resume", output=out.name).returncode == 0
    assert_same_results(steps(out), uninterrupted)


@pytest.mark.slow
def test_two_processes_share_the_files(folder: Path, checkpoint: Path) -> None:
    (folder / "in/bad.wav").write_text("no sound")
    folders = "--input_noisy_wavs_dir", "in", "--output_dir", "out_2", "--checkpoint_file", checkpoint
    options = "--input_clean_wavs_dir", "in", "--device", "cpu", "--quiet"
    command = *TORCHRUN, ROOT / "inference.py", *folders, *options
    result = run_python(*command, cwd=folder, environment={"OMP_NUM_THREADS": "1"}, minutes=2)
    (folder / "in/bad.wav").unlink()
    assert result.returncode == 1
    assert result.stderr.count("in/bad.wav: not an audio file") == 1
    assert result.stdout.startswith("9 files, 1 failed")  # one table, of all files
    assert result.stdout.lower().count("pesq") == 1
    assert steps(folder / "out_2").keys() == steps(folder / "out").keys()
    assert_same_results(steps(folder / "out_2"), steps(folder / "out"))
