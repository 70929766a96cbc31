"""A file or raw PCM through standard input and output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from data.audio import AudioError
from enhance.stdio import pipe_file, pipe_pcm


@contextmanager
def standard_files(folder: Path, content: bytes | None, output: str = "stdout") -> Iterator[Path]:
    """Replace standard input, closed without `content`, and output by files; yields the path of the output."""
    (folder / "stdin").write_bytes(content or b"")
    with (
        pytest.MonkeyPatch.context() as patch,
        (folder / "stdin").open() as stdin,
        (folder / output).open("w") as stdout,
    ):
        patch.setattr(sys, "stdin", None if content is None else stdin)
        patch.setattr(sys, "stdout", stdout)
        yield folder / output


@pytest.mark.parametrize(("part", "stream"), [(0, "standard input"), (1, "standard output")])
def test_messages_name_the_stream(tmp_path: Path, part: int, stream: str) -> None:
    def refuse(*files: Path) -> None:
        raise AudioError(f"{files[part]}: is not speech")

    with standard_files(tmp_path, b"sound") as output, pytest.raises(AudioError, match=f"^{stream}: is not speech$"):
        pipe_file(refuse)
    assert output.read_bytes() == b""


def test_pcm(tmp_path: Path) -> None:
    received: list[np.ndarray] = []

    def process(samples: np.ndarray) -> np.ndarray:
        received.append(samples)
        return np.array([0.5, -0.5, 1.4 / 32_768, 1.6 / 32_768, -1.6 / 32_768], np.float32)

    with standard_files(tmp_path, b"\x00\x40\xff\xff\x00\x80") as output:
        pipe_pcm(process, lambda: np.array([1.5, -1.5], np.float32))
    assert np.array_equal(np.concatenate(received), [0.5, -1 / 32_768, -1])
    # The last two samples, beyond full scale, are clipped.
    assert output.read_bytes() == b"\x00\x40\x00\xc0\x01\x00\x02\x00\xfe\xff" + b"\xff\x7f\x00\x80"


def test_nan_ends_the_output(tmp_path: Path) -> None:
    samples = np.array([0.0, np.nan], np.float32)
    with standard_files(tmp_path, b"1234") as output, pytest.raises(AudioError, match="NaN"):
        pipe_pcm(lambda _: samples, lambda: samples)
    assert output.read_bytes() == b""
