"""Audio files: reading, resampling and writing, and errors of files and devices."""

from __future__ import annotations

import errno
import io
import os
import struct
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
    AudioReader,
    AudioWriter,
    fit_length,
    read_audio,
    read_part,
    resample_blocks,
    write_audio,
)
from tests.fixtures.commands import error_line
from tests.fixtures.recordings import NOISE, RAMP, RATE, files_limited_to, save_without_length

FORMATS = ["WAV PCM_16", "WAV FLOAT", "FLAC PCM_16", "OGG VORBIS", "OGG OPUS", "MP3 MPEG_LAYER_III", "W64 PCM_16"]
PCM_FORMATS = ["WAV PCM_U8", "WAV PCM_16", "WAV PCM_24", "WAV PCM_32", "W64 PCM_24", "RF64 PCM_16", "AIFF PCM_S8"]
PCM_FORMATS += ["AIFF PCM_24", "AU PCM_16", "CAF PCM_16", "CAF ALAC_16", "FLAC PCM_16", "FLAC PCM_24"]


def encoded(samples: np.ndarray, container: str = "WAV", subtype: str = "PCM_16", rate: int = RATE) -> bytes:
    """Return a file's bytes, written by libsndfile alone."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=container, subtype=subtype)
    return stream.getvalue()


def wav(frames: int, riff_size: int | None = None, data_size: int | None = None, before=b"", after=b"") -> bytes:
    """Return a 16-bit mono WAV of the samples 0, 1, 2, …, with chunks around them and any sizes in the header."""
    samples = np.arange(frames, dtype="<i2").tobytes()
    form = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16) + before
    body = samples + after
    data_size = len(samples) if data_size is None else data_size
    riff_size = len(form) + 8 + len(body) if riff_size is None else riff_size
    return b"RIFF" + struct.pack("<I", riff_size) + form + b"data" + struct.pack("<I", data_size) + body


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def error_of(path: Path) -> str:
    """Return the message of a file that cannot be read: one line that begins with the path, which is left out."""
    return error_line(lambda: read_audio(path), start=f"{path}: ").removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("riff_size", "data_size"),
    [
        (None, None),
        (0xFFFF_FFFF, 0xFFFF_FFFF),  # ffmpeg
        (0x7FFF_F024, 0x7FFF_F000),  # sox
        (0x8000_0024, 0x8000_0000),  # arecord
        (36, 0),  # Python's wave
        (0xFFFF_FFFF, 0),
    ],
)
def test_wav_headers_written_to_pipes(tmp_path: Path, riff_size: int | None, data_size: int | None) -> None:
    path = tmp_path / "piped.wav"
    after = chunk(b"LIST", b"INFO") if data_size is None else b""
    path.write_bytes(wav(30_000, riff_size, data_size, before=chunk(b"JUNK", bytes(31)), after=after))
    assert np.array_equal(read_audio(path)[0][:, 0] * 32_768, np.arange(30_000))
    assert np.array_equal(read_part(path, 20_000, 100, RATE)[:, 0] * 32_768, np.arange(20_000, 20_100))


def test_flac_of_unknown_length(tmp_path: Path) -> None:
    path = tmp_path / "piped.flac"
    save_without_length(path, NOISE)
    with AudioReader(path) as reader:
        blocks = list(reader.blocks(7000))
        assert [len(block) for block in blocks] == [7000] * 6 + [6000]
        assert reader.frames == len(NOISE)
    np.testing.assert_allclose(np.concatenate(blocks), NOISE, rtol=0, atol=2**-15)


@pytest.mark.parametrize("silence", [0, RATE], ids=["loud start", "quiet start"])
@pytest.mark.parametrize("tag", [b"", b"ID3\3\0\0" + bytes([0, 0, 2, 10]) + bytes(2 * 128 + 10)], ids=["", "tag"])
def test_mp3_without_a_length(tmp_path: Path, silence: int, tag: bytes) -> None:
    """Of variable bit rate, without the first frame, which gives the number of frames."""
    samples = np.concatenate([np.zeros(silence), NOISE[:, 0], np.zeros(RATE), NOISE[:, 0]])
    stream = io.BytesIO()
    soundfile.write(stream, samples, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    frames = stream.getvalue()
    start = frames.index(b"\xff\xf3", 4)  # of the second frame
    (tmp_path / "cut.mp3").write_bytes(tag + frames[start:])
    with AudioReader(tmp_path / "cut.mp3") as reader:
        blocks = list(reader.blocks())
        assert 0 <= sum(map(len, blocks)) - len(samples) < 4 * 576
        assert reader.frames == sum(map(len, blocks))


def float_wav(index: int, value: float) -> bytes:
    """Return a file with 100 samples, one of them of a given value."""
    samples = NOISE[:100].copy()
    samples[index] = value
    return encoded(samples, "WAV", "FLOAT")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"Dear diary,\n" * 100, "not an audio file"),
        (encoded(NOISE, "OGG", "VORBIS")[:100], "not an audio file"),
        (wav(1000)[:30], "cut short"),
        (wav(1000)[: 44 + 999], "cut short: 499 of 1000"),
        (wav(0), "no samples"),
        (wav(0, after=chunk(b"LIST", b"INFOISFT\x04\0\0\0test")), "no samples"),
        (encoded(NOISE, "W64")[:100], "no samples"),
        (encoded(NOISE, "FLAC")[:100], "cut short"),
        (encoded(NOISE, "FLAC")[:-5], "cut short"),
        (float_wav(0, np.inf), "NaN or infinite samples (the first at sample 0)"),
        (float_wav(77, np.nan), "NaN or infinite samples (the first at sample 77)"),
        (float_wav(5, -1e30), "overlarge samples (the first at sample 5)"),
        (encoded(np.zeros(100), rate=999), "999 Hz is below 1000 Hz"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",  # Ogg files hold a random number
)
def test_unusable_files_are_named_and_closed(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    assert words in error_of(path)
    open_files = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert str(path.resolve()) not in open_files


def test_damage_within_a_flac_file(tmp_path: Path) -> None:
    path = tmp_path / "hole.flac"
    flac = encoded(NOISE, "FLAC")
    path.write_bytes(flac[:30_000] + bytes(400) + flac[30_400:])
    with AudioReader(path) as reader, pytest.raises(AudioError, match=r"broken or cut short at sample 1[0-9]000"):
        list(reader.blocks(1000))


def test_paths_that_cannot_be_opened(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none.wav") == "cannot be read: No such file or directory"
    assert error_of(tmp_path) == "cannot be read: Is a directory"


def test_a_device_that_fails_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(NOISE)

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 60_000:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().read(size)

    monkeypatch.setattr(Path, "open", lambda *_: Failing(content))
    path = tmp_path / "remote.wav"
    with AudioReader(path) as reader, pytest.raises(AudioError, match=r"sample 30000 .*\(Input/output error\)$"):
        list(reader.blocks(1000))


@pytest.mark.parametrize(("source", "target"), [(8000, RATE), (44_100, RATE), (RATE, 8000)])
def test_resampling_in_blocks_equals_resampling_at_once(source: int, target: int) -> None:
    seconds = np.arange(source) / source
    tone = np.stack([np.sin(2 * np.pi * f * seconds) for f in (440, 1000)], axis=1).astype(np.float32)
    cuts = np.split(tone, [1, 2, 500, 7000])
    pieces = np.concatenate(list(resample_blocks(iter(cuts), source, target, 2)))
    whole = np.concatenate(list(resample_blocks(iter([tone]), source, target, 2)))
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-6)
    assert len(pieces) == target
    middle = np.arange(target // 4, target * 3 // 4)
    for channel, frequency in enumerate((440, 1000)):
        expected = np.sin(2 * np.pi * frequency * middle / target)
        np.testing.assert_allclose(whole[middle, channel], expected, rtol=0, atol=1e-4)


def test_fit_length_cuts_and_pads() -> None:
    blocks = [np.ones((4, 2), np.float32), np.full((4, 2), 2, np.float32)]
    cut = np.concatenate(list(fit_length(iter(blocks), 5)))
    assert cut.tolist() == [[1, 1]] * 4 + [[2, 2]]
    padded = np.concatenate(list(fit_length(iter(blocks), 10)))
    assert padded.tolist() == [[1, 1]] * 4 + [[2, 2]] * 4 + [[0, 0]] * 2


@pytest.mark.parametrize("kind", PCM_FORMATS)
def test_integers_are_rounded_and_clipped(tmp_path: Path, kind: str) -> None:
    container, subtype = kind.split()
    audio_format = AudioFormat(RATE, 1, container, subtype)
    write_audio(tmp_path / "ramp", RAMP, audio_format)
    samples, found = read_audio(tmp_path / "ramp")
    assert found == audio_format
    full_scale = 2.0 ** (int(subtype.strip("ALPCMSU_")) - 1)
    expected = np.clip(np.rint(RAMP.astype(np.float64) * full_scale), -full_scale, full_scale - 1) / full_scale
    if subtype == "ALAC_16":  # libsndfile converts by itself, with a full scale that is one step smaller
        np.testing.assert_allclose(samples, expected, rtol=0, atol=1 / full_scale)
        assert samples.min() < -0.9999
    else:
        assert np.array_equal(samples, expected.astype(np.float32))


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_are_not_clipped(tmp_path: Path, subtype: str) -> None:
    write_audio(tmp_path / "ramp.wav", 100 * RAMP, AudioFormat(RATE, 1, "WAV", subtype))
    samples, found = read_audio(tmp_path / "ramp.wav")
    assert np.array_equal(samples, 100 * RAMP)
    assert found.subtype == subtype


@pytest.mark.parametrize(("kind", "error"), [("WAV ULAW", 0.02), ("OGG VORBIS", 0.1), ("MP3 MPEG_LAYER_III", 0.1)])
def test_lossy_formats_clip(tmp_path: Path, kind: str, error: float) -> None:
    tone = 2 * np.sin(np.arange(24_000) * 2 * np.pi * 300 / RATE).astype(np.float32)[:, None]
    audio_format = AudioFormat(RATE, 1, *kind.split())
    write_audio(tmp_path / "tone", tone, audio_format)
    samples, found = read_audio(tmp_path / "tone")
    assert found == audio_format
    assert len(samples) == len(tone)
    np.testing.assert_allclose(samples[500:-500], np.clip(tone, -1, 1)[500:-500], rtol=0, atol=error)


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


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_and_infinity_are_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(AudioError, match=r"out\.wav: .*NaN or infinite"):
        write_audio(tmp_path / "out.wav", np.append(NOISE, [[value]], axis=0), AudioFormat(RATE, 1))
    assert list(tmp_path.iterdir()) == []


def test_formats_and_paths_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"out: cannot be written as MP3 MPEG_LAYER_II \(.+\)$"):
        write_audio(tmp_path / "out", NOISE, AudioFormat(RATE, 1, "MP3", "MPEG_LAYER_II"))
    (tmp_path / "file").touch()
    with pytest.raises(AudioError, match=r"out.wav: cannot be written as WAV PCM_16 \(File exists\)$"):
        write_audio(tmp_path / "file/out.wav", NOISE, AudioFormat(RATE, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"earlier")
    with pytest.raises(ZeroDivisionError), AudioWriter(path, AudioFormat(RATE, 1)) as writer:
        writer.write(NOISE)
        raise ZeroDivisionError
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_full_disk_is_detected_at_any_byte(tmp_path: Path, kind: str) -> None:
    audio_format = AudioFormat(RATE, 1, *kind.split())
    samples = NOISE[:9000]
    write_audio(tmp_path / "whole", samples, audio_format)
    size = (tmp_path / "whole").stat().st_size
    path = tmp_path / "out"
    path.write_bytes(b"earlier")
    for limit in (0, 20, size // 2, size - 600, size - 20, size - 1):
        with files_limited_to(limit), pytest.raises(AudioError, match=rf"out: .* {kind} \(File too large\)"):
            write_audio(path, samples, audio_format)
        assert path.read_bytes() == b"earlier"
        assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "whole"]
    with files_limited_to(size + 100):
        write_audio(path, samples, audio_format)
    assert len(read_audio(path)[0]) == len(samples)


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


@pytest.mark.parametrize("kind", FORMATS)
def test_a_single_failed_write_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    failing_write = writes = completed = 0

    class Stream(io.BytesIO):
        """Fails at one of its writes and accepts the following ones."""

        def write(self, data: object, /) -> int:
            nonlocal writes
            writes += 1
            if writes == failing_write:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().write(data)  # pyright: ignore[reportArgumentType]

    @contextmanager
    def atomic_open(_: Path) -> Iterator[io.BytesIO]:
        nonlocal completed
        yield Stream()
        completed += 1

    monkeypatch.setattr(data.audio, "atomic_open", atomic_open)
    audio_format = AudioFormat(RATE, 1, *kind.split())
    write_audio(tmp_path / "out", NOISE[:9000], audio_format)
    for number in range(1, writes + 1):  # header, samples, and what is written on closing
        failing_write, writes = number, 0
        with pytest.raises(AudioError, match=rf"as {kind} \(Input/output error\)$"):
            write_audio(tmp_path / "out", NOISE[:9000], audio_format)
    assert completed == 1
