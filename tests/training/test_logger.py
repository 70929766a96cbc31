"""TensorBoard output, also of a run that was killed and resumed."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from data.dataset import EvalPair
from tests.fixtures.signals import speech_like, with_noise
from tests.fixtures.training import read_events
from training.logger import TensorBoardLogger, read_curves

RATE = 16_000


def test_resumed_curves_have_no_gap_and_no_overlap(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "none") == read_curves(tmp_path) == {}
    killed = TensorBoardLogger(tmp_path, 0)
    for step in range(1, 16):
        killed.scalars("training", {"loss": 1, "rate": step}, step)
    killed.flush()  # killed after step 15, last saved after step 10
    assert len(read_curves(tmp_path)["training/loss"]) == 15
    time.sleep(1.1)  # files are read in the order of the second in which they were created
    resumed = TensorBoardLogger(tmp_path, 10)
    for step in range(11, 21):
        resumed.scalars("training", {"loss": 3, "rate": step}, step)
    resumed.close()
    assert read_curves(tmp_path) == {
        "training/loss": [(step, 1 if step <= 10 else 3) for step in range(1, 21)],
        "training/rate": [(step, step) for step in range(1, 21)],
    }


def test_example_has_audio_and_spectrograms(tmp_path: Path) -> None:
    clean = speech_like(0.5)
    pair = EvalPair("p1", clean.astype(np.float32), (3 * with_noise(clean, 5)).astype(np.float32))
    logger = TensorBoardLogger(tmp_path, 0)
    logger.example(pair, np.zeros_like(pair.clean), RATE, 4)
    logger.close()
    events = read_events(tmp_path)
    assert set(events.Tags()["audio"]) == {"p1/noisy", "p1/enhanced", "p1/clean"}
    sound = events.Audio("p1/clean")[0]
    assert (sound.step, sound.sample_rate, sound.length_frames) == (4, RATE, len(clean))
    assert events.Tags()["images"] == ["p1/spectrograms"]
    image = events.Images("p1/spectrograms")[0]
    assert image.step == 4 and image.width > image.height > 100
