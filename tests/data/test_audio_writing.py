"""Audio files written: exact where the format allows, never wrapped, and whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

import data.audio
from data.audio import (
    BLOCK_FRAMES,
    AudioError,
    AudioFormat,
    AudioWriter,
    read_audio,
    write_audio,
)
from tests.fixtures.recordings import NOISE, RAMP, RATE


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk does, at any byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FailingStream(io.BytesIO):
    """Fails at one of its writes, and goes on as if nothing had been; counts them."""

    def __init__(self, failing_write: int) -> None:
        super().__init__()
        self.failing_write = failing_write
        self.writes = 0

    def write(self, data: object, /) -> int:
        self.writes += 1
        if self.writes == self.failing_write:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().write(data)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("container", "subtype", "bits"),
    [
        ("WAV", "PCM_U8", 8),
        ("WAV", "PCM_16", 16),
        ("WAV", "PCM_24", 24),
        ("WAV", "PCM_32", 32),
        ("WAVEX", "PCM_16", 16),
        ("W64", "PCM_24", 24),
        ("RF64", "PCM_16", 16),
        ("AIFF", "PCM_S8", 8),
        ("AIFF", "PCM_24", 24),
        ("AU", "PCM_16", 16),
        ("CAF", "PCM_16", 16),
        ("CAF", "ALAC_16", 16),
        ("FLAC", "PCM_S8", 8),
        ("FLAC", "PCM_16", 16),
        ("FLAC", "PCM_24", 24),
    ],
)
def test_integers_are_rounded_and_clipped(tmp_path: Path, container: str, subtype: str, bits: int) -> None:
    path = tmp_path / "ramp"
    write_audio(path, RAMP, AudioFormat(RATE, 1, container, subtype))
    samples, found = read_audio(path)
    assert found == AudioFormat(RATE, 1, container, subtype)
    full = 2.0 ** (bits - 1)
    expected = np.clip(np.rint(RAMP.astype(np.float64) * full), -full, full - 1) / full
    # libsndfile's own conversion, for ALAC, has a full scale of one step less.
    steps = 1 if subtype.startswith("ALAC") else 0
    np.testing.assert_allclose(samples, expected.astype(np.float32), rtol=0, atol=steps / full)
    assert samples.min() == -1 if not steps else samples.min() < -0.9999
    # Written once more, nothing moves.
    again = tmp_path / "again"
    write_audio(again, samples, found)
    if not steps:
        assert np.array_equal(read_audio(again)[0], samples)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_keep_what_is_beyond_full_scale(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / "ramp.wav"
    write_audio(path, 100 * RAMP, AudioFormat(RATE, 1, "WAV", subtype))
    samples, found = read_audio(path)
    assert np.array_equal(samples, 100 * RAMP)
    assert found.subtype == subtype


@pytest.mark.parametrize(
    ("container", "subtype", "error"),
    [("WAV", "ULAW", 0.02), ("WAV", "ALAW", 0.02), ("OGG", "VORBIS", 0.1), ("MP3", "MPEG_LAYER_III", 0.1)],
)
def test_lossy_formats_never_wrap(tmp_path: Path, container: str, subtype: str, error: float) -> None:
    path = tmp_path / "tone"
    tone = 2 * np.sin(np.arange(24_000) * 2 * np.pi * 300 / RATE).astype(np.float32)[:, None]
    write_audio(path, tone, AudioFormat(RATE, 1, container, subtype))
    samples, found = read_audio(path)
    assert found == AudioFormat(RATE, 1, container, subtype)
    assert len(samples) == len(tone)
    np.testing.assert_allclose(samples[500:-500], np.clip(tone, -1, 1)[500:-500], rtol=0, atol=error)


def test_channels_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "surround.wav"
    surround = np.arange(60, dtype=np.float32).reshape(10, 6) / 64
    write_audio(path, surround, AudioFormat(48_000, 6, "WAV", "PCM_24"))
    samples, found = read_audio(path)
    assert np.array_equal(samples, surround)
    assert (found.rate, found.channels) == (48_000, 6)


def test_encoders_get_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = soundfile.SoundFile.write

    def spy(self: soundfile.SoundFile, samples: np.ndarray) -> None:
        sizes.append(len(samples))
        write(self, samples)

    monkeypatch.setattr(soundfile.SoundFile, "write", spy)
    with AudioWriter(tmp_path / "long.ogg", AudioFormat(RATE, 1, "OGG", "VORBIS")) as writer:
        writer.write(np.zeros((2 * BLOCK_FRAMES + 1, 1), np.float32))
    assert sizes == [BLOCK_FRAMES, BLOCK_FRAMES, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_file_is_written_with_samples_that_are_not_numbers(tmp_path: Path, value: float) -> None:
    path = tmp_path / "out.wav"
    samples = NOISE.copy()
    samples[-1] = value
    for subtype in ("PCM_16", "FLOAT"):
        with pytest.raises(AudioError, match=r"out\.wav: not written: the result holds NaN or infinite samples"):
            write_audio(path, samples, AudioFormat(RATE, 1, "WAV", subtype))
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"out: cannot be written as MP3 MPEG_LAYER_II \(.+\)$"):
        write_audio(tmp_path / "out", NOISE, AudioFormat(RATE, 1, "MP3", "MPEG_LAYER_II"))
    (tmp_path / "file").touch()
    with pytest.raises(AudioError, match=r"out.wav: cannot be written as WAV PCM_16 \(File exists\)$"):
        write_audio(tmp_path / "file/out.wav", NOISE, AudioFormat(RATE, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"earlier")
    with pytest.raises(ZeroDivisionError), AudioWriter(path, AudioFormat(RATE, 1)) as writer:
        writer.write(NOISE)
        raise ZeroDivisionError
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]
    write_audio(path, NOISE, AudioFormat(RATE, 1))
    assert len(read_audio(path)[0]) == len(NOISE)


CONTAINERS = [
    ("WAV", "PCM_16"),
    ("WAV", "FLOAT"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("AIFF", "PCM_16"),
    ("CAF", "PCM_16"),
    ("W64", "PCM_16"),
]


@pytest.mark.parametrize(("container", "subtype"), CONTAINERS)
def test_a_full_disk_is_noticed_at_every_byte(tmp_path: Path, container: str, subtype: str) -> None:
    audio_format = AudioFormat(RATE, 1, container, subtype)
    samples = NOISE[:9000]
    write_audio(tmp_path / "whole", samples, audio_format)
    size = (tmp_path / "whole").stat().st_size
    path = tmp_path / "out"
    path.write_bytes(b"earlier")
    for limit in (0, 20, size // 2, size - 600, size - 20, size - 1):
        with (
            files_limited_to(limit),
            pytest.raises(AudioError, match=rf"out: cannot be written as {container} {subtype} \(File too large\)"),
        ):
            write_audio(path, samples, audio_format)
        assert path.read_bytes() == b"earlier"
        assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "whole"]
    with files_limited_to(size + 100):
        write_audio(path, samples, audio_format)
    assert len(read_audio(path)[0]) == len(samples)


@pytest.mark.parametrize(("container", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")])
def test_a_small_disk_is_full(tmp_path: Path, container: str, subtype: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a file system")
    try:
        with pytest.raises(AudioError, match=r"cannot be written as .* \(No space left on device\)$"):
            write_audio(disk / "out", np.tile(NOISE, (10, 1)), AudioFormat(RATE, 1, container, subtype))
        assert list(disk.iterdir()) == []
        write_audio(disk / "out", NOISE[:9000], AudioFormat(RATE, 1, container, subtype))
        assert len(read_audio(disk / "out")[0]) == 9000
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("container", "subtype"), CONTAINERS)
def test_a_device_that_fails_once_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str, subtype: str
) -> None:
    stream = FailingStream(failing_write=0)
    taken: list[bytes] = []

    @contextmanager
    def atomic_open(_: Path) -> Iterator[io.BytesIO]:
        yield stream
        taken.append(stream.getvalue())

    monkeypatch.setattr(data.audio, "atomic_open", atomic_open)
    audio_format = AudioFormat(RATE, 1, container, subtype)
    write_audio(tmp_path / "out", NOISE[:9000], audio_format)
    assert len(taken) == 1
    # The header, the samples, what is written at closing: each must count.
    for failing_write in range(1, stream.writes + 1):
        stream = FailingStream(failing_write)
        with pytest.raises(AudioError, match=rf"as {container} {subtype} \(Input/output error\)$"):
            write_audio(tmp_path / "out", NOISE[:9000], audio_format)
    assert len(taken) == 1


def test_a_full_disk_ends_a_long_file_early(tmp_path: Path) -> None:
    written = 0
    with (
        files_limited_to(300_000),
        pytest.raises(AudioError, match="File too large"),
        AudioWriter(tmp_path / "out.wav", AudioFormat(RATE, 1)) as writer,
    ):
        for _ in range(100):
            writer.write(NOISE)
            written += 1
    assert written == 3
    assert list(tmp_path.iterdir()) == []
