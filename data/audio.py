"""Read, write and resample audio files in blocks: any rate, channel count and length in bounded memory.

All audio files are read and written here. An unusable file raises `AudioError` with a one-line message. An output file
appears under its name only when it is complete.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import soundfile
import soxr

from cli import SOME_FAILED, UserError
from utils.atomic import atomic_open

Result = TypeVar("Result")

BLOCK_FRAMES = 65_536
"""Samples per channel that are read or written at a time."""

LOWEST_RATE = 1000
"""Minimum sampling rate in Hz. A damaged header with a lower one would make the resampled signal huge."""

LARGEST_SAMPLE = 1e9
"""Maximum absolute sample value. Larger ones indicate a damaged file; sums of their squares could overflow float32."""

UNKNOWN_FRAMES = 2**62
"""From this number of frames on, the length is unknown: libsndfile gives 2⁶³ − 1 for a FLAC file without a length."""

_UNKNOWN_SIZE = 2**40
"""Reported for an MP3 file without a length, of which libsndfile would read as much as its first frame suggests."""

_PCM_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_UNKNOWN_DATA_SIZE = 0x7FFF_0000
"""WAV writers to a pipe do not know the data size and write 0 or more than this (ffmpeg 2³² − 1, sox about 2³¹)."""


class AudioError(UserError):
    """An audio file cannot be read or written. Commands report it and continue with the other files."""

    def __init__(self, message: str) -> None:
        super().__init__(message, SOME_FAILED)


@dataclass(frozen=True)
class AudioFormat:
    """Sampling rate in Hz, channel count, and libsndfile's names of container and sample format."""

    rate: int
    channels: int
    container: str = "WAV"
    subtype: str = "PCM_16"


class AudioReader:
    """An open audio file, read in blocks of float32 samples in ±1 (float files may exceed this range).

    `format` is the file's format, and `frames` the number of samples per channel: according to the header, and after
    `blocks` the actual one. Raises `AudioError` if the file is not audio, empty or damaged, or if a WAV file is cut
    short.
    """

    def __init__(self, source: Path) -> None:
        self.name = str(source)
        try:
            with ExitStack() as stack:
                file = stack.enter_context(source.open("rb"))
                patch_offset, patch = _check_wav_header(file, self.name)
                unknown = _is_mp3_without_length(file)
                file.seek(0)
                self._stream = _LibsndfileStream(file, patch_offset, patch, _UNKNOWN_SIZE if unknown else None)
                self._file = stack.enter_context(_ForwardOnlyFile(self._stream))  # pyright: ignore[reportArgumentType]
                opened = self._file
                self.format = AudioFormat(opened.samplerate, opened.channels, opened.format, opened.subtype)
                if self.format.rate < LOWEST_RATE:
                    raise AudioError(f"{self.name}: its rate of {self.format.rate} Hz is below {LOWEST_RATE} Hz")
                self._close = stack.pop_all().close
        except OSError as error:
            raise AudioError(f"{self.name}: cannot be read: {error.strerror}") from error
        except soundfile.SoundFileError as error:
            raise AudioError(f"{self.name}: not an audio file that can be decoded ({_reason(error)})") from error
        self.frames = UNKNOWN_FRAMES if unknown else self._file.frames

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def blocks(self, frames: int = BLOCK_FRAMES) -> Iterator[np.ndarray]:
        """Yield the file once, as float32 arrays `[up to frames, channels]`.

        Raises `AudioError` for samples that are NaN, infinite or beyond ±`LARGEST_SAMPLE`, for a file without samples,
        and for a damaged file or one that ends before the length in its header (WAV, FLAC, MP3).
        """
        count = 0
        while True:
            try:
                block = self._file.read(frames, dtype="float32", always_2d=True)
                self._stream.check()
            except (OSError, soundfile.SoundFileError) as error:
                reason = _reason(self._stream.error or error)
                raise AudioError(f"{self.name}: broken or cut short at sample {count} or later ({reason})") from error
            if len(block) == 0:
                break
            valid = (np.abs(block) <= LARGEST_SAMPLE).all(axis=1)  # False for NaN
            if not valid.all():
                first = int(np.argmin(valid))
                kind = "overlarge" if np.isfinite(block[first]).all() else "NaN or infinite"
                raise AudioError(f"{self.name}: holds {kind} samples (the first at sample {count + first})")
            count += len(block)
            yield block
        if count == 0:
            raise AudioError(f"{self.name}: holds no samples")
        if count < self.frames < UNKNOWN_FRAMES:
            raise AudioError(f"{self.name}: cut short: {count} of {self.frames} samples a channel are there")
        self.frames = count


def read_audio(path: Path, rate: int | None = None) -> tuple[np.ndarray, AudioFormat]:
    """Read a whole file as float32 `[frames, channels]`, resampled to `rate` Hz if given.

    Also returns the format, with the rate of the returned samples. Raises `AudioError` as `AudioReader` does.
    """
    with AudioReader(path) as reader:
        blocks, audio_format = reader.blocks(), reader.format
        if rate is not None:
            blocks = resample_blocks(blocks, audio_format.rate, rate, audio_format.channels)
            audio_format = replace(audio_format, rate=rate)
        return np.concatenate(list(blocks)), audio_format


def read_part(path: Path, start: int, frames: int, rate: int) -> np.ndarray:
    """Read `frames` samples from sample `start` on, without decoding what is before; resample to `rate` Hz.

    Returns float32 `[frames, channels]`. Raises `AudioError` as `AudioReader.blocks` does.
    """
    try:
        with path.open("rb") as file:
            stream = _LibsndfileStream(file, *_check_wav_header(file, str(path)))
            file.seek(0)
            with soundfile.SoundFile(stream) as sound:  # pyright: ignore[reportArgumentType]
                sound.seek(start)
                samples = sound.read(frames, dtype="float32", always_2d=True)
                source_rate = sound.samplerate
            stream.check()
    except (OSError, soundfile.SoundFileError) as error:
        raise AudioError(f"{path}: broken or cut short at sample {start} or later ({_reason(error)})") from error
    if len(samples) < frames:
        raise AudioError(f"{path}: cut short: {start + len(samples)} samples a channel are there")
    if not (np.abs(samples) <= LARGEST_SAMPLE).all():
        raise AudioError(f"{path}: holds NaN, infinite or overlarge samples (after sample {start})")
    return np.concatenate(list(resample_blocks(iter([samples]), source_rate, rate, samples.shape[1])))


def resample_blocks(
    blocks: Iterator[np.ndarray], source_rate: int, target_rate: int, channels: int
) -> Iterator[np.ndarray]:
    """Resample float32 blocks `[frames, channels]` as one continuous signal (soxr VHQ, no delay).

    Yields at least one sample, also for a signal shorter than one sample at the target rate.
    """
    if source_rate == target_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(source_rate, target_rate, channels, dtype="float32", quality="VHQ")
    count = 0
    for block in blocks:
        resampled = stream.resample_chunk(block)
        count += len(resampled)
        yield resampled
    last = stream.resample_chunk(np.zeros((0, channels), np.float32), last=True)
    yield last if count + len(last) else np.zeros((1, channels), np.float32)


def resample(samples: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resample float32 `[N]` as `resample_blocks` does."""
    if not len(samples):
        return samples
    return np.concatenate(list(resample_blocks(iter([samples[:, None]]), source_rate, target_rate, 1)))[:, 0]


def fit_length(blocks: Iterator[np.ndarray], frames: int) -> Iterator[np.ndarray]:
    """Cut blocks `[n, channels]` to `frames` samples in total, or pad them with zeros."""
    channels = 1
    for block in blocks:
        channels = block.shape[1]
        yield block[:frames]
        frames -= min(len(block), frames)
    if frames:
        yield np.zeros((frames, channels), np.float32)


class AudioWriter:
    """A context manager that writes an audio file atomically.

    Samples go to a temporary file that is renamed to `path` when the block ends without an error; otherwise it is
    removed, and an earlier file at `path` remains. Values beyond the range of the sample format are clipped. Raises
    `AudioError` if writing fails and for NaN or infinite samples.
    """

    def __init__(self, path: Path, audio_format: AudioFormat) -> None:
        self.path = path
        self._format = audio_format
        self._context = self._open()

    def __enter__(self) -> AudioWriter:
        self._context.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)

    @contextmanager
    def _open(self) -> Iterator[None]:
        stream = None
        try:
            with atomic_open(self.path) as file:
                self._stream = stream = _LibsndfileStream(file)
                with soundfile.SoundFile(
                    stream,  # pyright: ignore[reportArgumentType]
                    "w",
                    samplerate=self._format.rate,
                    channels=self._format.channels,
                    format=self._format.container,
                    subtype=self._format.subtype,
                ) as self._file:
                    yield
                stream.check()  # libsndfile writes the rest on closing and ignores errors
        except (OSError, soundfile.SoundFileError) as error:
            reason = _reason((stream and stream.error) or error)
            kind = f"{self._format.container} {self._format.subtype}"
            raise AudioError(f"{self.path}: cannot be written as {kind} ({reason})") from error

    def write(self, samples: np.ndarray) -> None:
        """Append float samples `[frames, channels]`."""
        if not np.isfinite(samples).all():
            raise AudioError(f"{self.path}: not written: the result holds NaN or infinite samples")
        # libsndfile's Vorbis encoder crashes when it gets millions of samples at once.
        for start in range(0, len(samples), BLOCK_FRAMES):
            block = samples[start : start + BLOCK_FRAMES]
            if bits := _PCM_BITS.get(self._format.subtype):
                # Round to the nearest step; full scale is 2^(bits − 1) as in reading. soundfile takes the upper bits
                # of int32.
                full_scale = 2.0 ** (bits - 1)
                steps = np.clip(np.rint(block.astype(np.float64) * full_scale), -full_scale, full_scale - 1)
                block = (steps * 2.0 ** (32 - bits)).astype(np.int32)
            elif self._format.subtype not in ("FLOAT", "DOUBLE"):
                block = np.clip(block, -1, 1)
            self._file.write(block)
            self._stream.check()


def write_audio(path: Path, samples: np.ndarray, audio_format: AudioFormat) -> None:
    """Write float samples `[frames, channels]` as a whole file; raises `AudioError`."""
    with AudioWriter(path, audio_format) as writer:
        writer.write(samples)


class _ForwardOnlyFile(soundfile.SoundFile):
    """A file that soundfile reads without seeking, which fails in damaged FLAC files and those of unknown length."""

    def seekable(self) -> bool:
        return False


class _LibsndfileStream:
    """A file object for libsndfile that keeps the first `OSError` in `error`.

    libsndfile calls the methods from C, where a raised exception would be printed and lost. When reading, the bytes
    `patch` replace those of the file at `patch_offset`; `size` replaces its size.
    """

    def __init__(self, file: BinaryIO, patch_offset: int = 0, patch: bytes = b"", size: int | None = None) -> None:
        self.error: OSError | None = None
        self._file = file
        self._size = size
        self._at_end = False
        self._patch_offset = patch_offset
        self._patch = patch

    def check(self) -> None:
        """Raise `error` if there is one."""
        if self.error is not None:
            raise self.error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at_end = whence == os.SEEK_END
        return self._call(self._file.seek, offset, whence) or 0

    def tell(self) -> int:
        if self._at_end and self._size:
            return self._size
        return self._call(self._file.tell) or 0

    def read(self, size: int) -> bytes:
        patch_start = self._patch_offset - self.tell()
        data = bytearray(self._call(self._file.read, size) or b"")
        for index, byte in enumerate(self._patch, start=patch_start):
            if 0 <= index < len(data):
                data[index] = byte
        return bytes(data)

    def write(self, data: bytes) -> int:
        self._call(self._file.write, data)
        return len(data)  # also after an error: soundfile asserts that everything was written

    def _call(self, method: Callable[..., Result], *arguments: object) -> Result | None:
        try:
            return method(*arguments)
        except OSError as error:
            # In damaged files libsndfile seeks to negative positions; this is not a device error.
            if error.errno != errno.EINVAL:
                self.error = self.error or error
            return None


def _reason(error: Exception) -> str:
    """Return the message of libsndfile or the system without the path."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = getattr(error, "error_string", None) or str(error)
    return re.sub(r"^Error.*?: ", "", text).strip().rstrip(".")


def _check_wav_header(file: BinaryIO, name: str) -> tuple[int, bytes]:
    """Raise `AudioError` if a file is empty, or a WAV file shorter than its header says; libsndfile accepts both.

    Returns an offset and the bytes to read there instead of the file's own: the size of the data, if a writer to a
    pipe left it 0. The bytes are empty for all other files.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise AudioError(f"{name}: the file is empty")
    file.seek(0)
    riff, riff_size, wave = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
    if riff != b"RIFF" or wave != b"WAVE":
        return 0, b""
    frame_bytes = 0
    while len(header := file.read(8)) == 8:
        chunk, length = struct.unpack("<4sI", header)
        start = file.tell()
        if chunk == b"fmt ":
            frame_bytes = int.from_bytes(file.read(min(length, 14))[12:], "little")
        elif chunk == b"data":
            available = size - start
            if frame_bytes and available < length < _UNKNOWN_DATA_SIZE:
                found = f"{available // frame_bytes} of {length // frame_bytes} samples a channel are there"
                raise AudioError(f"{name}: cut short: {found}")
            # If the RIFF size is right, a data size of 0 means that there are no samples.
            if length == 0 and abs(riff_size + 8 - size) > 1:
                return start - 4, struct.pack("<I", min(available, 2**32 - 1))
            return 0, b""
        file.seek(start + length + length % 2)
    raise AudioError(f"{name}: cut short within the WAV header: no samples are there")


def _is_mp3_without_length(file: BinaryIO) -> bool:
    """Return whether an MP3 file begins with a frame of sound, instead of one with the number of frames."""
    file.seek(0)
    tag = file.read(10)
    length = 0
    if tag[:3] == b"ID3":
        for byte in tag[6:]:
            length = length << 7 | byte
        length += len(tag)
    file.seek(length)
    frame = file.read(256)
    synchronised = frame[:1] == b"\xff" and frame[1:2] >= b"\xe0"
    return synchronised and not any(name in frame for name in (b"Xing", b"Info", b"VBRI"))
