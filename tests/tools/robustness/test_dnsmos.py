"""DNSMOS through its package, or what stands for it here."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from metrics.signals import ScoreError
from tests.fixtures.signals import speech_like, with_noise
from tools.robustness.dnsmos import DNSMOS, load_dnsmos


def test_the_package_is_asked_within_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[np.ndarray] = []

    def run(sample: np.ndarray, sr: int) -> dict[str, float]:
        assert sr == 16_000
        asked.append(sample)
        return {name: float(place) for place, name in enumerate(DNSMOS)} | {"other": 9}

    package = ModuleType("speechmos.dnsmos")
    monkeypatch.setattr(package, "run", run, raising=False)
    monkeypatch.setitem(sys.modules, "speechmos", ModuleType("speechmos"))
    monkeypatch.setitem(sys.modules, "speechmos.dnsmos", package)
    dnsmos = load_dnsmos()
    assert dnsmos(np.array([0.5, -2, 3])) == {"ovrl_mos": 0, "sig_mos": 1, "bak_mos": 2, "p808_mos": 3}
    assert asked[0].tolist() == [0.5, -1, 1]
    for bad in (np.zeros(100), np.array([0, np.nan])):
        with pytest.raises(ScoreError, match="DNSMOS"):
            dnsmos(bad)
    assert len(asked) == 1


def test_real_scores_fall_with_noise() -> None:
    pytest.importorskip("speechmos.dnsmos")
    dnsmos = load_dnsmos()
    clean = speech_like(4)
    assert dnsmos(clean)["bak_mos"] > dnsmos(with_noise(clean, 0))["bak_mos"]
