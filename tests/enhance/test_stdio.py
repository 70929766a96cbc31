"""A file, raw PCM or WAV through standard input and output."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from queue import Queue
from threading import Thread

import numpy as np
import pytest
import soundfile

from data.audio import AudioError
from enhance import stdio
from enhance.stdio import pipe_file, pipe_pcm, read_wav_header


@contextmanager
def standard_files(folder: Path, content: bytes | None, output: str = "stdout", mode: str = "w") -> Iterator[Path]:
    """Replace standard input, closed without `content`, and output by files; yields the path of the output."""
    (folder / "stdin").write_bytes(content or b"")
    with (
        pytest.MonkeyPatch.context() as patch,
        (folder / "stdin").open() as stdin,
        (folder / output).open(mode) as stdout,
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
        pipe_pcm(process, lambda: np.array([1.5, -1.5], np.float32), 16_000)
    assert np.array_equal(np.concatenate(received), [0.5, -1 / 32_768, -1])
    # The last two samples, beyond full scale, are clipped.
    assert output.read_bytes() == b"\x00\x40\x00\xc0\x01\x00\x02\x00\xfe\xff" + b"\xff\x7f\x00\x80"


@pytest.mark.parametrize("reads", [1, 2])
def test_what_waits_at_the_start_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: int) -> None:
    samples = np.arange(30_000, dtype="<i2")
    received: list[np.ndarray] = []

    def process(piece: np.ndarray) -> np.ndarray:
        received.append(piece)
        return piece

    clock = iter([0.0, *[0.1] * reads, 0.6])
    monkeypatch.setattr(stdio.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(stdio, "READ_BYTES", 10_001)
    with standard_files(tmp_path, samples.tobytes()) as output:
        pipe_pcm(process, lambda: np.zeros(0, np.float32), 16_000, skip=0.5)
    dropped, half = divmod(12 + 10_001 * reads, 2)
    expected = samples[dropped:].copy()
    expected[:half] &= ~0xFF  # of a sample that is cut the upper byte is left
    np.testing.assert_array_equal(np.concatenate(received) * 32_768, expected)
    assert output.read_bytes() == expected.tobytes()


@pytest.mark.parametrize("start", [b"fLaC", b"OggS", b"ID3\4", b"FORM", b"RF64"])
def test_other_formats_are_not_played_as_noise(tmp_path: Path, start: bytes) -> None:
    with standard_files(tmp_path, start + bytes(5000)) as output, pytest.raises(AudioError, match="ffmpeg"):
        pipe_pcm(lambda piece: piece, lambda: np.zeros(0, np.float32), 16_000)
    assert output.read_bytes() == b""


def test_nan_ends_the_output(tmp_path: Path) -> None:
    samples = np.array([0.0, np.nan], np.float32)
    with standard_files(tmp_path, b"1234") as output, pytest.raises(AudioError, match="NaN"):
        pipe_pcm(lambda _: samples, lambda: samples, 16_000)
    assert output.read_bytes() == b""


PCM = np.arange(1, 31, dtype="<i2").tobytes()
PLAIN = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
EXTENSIBLE = struct.pack(
    "<HHIIHHHHIIHH8s", 0xFFFE, 1, 16_000, 32_000, 2, 16, 22, 16, 4, 1, 0, 16, b"\x80\0\0\xaa\0\x38\x9b\x71"
)


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(content) if size is None else size) + content + bytes(len(content) % 2)


def wav(*chunks: bytes) -> bytes:
    return chunk(b"RIFF", b"WAVE" + b"".join(chunks))


def pipe_unchanged(folder: Path, content: bytes) -> bytes:
    """Return what comes out when samples stay as they are."""
    with standard_files(folder, content) as output:
        pipe_pcm(lambda samples: samples, lambda: np.zeros(0, np.float32), 16_000)
    return output.read_bytes()


@pytest.mark.parametrize("form", [PLAIN, PLAIN + b"\0\0", EXTENSIBLE], ids=len)
@pytest.mark.parametrize("size", [None, 0, 0x7FFF_F000, 0xFFFF_FFFF])
def test_wav(tmp_path: Path, form: bytes, size: int | None) -> None:
    """With an unknown size all that follows are samples, else what follows the samples is ignored."""
    others = chunk(b"LIST", b"odd"), chunk(b"junk", bytes(40))
    after = chunk(b"LIST", b"more") if size is None else b""
    enhanced = pipe_unchanged(
        tmp_path, wav(others[0], chunk(b"fmt ", form), others[1], chunk(b"data", PCM, size), after)
    )
    assert enhanced == wav(chunk(b"fmt ", PLAIN), chunk(b"data", PCM))
    samples, rate = soundfile.read(tmp_path / "stdout", dtype="int16")
    assert rate == 16_000 and samples.tobytes() == PCM


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"RI",
        b"RIFF",
        b"RIFF\0\0",
        b"RIFFWAVE",
        b"RIFX" + PCM,
        b"RIFF" + PCM,
        b"RIFF" + PCM[:7] + b"W",
        b"abcdef",
        PCM,
    ],
    ids=repr,
)
def test_raw_pcm_is_not_taken_for_wav(tmp_path: Path, content: bytes) -> None:
    assert pipe_unchanged(tmp_path, content) == content


@pytest.mark.parametrize("size", [0, 0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF, 0x7FFF_EFFE])
def test_unknown_sizes(size: int) -> None:
    """0, and what sox, arecord and ffmpeg write to a pipe; the last is a size: 18 hours."""
    header = wav(chunk(b"fmt ", PLAIN), chunk(b"data", b"", size))[12:]
    expected = size if size == 0x7FFF_EFFE else sys.maxsize
    assert read_wav_header(BufferedReader(BytesIO(header)), 16_000) == expected


DATA = chunk(b"data", PCM)
WRONG_RATE = struct.pack("<HHIIHH", 1, 1, 44_100, 88_200, 2, 16)
STEREO = struct.pack("<HHIIHH", 1, 2, 16_000, 64_000, 4, 16)
FLOAT = struct.pack("<HHIIHH", 3, 1, 16_000, 64_000, 4, 32)
BYTES = struct.pack("<HHIIHH", 1, 1, 16_000, 16_000, 1, 8)
FLOAT_EXTENSIBLE = EXTENSIBLE[:24] + b"\x03" + EXTENSIBLE[25:]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (wav(chunk(b"fmt ", WRONG_RATE), DATA), "44100 Hz"),
        (wav(chunk(b"fmt ", STEREO), DATA), "channels: 2"),
        (wav(chunk(b"fmt ", FLOAT), DATA), "bits: 32, format: 3"),
        (wav(chunk(b"fmt ", FLOAT_EXTENSIBLE), DATA), "format: 65534"),
        (wav(chunk(b"fmt ", BYTES), DATA), "bits: 8"),
        (wav(chunk(b"fmt ", PLAIN[:14]), DATA), "no format"),
        (wav(DATA, chunk(b"fmt ", PLAIN)), "no format"),
        (wav(chunk(b"fmt ", PLAIN), chunk(b"LIST", b"", 2**24 + 1)), "LIST"),
        (wav(), "ends within"),
        (wav(chunk(b"fmt ", PLAIN)), "ends within"),
        (wav(chunk(b"fmt ", PLAIN), DATA)[:30], "ends within"),
        (wav(chunk(b"fmt ", PLAIN), DATA)[:40], "ends within"),
    ],
)
def test_wrong_and_damaged_wav(tmp_path: Path, content: bytes, word: str) -> None:
    with standard_files(tmp_path, content) as output, pytest.raises(AudioError, match=word) as caught:
        pipe_pcm(lambda samples: samples, lambda: np.zeros(0, np.float32), 16_000)
    assert str(caught.value).startswith("standard input: ")
    assert caught.value.exit_code == 1
    assert output.read_bytes() == b""


def test_the_size_is_corrected_after_an_error(tmp_path: Path) -> None:
    """As after Ctrl-C; bytes before and after the output, of other commands with the same file, remain."""

    def interrupt() -> np.ndarray:
        raise KeyboardInterrupt

    with standard_files(tmp_path, wav(chunk(b"fmt ", PLAIN), DATA)) as output:
        sys.stdout.write("before")
        sys.stdout.flush()
        with pytest.raises(KeyboardInterrupt):
            pipe_pcm(lambda samples: samples, interrupt, 16_000)
        sys.stdout.write("after")
    assert output.read_bytes() == b"before" + wav(chunk(b"fmt ", PLAIN), DATA) + b"after"


def test_a_file_that_is_appended_to_keeps_the_first_header(tmp_path: Path) -> None:
    """Whatever is written to it goes to its end."""
    with standard_files(tmp_path, wav(chunk(b"fmt ", PLAIN), DATA), mode="a") as output:
        pipe_pcm(lambda samples: samples, lambda: np.zeros(0, np.float32), 16_000)
    assert output.read_bytes()[44:] == PCM


@pytest.mark.parametrize("header", [b"", wav(chunk(b"fmt ", PLAIN), chunk(b"data", b"", 0))], ids=["raw", "wav"])
def test_samples_are_not_delayed(monkeypatch: pytest.MonkeyPatch, header: bytes) -> None:
    """Each sample is processed, and comes out, while the input stays open; so does the header."""
    received: Queue[list[float]] = Queue()

    def process(samples: np.ndarray) -> np.ndarray:
        if len(samples):
            received.put((samples * 32_768).tolist())
        return samples

    (source, feed), (result, target) = os.pipe(), os.pipe()
    with os.fdopen(source) as stdin, os.fdopen(target, "w") as stdout, os.fdopen(result, "rb") as output:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stdout", stdout)
        thread = Thread(target=pipe_pcm, args=(process, lambda: np.zeros(0, np.float32), 16_000), daemon=True)
        thread.start()
        for byte in header:  # byte by byte
            os.write(feed, bytes([byte]))
        expected = wav(chunk(b"fmt ", PLAIN), DATA)[:44] if header else b""
        assert len(output.read(len(expected))) == len(expected)
        for start in range(0, 60, 4):
            os.write(feed, PCM[start : start + 4])
            first = start // 2 + 1
            assert received.get(timeout=60) == [first, first + 1]
            assert output.read(4) == PCM[start : start + 4]
        os.close(feed)
        thread.join(60)
        assert not thread.is_alive()
