"""From standard input to standard output: a whole audio file, or live sound as raw PCM."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, BufferedWriter
from pathlib import Path

import numpy as np

from data.audio import AudioError

READ_BYTES = 65_536
"""Read at a time at most: as much as a pipe holds."""

_PCM = np.dtype("<i2")
_FULL_SCALE = 32_768


@contextmanager
def standard_streams() -> Iterator[tuple[BufferedReader, BufferedWriter]]:
    """Standard input and output in bytes; raises `AudioError` where they are closed or fail.

    `BrokenPipeError` passes: who reads the output has had enough.
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
    """Standard input to standard output through two files, from and to which `convert` works.

    Where it raises `AudioError`, the message names the stream instead of the file.
    """
    with standard_streams() as (source, target), tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "in"), Path(folder, "out")
        with before.open("wb") as stream:
            shutil.copyfileobj(source, stream)
        try:
            convert(before, after)
        except AudioError as error:
            message = str(error).replace(str(before), "standard input").replace(str(after), "standard output")
            raise AudioError(message) from error
        with after.open("rb") as stream:
            shutil.copyfileobj(stream, target)


def pipe_pcm(process: Callable[[np.ndarray], np.ndarray], flush: Callable[[], np.ndarray]) -> None:
    """Standard input to standard output as the sound comes: 16-bit PCM, little endian, one channel, no header.

    `process` takes what is there, float32 in ±1 `[n]`, and gives what can go, `flush` the rest at the end. Values
    beyond 16 bits are clipped. Raises `AudioError` where the input ends within a sample, after all before has gone,
    and where a result is NaN or infinite.
    """
    rest = b""
    with standard_streams() as (source, target):
        while data := source.read1(READ_BYTES):
            data = rest + data
            samples = np.frombuffer(data, _PCM, len(data) // _PCM.itemsize)
            rest = data[samples.nbytes :]
            _write_pcm(target, process(samples.astype(np.float32) / _FULL_SCALE))
        _write_pcm(target, flush())
    if rest:
        raise AudioError("standard input: ends within a sample; give raw PCM of 16 bits, one channel")


def _write_pcm(target: BufferedWriter, samples: np.ndarray) -> None:
    if not np.isfinite(samples).all():
        raise AudioError("standard output: ends here: the result holds NaN or infinite samples")
    steps = np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
    target.write(steps.astype(_PCM).tobytes())
    target.flush()
