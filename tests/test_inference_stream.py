"""`inference.py --stream` as a user runs it: sound through pipes, while it comes; and inputs that are odd."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import inference
from config import load_config
from data.audio import AudioError, read_audio
from enhance.enhancer import Enhancer, LevelMeter
from enhance.stdio import pipe_pcm
from metrics.pesq import wideband_pesq
from metrics.si_sdr import si_sdr
from models import build
from models.checkpoint import load_checkpoint, save_checkpoint
from tests.fixtures.commands import ROOT
from tests.fixtures.recordings import RATE
from tests.fixtures.signals import speech_like, with_noise

TIMEOUT = 60  # seconds; for a machine that is busy with other things
LATENCY = "live at 16000 Hz, 32 ms behind\n"


def to_pcm(samples: np.ndarray) -> bytes:
    return np.clip(np.rint(samples * 32_768), -32_768, 32_767).astype("<i2").tobytes()


NOISY = to_pcm(with_noise(speech_like(2.5), 5))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that streams, with seeded random weights."""
    config = load_config(ROOT / "configs" / "lite_rtse.json")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "lite_rtse.safetensors"
    save_checkpoint(path, build(config), config)
    return path


def steps_in_one_pass(checkpoint: Path, noisy: bytes) -> np.ndarray:
    """What should come out, in steps of 16 bits."""
    blocks = [np.frombuffer(noisy, "<i2").astype(np.float32)[:, None] / 32_768]
    enhancer = Enhancer(*load_checkpoint(checkpoint))
    samples = np.concatenate(list(enhancer.enhance(blocks, LevelMeter().measure(blocks), "whole")))[:, 0]
    return np.frombuffer(to_pcm(samples), "<i2").astype(int)


def assert_as_in_one_pass(enhanced: bytes, checkpoint: Path, noisy: bytes) -> None:
    expected = steps_in_one_pass(checkpoint, noisy)
    steps = np.frombuffer(enhanced, "<i2")
    assert steps.shape == expected.shape
    # Rounding may fall either way.
    assert np.abs(steps - expected).max() <= 1


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


def test_sound_comes_out_while_it_goes_in(checkpoint: Path) -> None:
    with started(checkpoint) as process:
        assert process.stdin and process.stdout and process.stderr
        random = np.random.default_rng(0)
        enhanced = b""
        sent = 0
        while sent < len(NOISY) // 2:
            size = int(random.choice([1, 2, 511, 512, 5000]))
            sent += process.stdin.write(NOISY[sent : sent + size])
            process.stdin.flush()
            # By hand: all but the last whole hop of 256 samples and what is beyond; the input is still open.
            ready = 2 * 256 * max(0, sent // 2 // 256 - 1)
            enhanced += process.stdout.read(ready - len(enhanced))
            assert len(enhanced) == ready
        rest, errors = process.communicate(NOISY[sent:], timeout=TIMEOUT)
    assert process.returncode == 0
    assert errors.decode() == LATENCY
    assert_as_in_one_pass(enhanced + rest, checkpoint, NOISY)


def test_ctrl_c_ends_it(checkpoint: Path) -> None:
    with started(checkpoint, "--quiet") as process:
        assert process.stdin and process.stdout
        process.stdin.write(NOISY[:2048])
        process.stdin.flush()
        assert len(process.stdout.read(1536)) == 1536
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, rest, errors) == (130, b"", b"interrupted\n")


def test_a_listener_who_leaves_ends_it(checkpoint: Path) -> None:
    with started(checkpoint, "--quiet") as process:
        assert process.stdout
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate(NOISY, timeout=TIMEOUT)
    assert (process.returncode, errors) == (1, b"")


class Run:
    """The command in this process, with files for its standard input and output."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capfd = folder, monkeypatch, capfd

    def __call__(self, noisy: bytes, *options: object, output: str = "out") -> tuple[int, bytes, str]:
        """Exit code, standard output, standard error."""
        (self.folder / "in").write_bytes(noisy)
        target = self.folder / output
        with self.monkeypatch.context() as patch, (self.folder / "in").open() as stdin, target.open("w") as stdout:
            patch.setattr(sys, "argv", ["inference.py", "--stream", *map(str, options)])
            patch.setattr(sys, "stdin", stdin)
            patch.setattr(sys, "stdout", stdout)
            try:
                code = inference.main()
            except SystemExit as end:
                assert isinstance(end.code, int)
                code = end.code
        return code, b"" if output != "out" else target.read_bytes(), self.capfd.readouterr().err


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # leaves the threads of the other tests alone
    return Run(tmp_path, monkeypatch, capfd)


@pytest.mark.parametrize("samples", [0, 1, 255, 256, 257, 4000])
def test_inputs_of_any_length(run: Run, checkpoint: Path, samples: int) -> None:
    code, enhanced, errors = run(NOISY[: 2 * samples], "--quiet", "--checkpoint_file", checkpoint)
    assert (code, errors) == (0, "")
    assert len(enhanced) == 2 * samples
    if samples:
        assert_as_in_one_pass(enhanced, checkpoint, NOISY[: 2 * samples])


def test_silence_stays_silent(run: Run, checkpoint: Path) -> None:
    silence = bytes(2 * 5000)
    assert run(silence, "--checkpoint_file", checkpoint) == (0, silence, LATENCY)


def test_clipped_sound(run: Run, checkpoint: Path) -> None:
    clipped = to_pcm(40 * with_noise(speech_like(1), 5))
    assert np.mean(np.abs(np.frombuffer(clipped, "<i2").astype(int)) >= 32_767) > 0.3
    code, enhanced, errors = run(clipped, "--quiet", "--checkpoint_file", checkpoint)
    assert (code, errors) == (0, "")
    assert_as_in_one_pass(enhanced, checkpoint, clipped)


def test_an_input_that_ends_within_a_sample(run: Run, checkpoint: Path) -> None:
    code, enhanced, errors = run(NOISY[:5001], "--quiet", "--checkpoint_file", checkpoint)
    assert (code, errors) == (1, "standard input: ends within a sample; give raw PCM of 16 bits, one channel\n")
    assert_as_in_one_pass(enhanced, checkpoint, NOISY[:5000])


def test_a_full_disk(run: Run, checkpoint: Path) -> None:
    code, _, errors = run(NOISY, "--quiet", "--checkpoint_file", checkpoint, output="/dev/full")
    assert (code, errors) == (1, "standard input or output: No space left on device\n")


def test_closed_standard_input(run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["inference.py", "--stream", "--quiet", "--checkpoint_file", str(checkpoint)])
    monkeypatch.setattr(sys, "stdin", None)
    assert inference.main() == 1
    assert run.capfd.readouterr().err == "standard input or output: closed\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--output_dir", "out"], "--output_dir: not with --stream"),
        (["--input_noisy_wavs_dir", "-"], "--input_noisy_wavs_dir: not with --stream"),
        (["--input_clean_wavs_dir", "in", "--protocol", "overlap"], "--input_clean_wavs_dir, --protocol: not with --s"),
    ],
)
def test_options_for_files(run: Run, options: list[str], words: str) -> None:
    code, enhanced, errors = run(NOISY, *options)
    assert (code, enhanced) == (2, b"")
    assert errors.startswith(f"inference.py: {words}")
    assert len(errors.splitlines()) == 1


def test_without_a_checkpoint_the_embedded_one_cleans_the_samples(run: Run) -> None:
    for path in sorted((ROOT / "samples" / "noisy").iterdir()):
        noisy, clean = (read_audio(each, RATE)[0][:, 0] for each in (path, ROOT / "samples" / "clean" / path.name))
        code, pcm, errors = run(to_pcm(noisy))
        assert (code, errors) == (0, LATENCY)
        enhanced = np.frombuffer(pcm, "<i2") / 32_768
        assert wideband_pesq(clean, enhanced) > wideband_pesq(clean, noisy)
        assert si_sdr(clean, enhanced) > si_sdr(clean, noisy) + 0.5


def test_a_checkpoint_that_cannot_stream(run: Run, small_checkpoint: Path) -> None:
    words = "IMSE cannot stream: it needs the whole signal; give a causal network, as Lite-RTSE\n"
    assert run(NOISY, "--checkpoint_file", small_checkpoint) == (2, b"", words)


@pytest.mark.parametrize(("environment", "threads"), [(None, 1), ("2", 2)])
def test_one_thread_unless_the_user_wants_more(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, environment: str | None, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # as torch does itself, on a machine with two cores or by OMP_NUM_THREADS
    try:
        assert run(b"", "--checkpoint_file", checkpoint)[0] == 0
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@contextmanager
def standard_files(folder: Path, content: bytes) -> Iterator[None]:
    (folder / "in").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch, (folder / "in").open() as stdin, (folder / "out").open("w") as stdout:
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stdout", stdout)
        yield


def test_pcm_by_hand(tmp_path: Path) -> None:
    heard: list[np.ndarray] = []

    def process(samples: np.ndarray) -> np.ndarray:
        heard.append(samples)
        return np.array([0.5, -0.5, 1.4 / 32_768, 1.6 / 32_768, -1.6 / 32_768], np.float32)

    with standard_files(tmp_path, b"\x00\x40\xff\xff\x00\x80"):
        pipe_pcm(process, lambda: np.array([1.5, -1.5], np.float32))
    assert np.array_equal(np.concatenate(heard), [0.5, -1 / 32_768, -1])
    written = b"\x00\x40\x00\xc0\x01\x00\x02\x00\xfe\xff"
    # Beyond full scale is clipped.
    assert (tmp_path / "out").read_bytes() == written + b"\xff\x7f\x00\x80"


def test_a_result_that_is_no_number_ends_it(tmp_path: Path) -> None:
    samples = np.array([0.0, np.nan], np.float32)
    with standard_files(tmp_path, b"1234"), pytest.raises(AudioError, match="the result holds NaN or infinite"):
        pipe_pcm(lambda _: samples, lambda: samples)
    assert (tmp_path / "out").read_bytes() == b""
