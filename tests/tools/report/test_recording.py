"""What the page gets of one recording: sound that browsers decode, pictures on common scales, the input SNR."""

from __future__ import annotations

import json
import math
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from tests.fixtures.recordings import RATE, save
from tests.fixtures.signals import speech_like, with_noise
from tools.report import recording
from tools.report.pictures import power_columns, spectrogram_picture, waveform_picture
from tools.report.recording import Prepared, Recording, prepare


def tone(hz: float, seconds: float = 1.0, rate: int = RATE, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


def media_of(prepared: Prepared) -> dict[str, Any]:
    assert prepared.media is not None
    return json.loads(prepared.media)


def picture_of(content: bytes) -> np.ndarray:
    """Brightness `[height, width]`."""
    return np.asarray(Image.open(BytesIO(content)).convert("L")).astype(float)


def test_a_tone_is_at_its_place_in_time_and_frequency() -> None:
    signal = np.concatenate([np.zeros(RATE // 2), tone(2000, 0.5)]).astype(np.float32)
    power = power_columns(signal, RATE, 2.0)
    assert power.shape == (257, 250)  # 8000 Hz / 256 a bin, 8 ms a column
    column = int(0.75 / 0.008)
    assert np.argmax(power[:, column]) == 64
    loud = power[64] > power.max() / 100
    assert 0.49 < np.flatnonzero(loud)[0] * 0.008 < 0.52
    assert 0.98 < np.flatnonzero(loud)[-1] * 0.008 < 1.01
    brightness = picture_of(spectrogram_picture(power, float(power.max())))
    row, place = np.unravel_index(np.argmax(brightness[:, : column + 1]), (257, column + 1))
    assert abs(256 - row - 64) <= 2  # low frequencies below
    assert place > 60


def test_long_signals_are_averaged_into_a_screen_s_width() -> None:
    signal = np.random.default_rng(0).normal(0, 0.1, 40 * RATE).astype(np.float32)
    power = power_columns(signal, RATE, 40.0)
    assert power.shape[1] == 1000
    # White noise has the same power everywhere: variance times the window's energy.
    assert power[10:-10].mean() == pytest.approx(0.01 * np.sum(np.hanning(513) ** 2), rel=0.01)


def test_the_waveform_reaches_as_far_as_the_signal() -> None:
    signal = np.concatenate([np.full(500, 0.5), np.full(500, -0.25)]).astype(np.float32)
    ink = picture_of(waveform_picture(signal, 2000, peak=1.0)) < 128
    height = len(ink)
    up, down, behind = (np.flatnonzero(ink[:, column]) - height // 2 for column in (100, 400, 900))
    assert (up.min(), up.max()) == (-24, 0)
    assert (down.min(), down.max()) == (0, 12)
    assert (behind.min(), behind.max()) == (0, 0)


def test_all_versions_share_the_scales(tmp_path: Path) -> None:
    save(tmp_path / "loud.wav", tone(1000))
    save(tmp_path / "quiet.wav", tone(1000, level=0.05))
    prepared = prepare(Recording((tmp_path / "loud.wav", tmp_path / "quiet.wav"), None, None))
    loud, quiet = (picture_of(b64decode(version["spectrogram"])) for version in media_of(prepared)["versions"])
    assert loud.max() > quiet.max() + 20
    loud, quiet = (picture_of(b64decode(version["waveform"])) < 128 for version in media_of(prepared)["versions"])
    assert loud.sum() > 5 * quiet.sum()


@pytest.mark.parametrize(("rate", "played"), [(2000, 8000), (16_000, 16_000), (44_100, 44_100), (384_000, 192_000)])
def test_the_sound_is_flac_at_a_rate_that_browsers_play(tmp_path: Path, rate: int, played: int) -> None:
    stereo = np.stack([tone(300, 0.2, rate), tone(500, 0.2, rate)], axis=1)
    save(tmp_path / "a.wav", stereo, rate=rate)
    prepared = prepare(Recording((tmp_path / "a.wav",), 0, None))
    samples, found = soundfile.read(BytesIO(b64decode(media_of(prepared)["versions"][0]["sound"])))
    assert (found, samples.shape[1]) == (played, 2)
    assert len(samples) / found == pytest.approx(0.2, abs=1e-3)
    if rate == played:
        assert np.array_equal(samples, np.rint(stereo * 32768) / 32768)


def test_input_snr(tmp_path: Path) -> None:
    clean = speech_like(1.0)
    save(tmp_path / "clean.wav", clean)
    save(tmp_path / "noisy.wav", with_noise(clean, 7)[:-100])
    save(tmp_path / "other.wav", with_noise(clean, 7)[:-1000])
    save(tmp_path / "stereo.wav", np.stack([clean, clean], axis=1))
    values = {
        name: prepare(Recording((tmp_path / f"{name}.wav", tmp_path / "clean.wav"), 0, 1)).snr_db
        for name in ("noisy", "other", "stereo", "clean")
    }
    assert values.pop("noisy") == pytest.approx(7, abs=0.05)
    assert all(math.isnan(value) for value in values.values())


def test_what_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "good.wav", tone(1000))
    save(tmp_path / "long.wav", tone(1000, 3.0))
    monkeypatch.setattr(recording, "MAX_SECONDS", 2)
    prepared = prepare(Recording((tmp_path / "good.wav", tmp_path / "long.wav", tmp_path / "none.wav"), None, None))
    assert prepared.problems == (
        f"{tmp_path}/long.wav: longer than 2 s; split it",
        f"{tmp_path}/none.wav: cannot be read: No such file or directory",
    )
    assert [version is None for version in media_of(prepared)["versions"]] == [False, True, True]
    assert prepared.seconds == 1.0
    nothing = prepare(Recording((tmp_path / "none.wav",), None, None))
    assert (nothing.playable, nothing.media) == (False, None)
