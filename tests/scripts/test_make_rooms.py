"""Simulated room responses: level, alignment, decay, repeatability, continuation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from data.audio import read_audio
from scripts import make_rooms
from scripts.make_rooms import LEAD, RATE, trim
from tests.fixtures.commands import call_main

pytest.importorskip("pyroomacoustics")


def test_rooms(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        done = call_main(make_rooms.main, tmp_path / folder, "--count", 3, "--quiet")
        assert done.returncode == 0, done.stderr
    for index in range(3):
        name = f"room{index:04d}.wav"
        samples, _ = read_audio(tmp_path / "a" / name)
        response = samples[:, 0].astype(np.float64)
        assert np.abs(response).argmax() == LEAD
        assert response[LEAD] == pytest.approx(1)
        energy = np.cumsum(response[::-1] ** 2)[::-1]
        assert 0.02 * RATE < np.sum(energy > 1e-3 * energy[0]) < RATE  # a decay of 30 dB
        assert np.array_equal(read_audio(tmp_path / "b" / name)[0], samples)


def test_existing_rooms_are_kept(tmp_path: Path) -> None:
    (tmp_path / "room0000.wav").write_text("mine")
    assert call_main(make_rooms.main, tmp_path, "--count", 2, "--quiet").returncode == 0
    assert (tmp_path / "room0000.wav").read_text() == "mine"
    assert (tmp_path / "room0001.wav").stat().st_size > 1000


def test_trim_by_hand() -> None:
    response = np.concatenate([np.zeros(20), [2.0], np.full(5, 1e-1), np.full(5, 1e-5)])
    trimmed = trim(response)
    np.testing.assert_allclose(trimmed, np.concatenate([np.zeros(LEAD), [1.0], np.full(5, 5e-2)]), rtol=1e-6)


def test_package_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    done = call_main(make_rooms.main, tmp_path / "rooms")
    assert done.returncode == 2
    assert "pyroomacoustics" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "rooms").exists()
