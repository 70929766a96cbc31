"""Standard input to standard output: a whole audio file, or live sound as raw PCM."""

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
"""Maximum size of one read: the capacity of a pipe."""

_PCM = np.dtype("<i2")
_FULL_SCALE = 32_768


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


def pipe_pcm(process: Callable[[np.ndarray], np.ndarray], flush: Callable[[], np.ndarray]) -> None:
    """Process raw PCM from standard input to standard output as it comes: 16 bits, little endian, one channel.

    `process` maps the samples that have arrived, float32 in ±1 `[n]`, to those that are ready; `flush` returns the rest
    at the end. Output beyond full scale is clipped. Raises `AudioError` if the input ends within a sample (after the
    output of all samples before) or a result is NaN or infinite.
    """

    def write(samples: np.ndarray) -> None:
        if not np.isfinite(samples).all():
            raise AudioError("standard output: stopped: the result has NaN or infinite samples")
        steps = np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1)
        stdout.write(steps.astype(_PCM).tobytes())
        stdout.flush()

    rest = b""
    with standard_streams() as (stdin, stdout):
        while data := stdin.read1(READ_BYTES):
            data = rest + data
            samples = np.frombuffer(data, _PCM, len(data) // _PCM.itemsize)
            rest = data[samples.nbytes :]
            write(process(samples.astype(np.float32) / _FULL_SCALE))
        write(flush())
    if rest:
        raise AudioError("standard input: ends within a sample; give raw PCM of 16 bits, one channel")
