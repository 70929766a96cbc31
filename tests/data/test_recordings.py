"""AudioCache kept in memory: exact in 16 bits, read once, and every bad file named at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import data.dataset
from data.audio import AudioError, read_audio
from data.dataset import AudioCache
from tests.fixtures.recordings import NOISE, RATE, save

STEPS = np.arange(-32_768, 32_768, dtype=np.float32) / 32_768


@pytest.mark.parametrize("keep", [True, False])
def test_every_step_of_16_bits_is_given_back_exactly(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "steps.wav"
    save(path, STEPS)
    recordings = AudioCache(RATE, keep)
    for _ in range(2):  # decoded, then perhaps kept
        samples = recordings.samples(path)
        assert samples.dtype == np.float32
        assert np.array_equal(samples, STEPS)
    assert recordings.bytes_kept == (2 * 65_536 if keep else 0)


def test_channels_are_averaged_and_what_is_too_loud_is_clipped(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    save(path, np.array([[0.5, -0.25], [4, 2], [-4, -2], [0.75, -0.75]]), subtype="FLOAT")
    assert AudioCache(RATE, True).samples(path).tolist() == [0.125, 32_767 / 32_768, -1, 0]


@pytest.mark.parametrize("keep", [True, False])
def test_another_rate_is_resampled(tmp_path: Path, keep: bool) -> None:
    path = tmp_path / "fast.wav"
    save(path, NOISE, rate=48_000)
    samples = AudioCache(RATE, keep).samples(path)
    assert samples.shape == (16_000,)
    np.testing.assert_allclose(samples, read_audio(path, RATE)[0][:, 0], rtol=0, atol=2**-16)


def test_files_are_decoded_once_and_no_longer_needed_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{index}.wav" for index in range(5)]
    for index, path in enumerate(paths):
        save(path, STEPS[1000 * index :][:100])
    decoded: list[Path] = []

    def spy(path: Path, rate: int):
        decoded.append(path)
        return read_audio(path, rate)

    monkeypatch.setattr(data.dataset, "read_audio", spy)
    recordings = AudioCache(RATE, True)
    recordings.load(paths + paths, workers=3, quiet=True)
    assert sorted(decoded) == paths
    assert recordings.bytes_kept == 5 * 200
    for index, path in enumerate(paths):
        path.unlink()
        assert np.array_equal(recordings.samples(path), STEPS[1000 * index :][:100])


def test_what_is_not_kept_is_not_loaded_ahead(tmp_path: Path) -> None:
    recordings = AudioCache(RATE, False)
    recordings.load([tmp_path / "missing.wav"], workers=1, quiet=True)
    with pytest.raises(AudioError, match=r"missing\.wav: cannot be read"):
        recordings.samples(tmp_path / "missing.wav")


def test_all_bad_files_are_counted_and_ten_are_shown(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index:02d}.wav" for index in range(14)]
    save(paths[0], NOISE)
    save(paths[7], NOISE)
    paths[1].write_text("Dear diary", encoding="utf-8")
    with pytest.raises(AudioError) as caught:
        AudioCache(RATE, True).load(paths + paths, workers=3, quiet=True)
    summary, *shown = str(caught.value).splitlines()
    assert summary == "12 of 14 files cannot be used:"
    assert [line.split(":")[0].strip() for line in shown] == [
        str(paths[index]) for index in (1, 2, 3, 4, 5, 6, 8, 9, 10, 11)
    ]
    assert "not an audio file" in shown[0]
    assert "cannot be read" in shown[1]


@pytest.mark.parametrize("quiet", [True, False])
def test_progress_is_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: bool) -> None:
    save(tmp_path / "a.wav", NOISE)
    AudioCache(RATE, True).load([tmp_path / "a.wav"], workers=1, quiet=quiet)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("1/1" in printed.err) != quiet
