"""`inference.py --stream`: live sound through pipes, and odd inputs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import cli
import inference
from data.audio import read_audio
from metrics.pesq import wideband_pesq
from metrics.si_sdr import si_sdr
from models.checkpoint import load_checkpoint
from tests.enhance.test_stdio import standard_files
from tests.fixtures.commands import ROOT
from tests.fixtures.networks import one_pass
from tests.fixtures.recordings import RATE
from tests.fixtures.signals import speech_like, with_noise

TIMEOUT = 60  # seconds, for a busy machine


def to_pcm(samples: np.ndarray) -> bytes:
    return np.clip(np.rint(samples * 32_768), -32_768, 32_767).astype("<i2").tobytes()


NOISY = to_pcm(with_noise(speech_like(1), 5))
CLIPPED = to_pcm(40 * with_noise(speech_like(0.5), 5))


def to_wav(pcm: bytes, rate: int = RATE) -> bytes:
    file = BytesIO()
    soundfile.write(file, np.frombuffer(pcm, "<i2"), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def assert_as_in_one_pass(enhanced: bytes, checkpoint: Path, noisy: bytes) -> None:
    samples = np.frombuffer(noisy, "<i2").astype(np.float32) / 32_768
    expected = to_pcm(one_pass(*load_checkpoint(checkpoint), samples))
    difference = np.frombuffer(enhanced, "<i2").astype(int) - np.frombuffer(expected, "<i2")
    assert np.abs(difference).max(initial=0) <= 2


def test_a_live_block_is_too_little_work_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert inference.parse_arguments(["--stream"]).device == "cpu"


@contextmanager
def started(checkpoint: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, ROOT / "inference.py", "--stream", "--checkpoint_file", checkpoint, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_samples_come_out_while_others_go_in(lite_checkpoint: Path) -> None:
    with started(lite_checkpoint) as process:
        assert process.stdin and process.stdout and process.stderr
        random = np.random.default_rng(0)
        enhanced = b""
        sent = 0
        while sent < len(NOISY) // 2:
            size = int(random.choice([1, 2, 511, 512, 5000]))
            sent += process.stdin.write(NOISY[sent : sent + size])
            process.stdin.flush()
            # All but the last whole hop of 256 samples and what is beyond it; the input is still open.
            ready = 2 * 256 * max(0, sent // 2 // 256 - 1)
            enhanced += process.stdout.read(ready - len(enhanced))
            assert len(enhanced) == ready
        rest, errors = process.communicate(NOISY[sent:], timeout=TIMEOUT)
    assert process.returncode == 0
    assert b"16000 Hz, 32 ms" in errors
    assert_as_in_one_pass(enhanced + rest, lite_checkpoint, NOISY)


def test_ctrl_c(lite_checkpoint: Path) -> None:
    with started(lite_checkpoint, "--quiet") as process:
        assert process.stdin and process.stdout
        process.stdin.write(NOISY[:2048])
        process.stdin.flush()
        assert len(process.stdout.read(1536)) == 1536
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, rest, errors) == (130, b"", b"interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("noisy", [NOISY, to_wav(NOISY)], ids=["raw", "wav"])
def test_closed_output(lite_checkpoint: Path, noisy: bytes) -> None:
    with started(lite_checkpoint, "--quiet") as process:
        assert process.stdout
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(noisy, timeout=TIMEOUT)
    assert (process.returncode, errors) == (1, b"")


Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command in this process with files as its standard input and output."""

    def run(noisy: bytes | None, *options: object, output: str = "stdout") -> tuple[int, bytes, str]:
        """Return exit code, standard output, standard error. Without `noisy`, standard input is closed."""
        with standard_files(tmp_path, noisy, output) as target:
            code = cli.call(inference.main, ["--stream", *map(str, options)])
        return code, target.read_bytes() if output == "stdout" else b"", capfd.readouterr().err

    return run


@pytest.mark.parametrize("noisy", [b"", NOISY[:2], NOISY[:8000], bytes(5000), CLIPPED], ids=len)
def test_inputs_of_any_length_and_level(run: Run, lite_checkpoint: Path, noisy: bytes) -> None:
    code, enhanced, errors = run(noisy, "--quiet", "--checkpoint_file", lite_checkpoint)
    assert (code, errors) == (0, "")
    assert len(enhanced) == len(noisy)
    assert any(enhanced) == any(noisy)
    assert_as_in_one_pass(enhanced, lite_checkpoint, noisy)


def test_an_input_that_ends_within_a_sample(run: Run, lite_checkpoint: Path) -> None:
    code, enhanced, errors = run(NOISY[:5001], "--quiet", "--checkpoint_file", lite_checkpoint)
    assert (code, errors.count("\n")) == (1, 1)
    assert errors.startswith("standard input: ")
    assert_as_in_one_pass(enhanced, lite_checkpoint, NOISY[:5000])


def test_full_disk_and_closed_input(run: Run, lite_checkpoint: Path) -> None:
    code, _, errors = run(NOISY, "--quiet", "--checkpoint_file", lite_checkpoint, output="/dev/full")
    assert (code, errors) == (1, "standard input or output: No space left on device\n")
    code, _, errors = run(None, "--quiet", "--checkpoint_file", lite_checkpoint)
    assert (code, errors) == (1, "standard input or output: closed\n")


def test_the_embedded_checkpoint_improves_the_samples(run: Run) -> None:
    path = min((ROOT / "samples" / "noisy").iterdir())
    noisy, clean = (read_audio(each, RATE)[0][:, 0] for each in (path, ROOT / "samples" / "clean" / path.name))
    code, pcm, errors = run(to_pcm(noisy))
    assert code == 0
    assert "50.625 ms" in errors
    enhanced = np.frombuffer(pcm, "<i2") / 32_768
    assert wideband_pesq(clean, enhanced) > wideband_pesq(clean, noisy)
    assert si_sdr(clean, enhanced) > si_sdr(clean, noisy) + 0.5


@pytest.mark.parametrize(("environment", "threads"), [(None, 1), ("2", 2)])
def test_one_thread_by_default(
    run: Run, lite_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, environment: str | None, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    torch.set_num_threads(2)  # as PyTorch does itself, with two cores or by OMP_NUM_THREADS
    assert run(b"", "--checkpoint_file", lite_checkpoint)[0] == 0
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("pace", "warned"), [(0.1, False), (3.0, True)])
def test_a_warning_if_computing_takes_longer_than_the_sound(
    run: Run, lite_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, pace: float, warned: bool
) -> None:
    """By a clock that advances by `pace` in each reading. The sound comes in pieces of 12 bytes, then of 2.05 s."""
    clock = count()
    monkeypatch.setattr(inference.time, "perf_counter", lambda: pace * next(clock))
    _, _, errors = run(bytes(7 * 2 * RATE), "--checkpoint_file", lite_checkpoint)
    assert errors.count("slower than live: 2.0 s") == warned
    assert errors.count("\n") == 1 + warned
