"""Train a few steps in double precision; rank 0 saves weights and logs.

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.training.step_in_double OUT BATCH_SIZE

In single precision the order of summation, which differs between one process and two, decides on the sign of some of
AdamW's first steps. The labels are given, since PESQ amplifies rounding.
"""

from __future__ import annotations

import math
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch

from config import load_config
from data.dataset import Batch, Crop, load_batches
from tests.fixtures.commands import ROOT
from tests.fixtures.signals import speech_like, with_noise
from training.pesq_labels import PesqLabeler
from training.trainer import Trainer
from utils.distributed import join_group

STEPS = 2
SEGMENT = 1000


class Utterances:
    """Synthetic crops."""

    def __len__(self) -> int:
        return 2 * STEPS

    def crop(self, epoch: int, index: int) -> Crop:  # noqa: ARG002
        clean = speech_like(0.5, seed=index)[1200:][:SEGMENT]
        return Crop(clean.astype(np.float32), with_noise(clean, 5, seed=index).astype(np.float32))


class LabelsFromCrops(PesqLabeler):
    """Labels that depend on the clean crop alone; the first crop has none."""

    def __init__(self) -> None:
        self.known = [Utterances().crop(0, index).clean.astype(np.float64) for index in range(2 * STEPS)]

    def submit(self, clean: np.ndarray, enhanced: np.ndarray) -> list[Future[float]]:  # noqa: ARG002
        futures: list[Future[float]] = []
        for crop in clean:
            index = next(index for index, known in enumerate(self.known) if np.array_equal(known, crop))
            futures.append(Future())
            futures[-1].set_result(math.nan if index == 0 else 1 + 0.3 * index)
        return futures


def main(out: Path, batch_size: int) -> None:
    config = load_config(
        ROOT / "configs" / "imse.json",
        [
            *("model.channels=8", "stft.n_fft=126", "stft.win_size=126", "stft.hop_size=60"),
            *(f"data.segment_size={SEGMENT}", f"train.batch_size={batch_size}"),
        ],
    )
    group = join_group("cpu")
    trainer = Trainer(config, group, LabelsFromCrops())
    share = {"batch_size": config.train.batch_size, "rank": group.rank, "ranks": group.ranks}
    logs: list[dict[str, float]] = []
    for batch in load_batches(Utterances(), config.train.seed, 0, 0, **share, workers=1):
        double = Batch(batch.indices, batch.clean.astype(np.float64), batch.noisy.astype(np.float64))
        logs.append(group.mean(trainer.step(double, 0)))
    state = trainer.state_dict()
    second_is_there = group.any(group.rank == 1)  # as when a signal reaches one process only
    if group.leads:
        saved = {name: state[name] for name in ("network", "discriminator", "global_step")}
        torch.save(saved | {"logs": logs, "second_is_there": second_is_there}, out)
    group.close()


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    main(Path(sys.argv[1]), int(sys.argv[2]))
