"""Standard input to standard output: a whole audio file, or live sound as raw PCM or WAV."""

from __future__ import annotations

import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from itertools import chain
from pathlib import Path

import numpy as np

from data.audio import AudioError

READ_BYTES = 65_536
"""Maximum size of one read: the capacity of a pipe."""

_PCM = np.dtype("<i2")
_FULL_SCALE = 32_768

_UNKNOWN_SIZE = 0x7FFF_F000
"""Least data size of a WAV header that stands for an unknown one: sox writes this, arecord and ffmpeg greater ones."""

_MOST_SIZE = 0xFFFF_FFFF
_MOST_CHUNK = 2**24
"""Maximum size of a WAV chunk before the samples. A greater one is an error, for which live input must not wait."""

_OTHER_FORMATS = {
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"ID3\3": "MP3",
    b"ID3\4": "MP3",
    b"FORM": "AIFF",
    b"RF64": "RF64",
    b"caff": "CAF",
}
"""First bytes of files that are not live sound."""

_HEADER_BYTES = 44
_PCM_FORMAT = bytes.fromhex("0100000000001000800000aa00389b71")
"""Sub-format PCM of WAVE_FORMAT_EXTENSIBLE."""


@contextmanager
def standard_streams() -> Iterator[tuple[BufferedReader, BufferedWriter]]:
    """Open standard input and output as binary streams.

    Raises `AudioError` if they are closed or fail, except `BrokenPipeError`, which passes: `cli.run` handles it.
    """
    if sys.stdin is None or sys.stdout is None:
        raise AudioError("standard input or output: closed")
    try:
        with (
            os.fdopen(sys.stdin.fileno(), "rb", closefd=False) as source,
            os.fdopen(sys.stdout.fileno(), "wb", closefd=False) as target,
        ):
            yield source, target
    except BrokenPipeError:
        raise
    except OSError as error:
        raise AudioError(f"standard input or output: {error.strerror}") from error


def pipe_file(convert: Callable[[Path, Path], None]) -> None:
    """Read a file from standard input, `convert(source, target)` it, and write the result to standard output.

    An `AudioError` of `convert` is raised with the name of the stream in place of the temporary file's.
    """
    with standard_streams() as (stdin, stdout), tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        with source.open("wb") as stream:
            shutil.copyfileobj(stdin, stream)
        try:
            convert(source, target)
        except AudioError as error:
            message = str(error).replace(str(source), "standard input").replace(str(target), "standard output")
            raise AudioError(message) from error
        with target.open("rb") as stream:
            shutil.copyfileobj(stream, stdout)


def pipe_pcm(
    process: Callable[[np.ndarray], np.ndarray], flush: Callable[[], np.ndarray], sampling_rate: int, skip: float = 0.0
) -> None:
    """Process sound from standard input to standard output as it comes: PCM of 16 bits, little endian, one channel.

    `process` maps the samples that have arrived, float32 in ±1 `[n]`, to those that are ready; `flush` returns the rest
    at the end. Output beyond full scale is clipped.

    Input that begins with a WAV header is read up to the data size in it, or to its end if that size is 0 or unknown.
    The output is then WAV with the maximum size in its header, which is corrected at the end if standard output is a
    file. Other input and output is raw. The first 12 bytes decide, or the first one that differs from "RIFF" and
    `_OTHER_FORMATS`.

    The samples that arrive in the first `skip` seconds are dropped: those that a microphone has delivered before.

    Raises `AudioError` if the input begins like a file of another format (`_OTHER_FORMATS`), if a WAV header is damaged
    or not for PCM as above of `sampling_rate` Hz, if the input ends within a sample (after the output of all samples
    before), or if a result is NaN or infinite.
    """

    def read() -> bytes:
        nonlocal left
        data = stdin.read1(min(READ_BYTES, left))
        left -= len(data)
        return data

    def write(samples: np.ndarray) -> None:
        if not np.isfinite(samples).all():
            raise AudioError("standard output: stopped: the result has NaN or infinite samples")
        steps = np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
        stdout.write(steps.astype(_PCM).tobytes())
        stdout.flush()

    with standard_streams() as (stdin, stdout):
        first, rest, left, begin = b"", b"", sys.maxsize, None
        names = (b"RIFF", *_OTHER_FORMATS)
        while len(first) < 12 and any(name.startswith(first[:4]) for name in names):
            if not (data := stdin.read1(12 - len(first))):
                break
            first += data
        if first[:4] in _OTHER_FORMATS:
            raise AudioError(
                f"standard input: neither WAV nor raw PCM, but {_OTHER_FORMATS[first[:4]]}; convert it with "
                f"ffmpeg -i FILE -ar {sampling_rate} -ac 1 -f wav -"
            )
        if first[:4] == b"RIFF" and first[8:] == b"WAVE":
            first, left = b"", read_wav_header(stdin, sampling_rate)
            begin = stdout.tell() if _can_rewrite(stdout) else None
            stdout.write(_wav_header(sampling_rate, _MOST_SIZE))
            stdout.flush()
        if skip:
            end, dropped = time.monotonic() + skip, len(first)
            while (data := read()) and time.monotonic() < end:
                dropped += len(data)
            first = bytes(dropped % _PCM.itemsize) + data  # a zero stands for the dropped half of a sample
        try:
            for data in chain([first], iter(read, b"")):
                data = rest + data
                samples = np.frombuffer(data, _PCM, len(data) // _PCM.itemsize)
                rest = data[samples.nbytes :]
                write(process(samples.astype(np.float32) / _FULL_SCALE))
            write(flush())
        finally:  # also after Ctrl-C
            if begin is not None:
                end = stdout.tell()
                stdout.seek(begin)
                stdout.write(_wav_header(sampling_rate, end - begin - _HEADER_BYTES))
                stdout.seek(end)
    if rest:
        raise AudioError("standard input: ends within a sample; give PCM of 16 bits, one channel")


def read_wav_header(stdin: BufferedReader, sampling_rate: int) -> int:
    """Read a WAV header after "WAVE" up to the first sample; returns the size of the samples, or `sys.maxsize`.

    Raises `AudioError`.
    """

    def read(size: int) -> bytes:
        if len(data := stdin.read(size)) < size:
            raise AudioError("standard input: ends within the WAV header")
        return data

    form = b""
    while True:
        name, size = struct.unpack("<4sI", read(8))
        if name == b"data":
            break
        if size > _MOST_CHUNK:
            raise AudioError(f"standard input: damaged WAV header: chunk {name} of {size} bytes")
        content = read(size + size % 2)
        if name == b"fmt ":
            form = content
    if len(form) < 16:
        raise AudioError("standard input: damaged WAV header: no format before the samples")
    code, channels, rate, _, _, bits = struct.unpack("<HHIIHH", form[:16])
    if code == 0xFFFE and form[24:40] == _PCM_FORMAT:
        code = 1
    if (code, channels, rate, bits) != (1, 1, sampling_rate, 16):
        raise AudioError(
            f"standard input: WAV with {rate} Hz, channels: {channels}, bits: {bits}, format: {code}; convert it to "
            f"{sampling_rate} Hz, one channel, PCM (format 1) of 16 bits"
        )
    return size if 0 < size < _UNKNOWN_SIZE else sys.maxsize


def _can_rewrite(file: BufferedWriter) -> bool:
    """Return whether bytes that were written can be replaced: not in a pipe, and not in a file opened to append."""
    try:
        from fcntl import F_GETFL, fcntl  # not on Windows
    except ImportError:
        return file.seekable()
    return file.seekable() and not fcntl(file.fileno(), F_GETFL) & os.O_APPEND


def _wav_header(sampling_rate: int, size: int) -> bytes:
    """Return the header of a WAV file with `size` bytes of samples, `_HEADER_BYTES` long."""
    form = struct.pack("<HHIIHH", 1, 1, sampling_rate, 2 * sampling_rate, 2, 16)
    riff = struct.pack("<4sI4s4sI", b"RIFF", min(36 + size, _MOST_SIZE), b"WAVE", b"fmt ", len(form))
    return riff + form + struct.pack("<4sI", b"data", min(size, _MOST_SIZE))
