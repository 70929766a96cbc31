"""The processes that torchrun starts where each works on its own files: they meet at the end only."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from torch import distributed

from training.distribution import Group

LONGEST_WAIT = timedelta(weeks=4)
"""For a process whose files take longer than the others'; torch's own limit is for steps of training."""


def rank_count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_ranks(device: str) -> tuple[Group, str]:
    """Meet the other processes, which speak through the CPU; and the device of this one, a GPU each for "cuda"."""
    cpu = torch.device("cpu")
    if rank_count() == 1:
        return Group(0, 1, cpu), device
    distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    own = f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device
    return Group(distributed.get_rank(), distributed.get_world_size(), cpu), own
