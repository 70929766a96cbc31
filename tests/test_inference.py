"""`inference.py` as a user runs it: odd recordings come out whole, bad ones are named, none is half done."""

from __future__ import annotations

import io
import os
import pickle
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from torch import nn

import inference
from config import Config
from data.audio import AudioFormat, read_audio, write_audio
from data.segments import PROTOCOLS
from models import build
from models.checkpoint import save_checkpoint
from models.enhancer import Enhancer
from models.spectrogram import Spectra
from tests.fixtures.commands import ROOT, run_script
from tests.fixtures.signals import speech_like, with_noise

RATE = 16_000
NOISY = with_noise(speech_like(2.5), 5)
# Exact in 16 bits, and so in every larger format.
QUANTISED = np.rint(NOISY[:RATE] * 32_768) / 32_768
UNKNOWN_SIZE = b"\xff" * 4


def save(path: Path, samples: np.ndarray, rate: int = RATE, container: str = "WAV", subtype: str = "PCM_16") -> None:
    """Write `[N]` or `[N, channels]`."""
    samples = samples.reshape(len(samples), -1)
    write_audio(path, samples, AudioFormat(rate, samples.shape[1], container, subtype))


def load(path: Path) -> np.ndarray:
    return read_audio(path)[0]


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def problems_of(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on standard error, each a plain message."""
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
    return result.stderr.splitlines()


class Magnified(nn.Module):
    """Multiplies all magnitudes."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, spectra: Spectra) -> Spectra:
        return spectra._replace(mag=spectra.mag * self.factor)


class TooLarge(nn.Module):
    """Needs more memory than there is."""

    def forward(self, _: Spectra) -> Spectra:
        raise torch.OutOfMemoryError("needs 100 GB")


@pytest.fixture
def identity(config: Config) -> Enhancer:
    """Everything but a network."""
    return Enhancer(nn.Identity(), config)


def odd_recordings() -> dict[str, tuple[np.ndarray, AudioFormat]]:
    """Files that must work, by their path in the input folder: samples `[N, channels]` and format."""
    quiet = QUANTISED[:, None].astype(np.float32) / 4
    surround = np.concatenate([np.roll(quiet, 1000 * i, axis=0) for i in range(6)], axis=1)[:6000]
    surround[:, 3] = 0
    fast = NOISY[: RATE // 2, None]
    return {
        "one sample.wav": (np.full((1, 1), 0.5), AudioFormat(RATE, 1)),
        "one sample at 48 kHz.wav": (np.full((1, 2), 0.5), AudioFormat(48_000, 2)),
        "silence.wav": (np.zeros((40_000, 1)), AudioFormat(RATE, 1)),
        "silence at 44.1 kHz.wav": (np.zeros((20_000, 2)), AudioFormat(44_100, 2, "WAV", "PCM_24")),
        "rates/8.wav": (fast, AudioFormat(8000, 1)),
        "rates/44.wav": (fast, AudioFormat(44_100, 1)),
        "rates/96.wav": (fast, AudioFormat(96_000, 1, "WAV", "PCM_24")),
        "formats/float.wav": (4 * quiet, AudioFormat(RATE, 1, "WAV", "FLOAT")),
        "formats/double.wav": (4 * quiet, AudioFormat(RATE, 1, "WAV", "DOUBLE")),
        "formats/16.wav": (4 * quiet, AudioFormat(RATE, 1, "WAV", "PCM_16")),
        "formats/24.wav": (4 * quiet, AudioFormat(RATE, 1, "WAV", "PCM_24")),
        "formats/8.wav": (4 * quiet, AudioFormat(RATE, 1, "WAV", "PCM_U8")),
        "formats/c.flac": (4 * quiet, AudioFormat(RATE, 1, "FLAC", "PCM_16")),
        "formats/beyond full scale.wav": (64 * quiet, AudioFormat(RATE, 1, "WAV", "FLOAT")),
        "formats/surround.wav": (surround, AudioFormat(RATE, 6, "WAV", "PCM_24")),
        "formats/channel 2.wav": (surround[:, 2:3], AudioFormat(RATE, 1, "WAV", "PCM_24")),
        "formats/a.ogg": (fast, AudioFormat(RATE, 1, "OGG", "VORBIS")),
        "formats/b.mp3": (fast, AudioFormat(RATE, 1, "MP3", "MPEG_LAYER_III")),
        'naïve/it\'s "quoted" 鳥.flac': (fast, AudioFormat(RATE, 1, "FLAC", "PCM_24")),
        "naïve/.hidden/x.FLAC": (fast, AudioFormat(RATE, 1, "FLAC", "PCM_16")),
    }


def test_odd_recordings_come_out_whole(tmp_path: Path, small_checkpoint: Path) -> None:
    recordings = odd_recordings()
    for name, (samples, audio_format) in recordings.items():
        write_audio(tmp_path / "in" / name, samples, audio_format)
    (tmp_path / "in/notes.txt").write_text("not audio, and not called so", encoding="utf-8")
    arguments = ["--input_noisy_wavs_dir", "in", "--output_dir", "out", "--checkpoint_file", small_checkpoint]
    result = run_script("inference.py", *arguments, "--quiet", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    out = tmp_path / "out"
    assert files_below(out) == set(recordings)
    for name, (_, audio_format) in recordings.items():
        noisy, enhanced = load(tmp_path / "in" / name), load(out / name)
        assert read_audio(out / name)[1] == audio_format, name
        assert enhanced.shape == noisy.shape, name
        if "sample" not in name and "silence" not in name:
            assert np.abs(enhanced).max() > 1e-3, name
            assert np.abs(enhanced - noisy).max() > 1e-3, name
    assert not load(out / "silence.wav").any()
    assert not load(out / "silence at 44.1 kHz.wav").any()

    exact = load(out / "formats/float.wav")
    assert np.array_equal(load(out / "formats/double.wav"), exact)
    assert np.abs(exact).max() < 1
    np.testing.assert_allclose(load(out / "formats/16.wav"), exact, rtol=0, atol=0.51 / 2**15)
    np.testing.assert_allclose(load(out / "formats/24.wav"), exact, rtol=0, atol=0.51 / 2**23)
    np.testing.assert_allclose(load(out / "formats/c.flac"), exact, rtol=0, atol=0.51 / 2**15)
    # A level that is a power of two away changes no digit.
    np.testing.assert_allclose(load(out / "formats/beyond full scale.wav"), 16 * exact, rtol=1e-5)
    assert 16 * np.abs(exact).max() > 1

    surround = load(out / "formats/surround.wav")
    assert np.array_equal(surround[:, 2:3], load(out / "formats/channel 2.wav"))
    assert not surround[:, 3].any()


def test_peaks_are_clipped_not_wrapped(tmp_path: Path, config: Config) -> None:
    enhancer = Enhancer(Magnified(4**config.stft.compress_factor), config)
    noisy = QUANTISED[:8000]
    for subtype, bits in (("FLOAT", 0), ("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 24)):
        save(tmp_path / "in.wav", noisy, subtype=subtype)
        inference.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", enhancer, "overlap")
        loud = 4 * load(tmp_path / "in.wav")
        assert np.abs(loud).max() > 1.2
        if bits:
            loud = np.clip(loud, -1, 1 - 2.0 ** (1 - bits))
        error = np.abs(load(tmp_path / "out.wav") - loud).max()
        assert error < 1e-4 + (2.0**-bits if bits else 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("samples", [1, 255, 256, 30_699, 30_700, 30_701, 61_400, 100_001])
def test_no_seams(tmp_path: Path, identity: Enhancer, samples: int, protocol: str) -> None:
    noise = np.random.default_rng(samples).uniform(-0.5, 0.5, samples)
    save(tmp_path / "in.wav", noise, subtype="FLOAT")
    inference.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", identity, protocol)
    np.testing.assert_allclose(load(tmp_path / "out.wav"), load(tmp_path / "in.wav"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("samples", [3 * 30_700 - 1, 3 * 30_700, 3 * 30_700 + 1, 300_001])
def test_no_seams_at_another_rate(tmp_path: Path, identity: Enhancer, samples: int, protocol: str) -> None:
    seconds = np.arange(samples) / 48_000
    random = np.random.default_rng(samples)
    tones = [0.05 * np.sin(2 * np.pi * f * seconds + f) for f in random.uniform(50, 6500, 10)]
    # Nothing above the network's 8 kHz, and no edge that has something there.
    fade = np.sin(np.pi / 2 * np.clip(np.minimum(seconds, seconds[::-1]) / 0.1, 0, 1)) ** 2
    stereo = fade[:, None] * np.stack([np.sum(tones[:5], axis=0), np.sum(tones[5:], axis=0)], axis=1)
    save(tmp_path / "in.wav", stereo, 48_000, subtype="FLOAT")
    inference.enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", identity, protocol)
    result = load(tmp_path / "out.wav")
    assert result.shape == stereo.shape
    np.testing.assert_allclose(result, stereo, rtol=0, atol=1e-4)


MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
from torch import nn
import inference
from config import load_config
from data.audio import AudioFormat, AudioWriter
from models.enhancer import Enhancer

folder, seconds = Path(sys.argv[1]), int(sys.argv[2])
noise = np.random.default_rng(0).uniform(-0.1, 0.1, (48_000, 2)).astype(np.float32)
with AudioWriter(folder / "in.wav", AudioFormat(48_000, 2)) as writer:
    for _ in range(seconds):
        writer.write(noise)
enhancer = Enhancer(nn.Identity(), load_config(Path(sys.argv[3])))
inference.enhance_file(folder / "in.wav", folder / "out.wav", enhancer, "overlap")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    peaks: list[int] = []
    for minutes in (2, 10):
        arguments = [str(tmp_path), str(60 * minutes), str(ROOT / "configs/imse.json")]
        result = subprocess.run(
            [sys.executable, "-c", MEMORY_SCRIPT, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(result.stdout))
        assert soundfile.info(str(tmp_path / "out.wav")).frames == 60 * minutes * 48_000
    # In kB. The 8 minutes more are 184,000 kB as 32-bit samples, and a third of that at the network's rate.
    assert peaks[1] - peaks[0] < 20_000


def test_standard_input_to_standard_output(tmp_path: Path, small_checkpoint: Path) -> None:
    save(tmp_path / "in.wav", NOISY)
    piped = bytearray((tmp_path / "in.wav").read_bytes())
    piped[4:8] = piped[40:44] = UNKNOWN_SIZE
    common = ["--quiet", "--checkpoint_file", str(small_checkpoint)]
    result = subprocess.run(
        [sys.executable, ROOT / "inference.py", "--input_noisy_wavs_dir", "-", *common],
        input=piped,
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    # One file, whose folder is not a result's; the same samples as through the pipe.
    filed = run_script("inference.py", "--input_noisy_wavs_dir", "in.wav", "--output_dir", "out", *common, cwd=tmp_path)
    assert (filed.returncode, filed.stdout, filed.stderr) == (0, "", "")
    assert result.stdout == (tmp_path / "out/in.wav").read_bytes()


@pytest.mark.parametrize(
    ("content", "output", "code", "words"),
    [
        (b"", "pipe", 1, "standard input: the file is empty\n"),
        (b"no sound at all", "pipe", 1, "standard input: not an audio file that can be decoded"),
        (None, "full", 1, "standard input or output: No space left on device\n"),
        (None, "closed", 1, ""),
    ],
)
def test_pipes_that_fail(
    tmp_path: Path, small_checkpoint: Path, content: bytes | None, output: str, code: int, words: str
) -> None:
    if content is None:
        stream = io.BytesIO()
        soundfile.write(stream, np.tile(QUANTISED, 3), RATE, format="WAV")
        content = stream.getvalue()
    (tmp_path / "in").write_bytes(content)
    script = [sys.executable, str(ROOT / "inference.py"), "--input_noisy_wavs_dir", "-"]
    reading, writing = os.pipe()
    if output == "closed":
        os.close(reading)
    with (tmp_path / "in").open("rb") as source, Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*script, "--checkpoint_file", str(small_checkpoint)],
            stdin=source,
            stdout=full if output == "full" else writing,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            check=False,
        )
    os.close(writing)
    assert result.returncode == code
    assert result.stderr.startswith(words) if words else not result.stderr
    assert len(result.stderr.splitlines()) == bool(words)


def test_every_bad_file_is_named_and_the_others_are_done(tmp_path: Path, small_checkpoint: Path) -> None:
    folder = tmp_path / "in"
    save(folder / "good.wav", NOISY[:5000])
    save(folder / "last.wav", NOISY[:5000])
    whole = (folder / "good.wav").read_bytes()
    save(folder / "cut.flac", NOISY, container="FLAC")
    damaged = NOISY[:300].copy()
    damaged[200] = np.nan
    contents = {
        "text.wav": b"Dear diary,\n",
        "empty.wav": b"",
        "header.wav": whole[:30],
        "data.wav": whole[:3044],
        "no_samples.wav": whole[:4] + b"\x24\0\0\0" + whole[8:40] + bytes(4),
        "cut.flac": (folder / "cut.flac").read_bytes()[:20_000],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for name, value in (("nan.wav", np.nan), ("infinite.wav", np.inf), ("loud.wav", 1e30)):
        damaged[200] = value
        soundfile.write(folder / name, damaged, RATE, subtype="FLOAT")
    (folder / "folder.wav").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/nan.wav").write_bytes(b"of an earlier run")

    arguments = ["--input_noisy_wavs_dir", "in", "--output_dir", "out", "--checkpoint_file", small_checkpoint]
    result = run_script("inference.py", *arguments, "--quiet", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    expected = {
        "in/text.wav": "not an audio file that can be decoded",
        "in/empty.wav": "the file is empty",
        "in/header.wav": "cut short within the WAV header",
        "in/data.wav": "cut short: 1500 of 5000 samples a channel are there",
        "in/no_samples.wav": "holds no samples",
        "in/cut.flac": "broken or cut short",
        "in/nan.wav": "holds NaN or infinite samples (the first at sample 200)",
        "in/infinite.wav": "holds NaN or infinite samples (the first at sample 200)",
        "in/loud.wav": "holds overlarge samples (the first at sample 200)",
    }
    lines = dict(line.split(": ", 1) for line in problems_of(result))
    assert set(lines) == set(expected)
    for name, words in expected.items():
        assert lines[name].startswith(words)
    assert files_below(tmp_path / "out") == {"good.wav", "last.wav", "nan.wav"}
    assert len(load(tmp_path / "out/last.wav")) == 5000
    assert (tmp_path / "out/nan.wav").read_bytes() == b"of an earlier run"


def test_scores_and_what_cannot_be_scored(tmp_path: Path, small_checkpoint: Path) -> None:
    clean, noisy = speech_like(1.5), with_noise(speech_like(1.5), 10)
    for name in ("a/pair", "b/pair", "length", "rate", "no_noisy"):
        save(tmp_path / f"clean/{name}.flac", clean, container="FLAC")
    save(tmp_path / "noisy/a/pair.wav", noisy)
    save(tmp_path / "noisy/b/pair.wav", noisy)
    save(tmp_path / "noisy/b/pair.flac", noisy, container="FLAC")
    save(tmp_path / "noisy/length.wav", noisy[:-2000])
    save(tmp_path / "noisy/rate.wav", noisy, 8000)
    save(tmp_path / "noisy/no_clean.wav", noisy)
    arguments = ["--input_noisy_wavs_dir", "noisy", "--output_dir", "out", "--input_clean_wavs_dir", "clean"]
    result = run_script("inference.py", *arguments, "--checkpoint_file", small_checkpoint, "--quiet", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout.startswith("4 files, 2 failed")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "noisy")
    lines = problems_of(result)
    assert len(lines) == 5
    for words in (
        "clean/no_noisy.flac: has no noisy version",
        "out/no_clean.wav: has no clean version to score with",
        "length: the lengths differ: clean 24000, other 22000 samples",
        "rate: the rates differ: clean 16000 Hz, other 8000 Hz",
        "out/b/pair.wav: not scored: out/b/pair.flac has the same name 'b/pair'",
    ):
        assert any(line.startswith(words) for line in lines), (words, result.stderr)
    # The two pairs that can be scored.
    assert [line.split()[-1] for line in result.stdout.splitlines()[2:]] == ["2"] * 8


def run_main(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and standard error of the command in this process, for cases too many to start each anew."""
    monkeypatch.setattr(sys, "argv", ["inference.py", *map(str, arguments), "--quiet"])
    try:
        code = inference.main()
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    captured = capfd.readouterr()
    assert captured.out == ""
    return code, captured.err


@pytest.mark.parametrize(
    ("source", "output", "words"),
    [
        ("none", "out", "none: no such file or folder"),
        ("none.wav", "out", "none.wav: no such file or folder"),
        ("empty", "out", "empty: holds no audio files"),
        ("in", "in", "in: results would replace their inputs; choose another output folder"),
        ("in/a.wav", "in", "in: results would replace their inputs; choose another output folder"),
        ("in/sub/in", "in/sub", "in/sub: results would replace their inputs; choose another output folder"),
        ("in", "in/a.wav", "in/a.wav: cannot be written: File exists"),
        ("in", "in/a.wav/out", "in/a.wav/out: cannot be written: Not a directory"),
        ("in", "/proc/out", "/proc/out: cannot be written: No such file or directory"),
    ],
)
def test_folders_that_cannot_be_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    small_checkpoint: Path,
    source: str,
    output: str,
    words: str,
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("in/a.wav", "in/sub/in/a.wav", "in/sub/in/in/a.wav"):
        save(tmp_path / name, NOISY[:100])
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    arguments = ["--input_noisy_wavs_dir", source, "--output_dir", output]
    code, errors = run_main(monkeypatch, capfd, *arguments, "--checkpoint_file", small_checkpoint)
    assert (code, errors) == (2, f"{words}\n")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: --input_noisy_wavs_dir"),
        (["--input_noisy_wavs_dir", "in"], "--output_dir is needed"),
        (["--input_noisy_wavs_dir", "-", "--input_clean_wavs_dir", "in"], "standard input cannot be scored"),
        (["--input_noisy_wavs_dir", "-", "--device", "gpu"], "--device gpu: cannot be used"),
        (["--input_noisy_wavs_dir", "-", "--protocol", "none"], "invalid choice: 'none'"),
        (["--input_noisy_wavs_dir", "-", "--checkpoint_file", "none"], "none: the checkpoint cannot be read"),
    ],
)
def test_wrong_command_lines(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, errors = run_main(monkeypatch, capfd, *arguments)
    assert code == 2
    assert words in errors
    assert len(errors.splitlines()) == 1


def test_results_may_lie_within_or_above_the_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    small_checkpoint: Path,
) -> None:
    save(tmp_path / "in/sub/a.wav", NOISY[:100])
    monkeypatch.chdir(tmp_path)
    checkpoint = ["--checkpoint_file", small_checkpoint]
    # Twice: the results of the first time are no inputs of the second.
    for _ in range(2):
        within = ["--input_noisy_wavs_dir", "in", "--output_dir", "in/out"]
        assert run_main(monkeypatch, capfd, *within, *checkpoint) == (0, "")
        assert files_below(tmp_path) == {"in/sub/a.wav", "in/out/sub/a.wav"}
    above = ["--input_noisy_wavs_dir", "in/sub/a.wav", "--output_dir", "."]
    assert run_main(monkeypatch, capfd, *above, *checkpoint) == (0, "")
    assert files_below(tmp_path) == {"in/sub/a.wav", "in/out/sub/a.wav", "a.wav"}


def test_a_full_disk_fails_its_file_only(tmp_path: Path, identity: Enhancer) -> None:
    save(tmp_path / "in/a.wav", np.tile(NOISY, 2))
    save(tmp_path / "in/b.wav", NOISY[:100])
    jobs = [(tmp_path / "in" / name, tmp_path / "out" / name) for name in ("a.wav", "b.wav")]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        done, problems = inference.enhance_files(jobs, identity, "overlap")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert done == [tmp_path / "out/b.wav"]
    assert problems == [f"{tmp_path}/out/a.wav: cannot be written as WAV PCM_16 (File too large)"]
    assert files_below(tmp_path / "out") == {"b.wav"}


def test_a_network_that_fails_is_no_result(tmp_path: Path, config: Config) -> None:
    save(tmp_path / "in.wav", NOISY[:100])
    jobs = [(tmp_path / "in.wav", tmp_path / "out/in.wav")]
    for network, words in (
        (
            Magnified(torch.nan),
            f"{tmp_path}/out/in.wav: not written: the result holds NaN or infinite samples",
        ),
        (TooLarge(), f"{tmp_path}/in.wav: the memory is too small for it with --protocol whole"),
    ):
        assert inference.enhance_files(jobs, Enhancer(network, config), "whole") == ([], [words])
        assert files_below(tmp_path) == {"in.wav"}


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def bad_checkpoints(folder: Path, config: Config, small: Path) -> dict[str, str]:
    """Write them; the words that each must be refused with, by file name."""
    network = build(config)
    weights = network.state_dict()
    first = next(iter(weights))
    other = replace(config, model=replace(config.model, channels=16))
    metadata = safetensors.safe_open(small, "pt").metadata()
    (folder / "text").write_text("These are not weights.\n", encoding="utf-8")
    (folder / "empty").touch()
    (folder / "cut.safetensors").write_bytes(small.read_bytes()[:-1000])
    (folder / "cut_header.safetensors").write_bytes(small.read_bytes()[:200])
    torch.save({"generator": weights}, folder / "foreign")
    (folder / "cut_zip").write_bytes((folder / "foreign").read_bytes()[:-1000])
    torch.save({"model": weights}, folder / "no_generator")
    with (folder / "pickle").open("wb") as stream:
        pickle.dump({"generator": Code(str(folder / "executed"))}, stream)
    torch.save({"generator": Code(str(folder / "executed"))}, folder / "zip_with_code")
    safetensors.torch.save_file(weights, folder / "no_config.safetensors")
    safetensors.torch.save_file(weights, folder / "bad_config.safetensors", {"config": "{]"})
    renamed = {f"other.{name}": tensor for name, tensor in weights.items()}
    safetensors.torch.save_file(renamed, folder / "names.safetensors", metadata)
    save_checkpoint(folder / "shapes.safetensors", network, other)
    weights[first] = weights[first] * torch.nan
    safetensors.torch.save_file(weights, folder / "nan.safetensors", metadata)
    with ZipFile(folder / "archive", "w") as archive:
        archive.writestr("notes.txt", "These are not weights.")
    return {
        "text": "not a checkpoint, or cut short",
        "empty": "not a checkpoint, or cut short",
        "cut.safetensors": "a safetensors file, but damaged or cut short",
        "cut_header.safetensors": "a safetensors file, but damaged or cut short",
        "cut_zip": "not a checkpoint, or cut short",
        "archive": "not a checkpoint, or cut short",
        "foreign": "holds another network's tensors",
        "no_generator": "a torch file without a 'generator' state dict",
        "pickle": "not a checkpoint, or cut short; nothing in it was executed",
        "zip_with_code": "not a checkpoint, or cut short; nothing in it was executed",
        "no_config.safetensors": "holds weights without a configuration",
        "bad_config.safetensors": "",
        "names.safetensors": "another network's weights",
        "shapes.safetensors": "has shape",
        "nan.safetensors": f"'{first}' holds NaN or infinite weights",
    }


def test_checkpoints_that_cannot_be_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    small_config: Config,
    small_checkpoint: Path,
) -> None:
    expected = bad_checkpoints(tmp_path, small_config, small_checkpoint)
    for name, words in expected.items():
        path = tmp_path / name
        code, errors = run_main(monkeypatch, capfd, "--input_noisy_wavs_dir", "-", "--checkpoint_file", path)
        assert code == 2, name
        assert errors.startswith(str(path)), errors
        assert words in errors
        assert len(errors.splitlines()) == 1, errors
    assert not (tmp_path / "executed").exists()


def test_a_bad_checkpoint_has_no_traceback(tmp_path: Path) -> None:
    with (tmp_path / "pickle").open("wb") as stream:
        pickle.dump({"generator": Code(str(tmp_path / "executed"))}, stream)
    arguments = ["--input_noisy_wavs_dir", "in", "--output_dir", "out", "--checkpoint_file", "pickle"]
    result = run_script("inference.py", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert [line.split(":")[0] for line in problems_of(result)] == ["pickle"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pickle"]
