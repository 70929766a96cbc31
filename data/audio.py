"""Read, write and resample audio files in blocks: any rate, any channel count, any length, in bounded memory.

Every audio file that this project reads or writes goes through this module, so that each kind of bad file is
refused in one place with one clear line (`AudioError`), and an output file appears under its final name
only when it is whole.
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
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
import soundfile
import soxr

from cli import SOME_FAILED, UserError
from utils.atomic import atomic_open

_Result = TypeVar("_Result")

BLOCK_FRAMES = 65_536
"""Frames that are read at a time: large enough to be fast, small enough to be no matter in memory."""

LOWEST_RATE = 1000
"""Hz; nothing slower is sound, and a file that says so would grow beyond all measure at 16 kHz."""

LARGEST_SAMPLE = 1e9
"""Beyond it nothing is sound, only a damaged file; its square summed over hours is still within float32."""

_PCM_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_FLOAT_SUBTYPES = {"FLOAT", "DOUBLE"}
# Writers to a pipe do not know the length and put 0, or more than this (ffmpeg 2³² − 1, sox about 2³¹).
_UNKNOWN_DATA_SIZE = 0x7FFF_0000


class AudioError(UserError):
    """An audio file cannot be read or written. Commands report it and go on with the other files."""

    def __init__(self, message: str) -> None:
        super().__init__(message, SOME_FAILED)


@dataclass(frozen=True)
class AudioFormat:
    """What an output must keep of its input: rate in Hz, channel count, container and sample format."""

    rate: int
    channels: int
    container: str = "WAV"
    subtype: str = "PCM_16"


class AudioReader:
    """An open audio file, read in blocks as float32 in ±1 (floating-point files may exceed it).

    Parameters
    ----------
    source: path of the file.

    `frames` is the length in samples a channel that the header promises, and the true one once all is read.
    Raises `AudioError` where the file is not audio, holds no samples or damaged ones (see `blocks`), or is
    cut short; the last only for formats that tell: WAV, FLAC, MP3.
    """

    def __init__(self, source: Path) -> None:
        self.name = str(source)
        try:
            with ExitStack() as stack:
                stream = stack.enter_context(source.open("rb"))
                self._callbacks = _Callbacks(stream, _check_wav_header(stream, self.name))
                self._file = stack.enter_context(_ForwardFile(self._callbacks.as_stream()))
                self._close = stack.pop_all().close
        except OSError as error:
            raise AudioError(f"{self.name}: cannot be read: {error.strerror}") from error
        except soundfile.SoundFileError as error:
            raise AudioError(f"{self.name}: not an audio file that can be decoded ({_reason(error)})") from error
        file = self._file
        self.format = AudioFormat(file.samplerate, file.channels, file.format, file.subtype)
        self.frames = file.frames
        if file.samplerate < LOWEST_RATE:
            self._close()
            raise AudioError(f"{self.name}: its rate of {file.samplerate} Hz is below {LOWEST_RATE} Hz")

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def blocks(self, frames: int = BLOCK_FRAMES) -> Iterator[np.ndarray]:
        """Yield the whole file, once, as float32 arrays `[≤ frames, channels]`.

        Raises `AudioError` at samples that are NaN, infinite or beyond ±`LARGEST_SAMPLE`.
        """
        promised = self.frames
        count = 0
        while len(block := self._read(frames, count)):
            usable = np.abs(block) <= LARGEST_SAMPLE  # false for NaN too
            if not usable.all():
                place = int(np.argmin(usable.all(axis=1)))
                kind = "overlarge" if np.isfinite(block[place]).all() else "NaN or infinite"
                raise AudioError(f"{self.name}: holds {kind} samples (the first at sample {count + place})")
            count += len(block)
            yield block
        if count == 0:
            raise AudioError(f"{self.name}: holds no samples")
        # A FLAC stream of unknown length promises 2^63 − 1.
        if count < promised < 2**62:
            raise AudioError(f"{self.name}: cut short: {count} of {promised} samples a channel are there")
        self.frames = count

    def _read(self, frames: int, count: int) -> np.ndarray:
        """The next block, empty at the end; `count` samples have been read before it."""
        try:
            block = self._file.read(frames, dtype="float32", always_2d=True)
            self._callbacks.check()
        except (OSError, soundfile.SoundFileError) as error:
            reason = _reason(self._callbacks.error or error)
            message = f"{self.name}: broken or cut short at sample {count} or later ({reason})"
            raise AudioError(message) from error
        return block


def read_audio(path: Path, rate: int | None = None) -> tuple[np.ndarray, AudioFormat]:
    """Read a whole file: float32 samples `[frames, channels]`, at `rate` Hz if given, and its format.

    The format's rate is that of the samples returned. Raises `AudioError` as `AudioReader` does.
    """
    with AudioReader(path) as reader:
        blocks = reader.blocks()
        audio_format = reader.format
        if rate is not None:
            blocks = resample_blocks(blocks, audio_format.rate, rate, audio_format.channels)
            audio_format = replace(audio_format, rate=rate)
        return np.concatenate(list(blocks)), audio_format


def resample_blocks(
    blocks: Iterator[np.ndarray], source_rate: int, target_rate: int, channels: int
) -> Iterator[np.ndarray]:
    """Resample float32 blocks `[frames, channels]` as one continuous signal (soxr, high quality, no delay).

    At least one sample comes out, also of a signal shorter than one sample at the target rate.
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


def fit_length(blocks: Iterator[np.ndarray], frames: int) -> Iterator[np.ndarray]:
    """Pass on `frames` samples of blocks `[n, channels]`; fill up with zeros should they end before."""
    channels = 1
    for block in blocks:
        channels = block.shape[1]
        yield block[:frames]
        frames -= min(len(block), frames)
    if frames:
        yield np.zeros((frames, channels), np.float32)


class AudioWriter:
    """An output file that appears under its final name only when all of it has been written.

    Used as a context manager: it writes to a hidden temporary file beside `path` and renames it at a clean
    end; at any error the temporary file goes and whatever stood at `path` before stays. Values beyond what
    the sample format holds are clipped, never wrapped. Raises `AudioError` when writing fails, and for NaN or
    infinite samples.
    """

    def __init__(self, path: Path, audio_format: AudioFormat) -> None:
        self.path = path
        self._subtype = audio_format.subtype
        self._opened = _replacing_audio(path, audio_format)

    def __enter__(self) -> AudioWriter:
        self._file, self._callbacks = self._opened.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._opened.__exit__(*exception)

    def write(self, samples: np.ndarray) -> None:
        """Append float samples `[frames, channels]`."""
        if not np.isfinite(samples).all():
            raise AudioError(f"{self.path}: not written: the result holds NaN or infinite samples")
        # libsndfile's Vorbis encoder crashes at some millions of samples.
        for start in range(0, len(samples), BLOCK_FRAMES):
            self._file.write(_to_sample_format(samples[start : start + BLOCK_FRAMES], self._subtype))
            self._callbacks.check()


@contextmanager
def _replacing_audio(path: Path, audio_format: AudioFormat) -> Iterator[tuple[soundfile.SoundFile, _Callbacks]]:
    """A sound file, and what it writes through; it becomes `path` at a clean end. Raises `AudioError`."""
    callbacks = None
    try:
        with atomic_open(path) as stream:
            callbacks = _Callbacks(stream)
            with soundfile.SoundFile(
                callbacks.as_stream(),
                "w",
                samplerate=audio_format.rate,
                channels=audio_format.channels,
                format=audio_format.container,
                subtype=audio_format.subtype,
            ) as file:
                yield file, callbacks
            # At closing, libsndfile writes what is left and reports a failure to nobody.
            callbacks.check()
    except (OSError, soundfile.SoundFileError) as error:
        reason = _reason((callbacks and callbacks.error) or error)
        kind = f"{audio_format.container} {audio_format.subtype}"
        raise AudioError(f"{path}: cannot be written as {kind} ({reason})") from error


def write_audio(path: Path, samples: np.ndarray, audio_format: AudioFormat) -> None:
    """Write float samples `[frames, channels]` as a whole file; raises `AudioError`."""
    with AudioWriter(path, audio_format) as writer:
        writer.write(samples)


class _ForwardFile(soundfile.SoundFile):
    """Read from start to end without seeking: that fails in broken FLAC files and those of unknown length."""

    def seekable(self) -> bool:
        """Tell soundfile to let it be."""
        return False


class _Callbacks:
    """A file for libsndfile to read or write through.

    It calls back from C, where an exception would be printed and lost: the first is kept in `error`. `patch`
    is an offset, and the bytes to be read there in place of the file's own.
    """

    def __init__(self, stream: BinaryIO, patch: tuple[int, bytes] = (0, b"")) -> None:
        self.error: OSError | None = None
        self._stream = stream
        self._patch = patch

    def as_stream(self) -> BinaryIO:
        """Itself: soundfile asks for a whole stream, and uses the four methods that are here."""
        return cast(BinaryIO, self)

    def check(self) -> None:
        """Raise the error that was kept."""
        if self.error is not None:
            raise self.error

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._keep_error(self._stream.seek, offset, whence) or 0

    def tell(self) -> int:
        return self._keep_error(self._stream.tell) or 0

    def read(self, size: int) -> bytes:
        offset, patch = self._patch
        offset -= self.tell()
        data = bytearray(self._keep_error(self._stream.read, size) or b"")
        for place, byte in enumerate(patch, start=offset):
            if 0 <= place < len(data):
                data[place] = byte
        return bytes(data)

    def write(self, data: bytes) -> int:
        # After an error it takes all, for soundfile asserts that libsndfile could write.
        self._keep_error(self._stream.write, data)
        return len(data)

    def _keep_error(self, method: Callable[..., _Result], *arguments: object) -> _Result | None:
        try:
            return method(*arguments)
        except OSError as error:
            # In broken files libsndfile seeks before the start; no fault of the device.
            if error.errno != errno.EINVAL:
                self.error = self.error or error
            return None


def _to_sample_format(samples: np.ndarray, subtype: str) -> np.ndarray:
    """Round to the nearest step of the sample format: full scale is 2^(bits − 1), as in reading."""
    bits = _PCM_BITS.get(subtype)
    if bits is None:
        return samples if subtype in _FLOAT_SUBTYPES else np.clip(samples, -1, 1)
    full_scale = 2.0 ** (bits - 1)
    steps = np.clip(np.rint(samples.astype(np.float64) * full_scale), -full_scale, full_scale - 1)
    # libsndfile takes the upper bits of 32.
    return steps.astype(np.int64).__lshift__(32 - bits).astype(np.int32)


def _reason(error: Exception) -> str:
    """The cause in libsndfile's or the system's words, without the path that the message names anyway."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = getattr(error, "error_string", None) or str(error)
    return re.sub(r"^Error.*?: ", "", text).strip().rstrip(".")


def _check_wav_header(stream: BinaryIO, name: str) -> tuple[int, bytes]:
    """Compare a WAV file's size with what its header says, since libsndfile takes either in silence.

    Returns the patch for `_Callbacks` that gives the header the length it leaves open. Raises `AudioError`
    where the file is empty or ends before its header says.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    header = stream.read(12)
    patch = (0, b"")
    if size == 0:
        raise AudioError(f"{name}: the file is empty")
    if header[:4] == b"RIFF" and header[8:] == b"WAVE":
        closed = abs(struct.unpack("<I", header[4:8])[0] + 8 - size) <= 1
        patch = _check_wav_chunks(stream, size, closed, name)
    stream.seek(0)
    return patch


def _check_wav_chunks(stream: BinaryIO, size: int, closed: bool, name: str) -> tuple[int, bytes]:
    """Walk the chunks behind the 12 bytes of RIFF header up to the samples.

    `closed`: the header gives the file's true size, so that a length of 0 means that there are no samples.
    """
    position = 12
    frame_bytes = 0
    while len(header := stream.read(8)) == 8:
        chunk, length = struct.unpack("<4sI", header)
        position += 8
        if chunk == b"data":
            there = size - position
            if frame_bytes and there < length < _UNKNOWN_DATA_SIZE:
                found = f"{there // frame_bytes} of {length // frame_bytes} samples a channel are there"
                raise AudioError(f"{name}: cut short: {found}")
            if length == 0 and not closed:
                return position - 4, struct.pack("<I", min(there, 2**32 - 1))
            return 0, b""
        body = stream.read(min(length, 16)) if chunk == b"fmt " else b""
        if len(body) >= 14:
            frame_bytes = struct.unpack("<H", body[12:14])[0]
        position += length + length % 2
        stream.seek(position)
    raise AudioError(f"{name}: cut short within the WAV header: no samples are there")
