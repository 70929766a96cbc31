"""Five training steps in double precision, as many processes as torchrun starts; rank 0 saves the weights.

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
from data.crops import Batch, Crop, load_batches
from tests.fixtures.commands import ROOT
from tests.fixtures.signals import speech_like, with_noise
from training.distribution import join_group
from training.labels import PesqLabels
from training.steps import Trainer

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
    with PesqLabels(1) as labels:
        trainer = Trainer(config, group, labels)
        shares = {"batch_size": config.train.batch_size, "rank": group.rank, "ranks": group.ranks}
        for batch in in_double(load_batches(Utterances(), config.train.seed, 0, 0, **shares, workers=1)):
            trainer.step(batch, 0)
        state = trainer.state_dict()  # from all ranks
    if group.leads:
        torch.save({name: state[name] for name in ("network", "discriminator", "steps_done")}, sys.argv[1])
    group.close()


if __name__ == "__main__":
    main()
