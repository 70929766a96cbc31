"""Damaged and random audio files are either read or rejected with one line, and never give half an output."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import strategies as st

from data.audio import LARGEST_SAMPLE, AudioError, AudioReader
from enhance.enhancer import Enhancer
from enhance.files import enhance_file
from tests.fixtures.fuzzing import assert_one_line, damaged, try_all
from tests.fixtures.recordings import NOISE, RATE, files_below

MAX_SAMPLES = 50_000_000  # more than any of the files can hold


@pytest.fixture(scope="module")
def audio_files() -> st.SearchStrategy[bytes]:
    """Damaged short files of every format that libsndfile writes, longer ones of common formats, and random bytes."""

    def encoded(samples: np.ndarray, container: str, subtype: str) -> bytes:
        stream = io.BytesIO()
        soundfile.write(stream, samples, RATE, subtype, format=container)
        return stream.getvalue()

    every: list[bytes] = []
    for container in sorted(soundfile.available_formats().keys() - {"SD2"}):  # SD2 needs a second file
        for subtype in soundfile.available_subtypes(container):
            for channels in (1, 2):
                with suppress(soundfile.SoundFileError):  # mono only, or for another rate
                    every.append(encoded(NOISE[: 200 * channels].reshape(-1, channels), container, subtype))
    assert len(every) > 100
    common = [encoded(NOISE[:3000], *kind) for kind in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("FLAC", "PCM_24"))]
    for value in (np.nan, -np.inf, 1e30):
        common.append(encoded(np.where(np.arange(300) == 200, value, NOISE[:300, 0]), "WAV", "FLOAT"))
    return damaged(every) | damaged(common) | st.binary(max_size=300)


@pytest.mark.slow
def test_files_are_enhanced_or_rejected(
    audio_files: st.SearchStrategy[bytes], tmp_path: Path, identity: Enhancer
) -> None:
    source, target = tmp_path / "any.wav", tmp_path / "out/any.wav"

    def check(content: bytes) -> None:
        source.write_bytes(content)
        target.unlink(missing_ok=True)
        count = 0
        try:
            with AudioReader(source) as reader:
                for block in reader.blocks():
                    assert block.dtype == np.float32
                    assert block.shape[1] == reader.format.channels
                    assert np.abs(block).max() <= LARGEST_SAMPLE
                    count += len(block)
                    assert block.shape[1] * count < MAX_SAMPLES
                assert reader.frames == count > 0
        except AudioError as error:
            assert_one_line(error, source)
        try:
            enhance_file(source, target, identity, "overlap")
        except AudioError as error:
            assert str(error).startswith((f"{source}: ", f"{target}: "))
            assert len(str(error).splitlines()) == 1
            assert files_below(tmp_path) == {"any.wav"}
        else:
            assert files_below(tmp_path) == {"any.wav", "out/any.wav"}
            with AudioReader(source) as noisy, AudioReader(target) as enhanced:
                assert enhanced.format == noisy.format
                # libsndfile adds a sample in some VOC files, and fills the last packet of ADPCM.
                assert 0 <= sum(map(len, enhanced.blocks())) - count < 64

    try_all(10_000, audio_files, check)
