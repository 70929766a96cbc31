"""What TensorBoard shows of a run, also of one that was killed and resumed."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config import Config
from data.dataset import EvalPair
from models.stft import Spectrogram
from tests.fixtures.signals import speech_like, with_noise
from training.logger import TensorBoardLogger, read_curves

RATE = 16_000


@pytest.fixture
def spectrogram(config: Config) -> Spectrogram:
    return Spectrogram(config.stft)


def read(folder: Path) -> EventAccumulator:
    """All that was written."""
    kinds = ("scalars", "images", "audio", "tensors")
    return EventAccumulator(str(folder), dict.fromkeys(kinds, 0)).Reload()


def write_steps(journal: TensorBoardLogger, first: int, last: int, value: float) -> None:
    for step in range(first, last + 1):
        journal.scalars("training", {"loss": value, "rate": step}, step)


def test_every_value_is_a_point_of_its_curve(tmp_path: Path) -> None:
    journal = TensorBoardLogger(tmp_path, 0)
    write_steps(journal, 1, 3, 0.5)
    journal.scalars("validation", {"pesq": 2.5}, 3)
    journal.close()
    curves = read(tmp_path)
    assert set(curves.Tags()["scalars"]) == {"training/loss", "training/rate", "validation/pesq"}
    assert [(point.step, point.value) for point in curves.Scalars("training/rate")] == [(1, 1), (2, 2), (3, 3)]
    assert [(point.step, point.value) for point in curves.Scalars("validation/pesq")] == [(3, 2.5)]


def test_a_killed_run_s_curves_go_on_without_gap_or_overlap(tmp_path: Path) -> None:
    killed = TensorBoardLogger(tmp_path, 0)
    write_steps(killed, 1, 10, 1)
    killed.flush()  # saved here, and …
    assert len(read(tmp_path).Scalars("training/loss")) == 10
    write_steps(killed, 11, 15, 2)
    killed.flush()  # … killed here: what was told meanwhile is on the disk, too
    assert len(read(tmp_path).Scalars("training/loss")) == 15
    time.sleep(1.1)  # files are read in the order of the second in which they were begun
    resumed = TensorBoardLogger(tmp_path, 10)
    write_steps(resumed, 11, 20, 3)
    resumed.close()
    points = read(tmp_path).Scalars("training/loss")
    assert [point.step for point in points] == list(range(1, 21))
    assert [point.value for point in points] == [1] * 10 + [3] * 10


def test_an_example_can_be_heard_in_its_three_versions_and_seen_in_one_picture(
    tmp_path: Path, spectrogram: Spectrogram
) -> None:
    clean = speech_like(0.5)
    example = EvalPair("p1", clean.astype(np.float32), (3 * with_noise(clean, 5)).astype(np.float32))
    journal = TensorBoardLogger(tmp_path, 0)
    journal.example(example, np.zeros_like(example.clean), spectrogram, RATE, 4)
    journal.close()
    tags = read(tmp_path).Tags()
    assert set(tags["audio"]) == {"p1/noisy", "p1/enhanced", "p1/clean"}
    assert tags["images"] == ["p1/spectrograms"]
    sound = read(tmp_path).Audio("p1/clean")[0]
    assert (sound.step, sound.sample_rate, sound.length_frames) == (4, RATE, len(clean))
    image = read(tmp_path).Images("p1/spectrograms")[0]
    frames, gap = len(clean) // 100 + 1, 4
    assert (image.step, image.height, image.width) == (4, 256, 3 * frames + 2 * gap)


def test_a_run_s_curves_can_be_read_again(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "none") == read_curves(tmp_path) == {}
    journal = TensorBoardLogger(tmp_path, 0)
    write_steps(journal, 1, 2, 0.5)
    journal.scalars("validation", {"pesq": 2.5}, 2)
    journal.close()
    assert read_curves(tmp_path) == {
        "training/loss": [(1, 0.5), (2, 0.5)],
        "training/rate": [(1, 1), (2, 2)],
        "validation/pesq": [(2, 2.5)],
    }
