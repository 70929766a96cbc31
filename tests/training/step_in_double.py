"""Five training steps in double precision, as many processes as torchrun starts; rank 0 saves the weights and figures.

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.training.step_in_double OUT BATCH_SIZE

In double precision, since AdamW's first steps follow the sign of a gradient, however small: in single precision the
order in which two processes sum decides over some of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from config import Config, load_config
from data.dataset import Batch, Crop, load_batches
from tests.fixtures.commands import ROOT
from tests.fixtures.signals import speech_like, with_noise
from training.pesq_labels import PesqLabeler
from training.trainer import Trainer
from utils.distributed import join_group

STEPS = 5
SEGMENT = 8000


class Utterances:
    """Synthetic crops; every fifth has a silent clean side, and so no label."""

    def __len__(self) -> int:
        return 2 * STEPS

    def crop(self, epoch: int, index: int) -> Crop:  # noqa: ARG002
        speech = speech_like(SEGMENT / 16_000, seed=index)
        clean = speech * (index % 5 != 0)
        return Crop(clean.astype(np.float32), with_noise(speech, 5, seed=index).astype(np.float32))


def small(batch_size: int) -> Config:
    config = load_config(ROOT / "configs" / "imse.json", ["model.channels=8", f"data.segment_size={SEGMENT}"])
    return replace(config, train=replace(config.train, batch_size=batch_size))


def in_double(batches: Iterable[Batch]) -> Iterable[Batch]:
    for batch in batches:
        yield Batch(batch.indices, batch.clean.astype(np.float64), batch.noisy.astype(np.float64))


def main() -> None:
    torch.set_default_dtype(torch.float64)
    config = small(int(sys.argv[2]))
    group = join_group("cpu")
    with PesqLabeler(1) as labels:
        trainer = Trainer(config, group, labels)
        shares = {"batch_size": config.train.batch_size, "rank": group.rank, "ranks": group.ranks}
        batches = in_double(load_batches(Utterances(), config.train.seed, 0, 0, **shares, workers=1))
        figures = [trainer.step(batch, 0) for batch in batches]
        state = trainer.state_dict()  # from all ranks
        second_is_there = group.any(group.rank == 1)  # as where a signal reaches one of them
    if group.leads:
        saved = {name: state[name] for name in ("network", "discriminator", "global_step")}
        torch.save(saved | {"figures": figures, "second_is_there": second_is_there}, sys.argv[1])
    group.close()


if __name__ == "__main__":
    main()
