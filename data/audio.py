"""Read, write and resample audio files in blocks: any rate, any channel count, any length, in bounded memory.

Every file that this project reads or writes goes through this module, so that each kind of bad file is
refused in one place with one clear line (`AudioError`), and an output file appears under its final name
only when it is whole.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

BLOCK_FRAMES = 65_536
"""Frames that are read at a time: large enough to be fast, small enough to be no matter in memory."""

_PCM_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32}
_FLOAT_SUBTYPES = {"FLOAT", "DOUBLE"}
# Writers to a pipe cannot know the length and put a placeholder: all ones (ffmpeg), 0 (some), or about 2 GiB (sox).
_UNKNOWN_DATA_SIZE = 0x7FFF_0000


class AudioError(Exception):
    """An audio file cannot be read or written; the message names the file and says what is wrong with it."""


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
    source: path of the file, or a seekable binary stream.
    name: what error messages call the file; its path by default.

    `frames` is the length in samples a channel that the header promises, and the true one once all is read.
    Raises `AudioError` where the file is not audio, is cut short, holds no samples, or holds NaN or infinity.
    """

    def __init__(self, source: Path | BinaryIO, name: str | None = None) -> None:
        self.name = name or str(source)
        try:
            if isinstance(source, Path):
                with source.open("rb") as stream:
                    _check_wav_is_whole(stream, self.name)
            else:
                _check_wav_is_whole(source, self.name)
            self._file = soundfile.SoundFile(str(source) if isinstance(source, Path) else source)
        except OSError as error:
            raise AudioError(f"{self.name}: cannot be read: {error.strerror or error}") from error
        except soundfile.SoundFileError as error:
            raise AudioError(
                f"{self.name}: not an audio file that can be decoded ({_reason(error)})"
            ) from error
        file = self._file
        self.format = AudioFormat(file.samplerate, file.channels, file.format, file.subtype)
        self.frames = file.frames

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def blocks(self, frames: int = BLOCK_FRAMES) -> Iterator[np.ndarray]:
        """Yield the whole file as float32 arrays `[≤ frames, channels]`; once, since a broken file cannot seek."""
        promised = self.frames
        count = 0
        while True:
            try:
                block = self._file.read(frames, dtype="float32", always_2d=True)
            except soundfile.SoundFileError as error:
                raise AudioError(
                    f"{self.name}: broken after {count} samples a channel ({_reason(error)})"
                ) from error
            if len(block) == 0:
                break
            finite = np.isfinite(block)
            if not finite.all():
                place = count + int(np.argmin(finite.all(axis=1)))
                raise AudioError(f"{self.name}: holds NaN or infinite samples (the first at sample {place})")
            count += len(block)
            yield block
        if count == 0:
            raise AudioError(f"{self.name}: holds no samples")
        # A FLAC stream of unknown length promises 2^63 − 1.
        if count < promised < 2**62:
            raise AudioError(f"{self.name}: cut short: {count} of {promised} samples a channel are there")
        self.frames = count


def read_audio(path: Path, rate: int | None = None) -> tuple[np.ndarray, AudioFormat]:
    """Read a whole file: float32 samples `[frames, channels]`, at `rate` Hz where one is given, and its format.

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
    """Pass blocks `[n, channels]` on until `frames` have passed; should they end before, fill up with zeros."""
    channels = 1
    for block in blocks:
        channels = block.shape[1]
        yield block[:frames]
        frames -= min(len(block), frames)
    if frames:
        yield np.zeros((frames, channels), np.float32)


class AudioWriter:
    """An output file that appears under its final name only when all of it has been written.

    Used as a context manager: it writes to a hidden temporary file beside `path` and renames it at a clean end;
    at any error the temporary file goes and whatever stood at `path` before stays.
    Values beyond what the sample format holds are clipped, never wrapped. Raises `AudioError` when writing fails.
    """

    def __init__(self, path: Path, audio_format: AudioFormat) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._subtype = audio_format.subtype
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = soundfile.SoundFile(
                str(self._temporary),
                "w",
                samplerate=audio_format.rate,
                channels=audio_format.channels,
                format=audio_format.container,
                subtype=audio_format.subtype,
            )
        except (OSError, soundfile.SoundFileError) as error:
            self._discard()
            raise AudioError(f"{path}: cannot be written ({_reason(error)})") from error

    def write(self, samples: np.ndarray) -> None:
        """Append float samples `[frames, channels]`."""
        try:
            self._file.write(_to_sample_format(samples, self._subtype))
        except (OSError, soundfile.SoundFileError) as error:
            raise AudioError(f"{self.path}: cannot be written ({_reason(error)})") from error

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        try:
            frames = self._file.frames
            self._file.close()
            if exception_type is None:
                self._commit(frames)
        except (OSError, soundfile.SoundFileError) as error:
            if exception_type is None:
                raise AudioError(f"{self.path}: cannot be written ({_reason(error)})") from error
        finally:
            self._discard()

    def _commit(self, frames: int) -> None:
        # libsndfile buffers, and reports a full disk at closing to nobody: ask the file itself.
        written = soundfile.info(str(self._temporary))
        if written.format == "WAV" and written.frames < frames:
            raise OSError(f"only {written.frames} of {frames} samples reached the disk")
        with self._temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        self._temporary.replace(self.path)

    def _discard(self) -> None:
        with suppress(OSError):
            self._temporary.unlink()


def write_audio(path: Path, samples: np.ndarray, audio_format: AudioFormat) -> None:
    """Write float samples `[frames, channels]` as a whole file; raises `AudioError`."""
    with AudioWriter(path, audio_format) as writer:
        for start in range(0, len(samples), BLOCK_FRAMES):
            writer.write(samples[start : start + BLOCK_FRAMES])


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
    return re.sub(r"^(Error opening|Internal).*?: ", "", text).strip().rstrip(".")


def _check_wav_is_whole(stream: BinaryIO, name: str) -> None:
    """Raise `AudioError` where a WAV file ends before its header says; libsndfile reads such a file in silence."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    header = stream.read(12)
    if size == 0:
        raise AudioError(f"{name}: the file is empty")
    if header[:4] == b"RIFF":
        _check_riff_chunks(stream, size, name)
    stream.seek(0)


def _check_riff_chunks(stream: BinaryIO, size: int, name: str) -> None:
    """Walk the chunks behind the 12 bytes of RIFF header up to the samples."""
    position = 12
    frame_bytes = 0
    while len(header := stream.read(8)) == 8:
        chunk, length = struct.unpack("<4sI", header)
        position += 8
        if chunk == b"data":
            there = size - position
            if frame_bytes and there < length < _UNKNOWN_DATA_SIZE:
                raise AudioError(
                    f"{name}: cut short: {there // frame_bytes} of {length // frame_bytes} samples a channel are there"
                )
            return
        body = stream.read(min(length, 16)) if chunk == b"fmt " else b""
        if len(body) >= 14:
            frame_bytes = struct.unpack("<H", body[12:14])[0]
        position += length + length % 2
        stream.seek(position)
    raise AudioError(f"{name}: cut short within the WAV header: no samples are there")
