"""Audio files at their edges: what is read, what is refused, and resampling."""

from __future__ import annotations

import errno
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.audio import (
    AudioError,
    AudioFormat,
    AudioReader,
    fit_length,
    read_audio,
    resample_blocks,
    write_audio,
)
from tests.fixtures.recordings import NOISE, RATE


def encoded(samples: np.ndarray, container: str = "WAV", subtype: str = "PCM_16", rate: int = RATE) -> bytes:
    """A file's bytes, by libsndfile alone."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=container, subtype=subtype)
    return stream.getvalue()


def wav(
    frames: int,
    riff_size: int | None = None,
    data_size: int | None = None,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A 16-bit mono WAV of the samples 0, 1, 2 …, with chunks around them and any sizes in the header."""
    samples = np.arange(frames, dtype="<i2").tobytes()
    form = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16) + before
    body = samples + after
    data_size = len(samples) if data_size is None else data_size
    riff_size = len(form) + 8 + len(body) if riff_size is None else riff_size
    return b"RIFF" + struct.pack("<I", riff_size) + form + b"data" + struct.pack("<I", data_size) + body


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def refused(path: Path) -> str:
    """What a reader says of a file that it must not take, without the file's name at the front."""
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("riff_size", "data_size"),
    [
        (0xFFFF_FFFF, 0xFFFF_FFFF),  # ffmpeg
        (0x7FFF_F024, 0x7FFF_F000),  # sox
        (0x8000_0024, 0x8000_0000),  # arecord
        (0, 0),
        (36, 0),  # Python's wave
        (0xFFFF_FFFF, 0),
    ],
)
def test_wav_headers_as_written_to_pipes(tmp_path: Path, riff_size: int, data_size: int) -> None:
    path = tmp_path / "piped.wav"
    comment = chunk(b"LIST", b"INFOISFT\x0d\0\0\0Lavf61.7.100\0\0")
    path.write_bytes(wav(30_000, riff_size, data_size, before=comment))
    samples, _ = read_audio(path)
    assert np.array_equal(samples[:, 0] * 32_768, np.arange(30_000))


def test_wav_with_chunks_around_the_samples(tmp_path: Path) -> None:
    path = tmp_path / "chunks.wav"
    path.write_bytes(wav(777, before=chunk(b"JUNK", bytes(31)), after=chunk(b"LIST", b"INFO")))
    samples, _ = read_audio(path)
    assert np.array_equal(samples[:, 0] * 32_768, np.arange(777))


def test_flac_of_unknown_length(tmp_path: Path) -> None:
    content = bytearray(encoded(NOISE, "FLAC"))
    # STREAMINFO at byte 8; its 36 bits for the number of samples end at byte 18.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path = tmp_path / "piped.flac"
    path.write_bytes(content)
    with AudioReader(path) as reader:
        blocks = list(reader.blocks(7000))
        assert [len(block) for block in blocks] == [7000] * 6 + [6000]
        assert reader.frames == len(NOISE)
    np.testing.assert_allclose(np.concatenate(blocks), NOISE, rtol=0, atol=2**-15)


@pytest.mark.parametrize("name", ['it\'s "odd" name.wav', "鳥の声 ü.wav", os.fsdecode(b"caf\xe9.wav"), "a\tb.wav"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_audio(path, NOISE[:10], AudioFormat(RATE, 1))
    assert len(read_audio(path)[0]) == 10
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_sound_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.wav"
    whole = wav(1000)
    damaged = {index: NOISE[:100].copy() for index in (0, 77)}
    damaged[0][0] = np.inf
    damaged[77][77] = np.nan
    loud = NOISE[:100].copy()
    loud[5] = -1e30
    contents = {
        "the file is empty": b"",
        "not an audio file that can be decoded (Format not recognised)": b"Dear diary,\n" * 100,
        "cut short within the WAV header: no samples are there": whole[:30],
        "cut short: 499 of 1000 samples a channel are there": whole[: 44 + 999],
        "cut short: 0 of 1000 samples a channel are there": whole[:44],
        "holds no samples": wav(0),
        "holds NaN or infinite samples (the first at sample 0)": encoded(damaged[0], "WAV", "FLOAT"),
        "holds NaN or infinite samples (the first at sample 77)": encoded(damaged[77], "WAV", "DOUBLE"),
        "holds overlarge samples (the first at sample 5)": encoded(loud, "WAV", "FLOAT"),
    }
    for expected, content in contents.items():
        path.write_bytes(content)
        assert refused(path) == expected
    # No samples, but something behind them; and a header that was never completed.
    path.write_bytes(wav(0, after=chunk(b"LIST", b"INFOISFT\x04\0\0\0test")))
    assert refused(path) == "holds no samples"
    path.write_bytes(wav(0, riff_size=0xFFFF_FFFF, data_size=0xFFFF_FFFF))
    assert refused(path) == "holds no samples"
    path.write_bytes(b"RIFF" + struct.pack("<I", 100) + b"AVI " + bytes(96))
    assert "Format not recognised" in refused(path)


def test_damaged_compressed_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    flac = encoded(NOISE, "FLAC")
    for cut in (100, len(flac) // 2, len(flac) - 5):
        path.write_bytes(flac[:cut])
        assert refused(path).startswith("broken or cut short at sample 0 or later (")
    path.write_bytes(flac[:30_000] + bytes(400) + flac[30_400:])
    with (
        AudioReader(path) as reader,
        pytest.raises(AudioError, match=r"broken or cut short at sample 1[0-9]000"),
    ):
        list(reader.blocks(1000))
    path.write_bytes(encoded(NOISE, "OGG", "VORBIS")[:100])
    assert refused(path).startswith("not an audio file that can be decoded (")
    path.write_bytes(encoded(NOISE, "W64")[:100])
    assert refused(path) == "holds no samples"


def test_refused_files_are_closed(tmp_path: Path) -> None:
    contents = [b"", b"Dear diary", wav(10)[:50], encoded(np.full(10, np.nan), "WAV", "FLOAT")]
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.wav").write_bytes(content)
        refused(tmp_path / f"{number}.wav")
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_unreadable_paths_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.wav") == "cannot be read: No such file or directory"
    assert refused(tmp_path) == "cannot be read: Is a directory"


def test_a_failing_device_is_named_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(NOISE)

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 60_000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    monkeypatch.setattr(Path, "open", lambda *_: Failing(content))
    path = tmp_path / "remote.wav"
    with AudioReader(path) as reader, pytest.raises(AudioError) as caught:
        list(reader.blocks(1000))
    assert f"{path}: broken or cut short at sample 30000" in str(caught.value)
    assert str(caught.value).endswith("(Input/output error)")


@pytest.mark.parametrize("rates", [(8000, RATE), (44_100, RATE), (96_000, RATE), (RATE, 8000)])
def test_resampling_in_blocks_is_resampling_at_once(rates: tuple[int, int]) -> None:
    source, target = rates
    seconds = np.arange(source) / source
    tone = np.stack([np.sin(2 * np.pi * f * seconds) for f in (440, 1000)], axis=1).astype(np.float32)
    cuts = np.split(tone, [1, 2, 500, 7000])
    pieces = np.concatenate(list(resample_blocks(iter(cuts), source, target, 2)))
    whole = np.concatenate(list(resample_blocks(iter([tone]), source, target, 2)))
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-6)
    assert len(pieces) == target
    middle = np.arange(target // 4, target * 3 // 4) / target
    for channel, frequency in enumerate((440, 1000)):
        expected = np.sin(2 * np.pi * frequency * middle)
        error = whole[target // 4 : target * 3 // 4, channel] - expected
        assert np.abs(error).max() < 1e-4
    # To the last sample, of which many come only at the end: what is heard left is no part of the right.
    steady = np.tile(np.array([0.5, -0.25], np.float32), (source // 4, 1))
    left, right = np.concatenate(list(resample_blocks(iter([steady]), source, target, 2))).T
    np.testing.assert_allclose(left, -2 * right, rtol=0, atol=1e-6)
    assert left.min() > 0.2


def test_one_sample_survives_resampling() -> None:
    one = np.full((1, 2), 0.5, np.float32)
    for source, target in ((96_000, RATE), (8000, RATE), (RATE, RATE)):
        result = np.concatenate(list(resample_blocks(iter([one]), source, target, 2)))
        assert result.shape[1] == 2
        assert len(result) >= 1
        assert np.isfinite(result).all()


def test_fit_length_cuts_and_fills() -> None:
    blocks = [np.ones((4, 2), np.float32), np.full((4, 2), 2, np.float32)]
    cut = np.concatenate(list(fit_length(iter(blocks), 5)))
    assert cut.tolist() == [[1, 1]] * 4 + [[2, 2]]
    filled = np.concatenate(list(fit_length(iter(blocks), 10)))
    assert filled.tolist() == [[1, 1]] * 4 + [[2, 2]] * 4 + [[0, 0]] * 2


def test_a_rate_that_is_no_sound_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "slow.wav", np.zeros(100), 999)
    with pytest.raises(AudioError, match=r"its rate of 999 Hz is below 1000 Hz"):
        read_audio(tmp_path / "slow.wav")
