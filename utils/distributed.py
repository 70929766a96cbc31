"""One process or many: what `torchrun` starts, agreed on in one place; with one process each function does nothing.

`torchrun --nproc_per_node 8 train.py …` starts 8 processes of the same script; each works on its own part of every
batch, gradients are averaged, and only rank 0 writes (`join_group`). Those of `inference.py` work on their own files,
and meet at the end only (`join_for_files`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

LONGEST_WAIT = timedelta(weeks=4)
"""For a process whose files take longer than the others'; torch's own limit is for steps of training."""


@dataclass(frozen=True)
class Group:
    """The processes of this run: this one's number from 0, how many there are, and where this one's tensors are."""

    rank: int
    ranks: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all processes."""
        if self.ranks == 1:
            return module
        return DistributedDataParallel(module, device_ids=[self.device] if self.device.type == "cuda" else None)

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Scalars averaged over all processes."""
        stacked = torch.stack([value.detach().float() for value in values.values()])
        if self.ranks > 1:
            distributed.all_reduce(stacked)
        return dict(zip(values, (stacked / self.ranks).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.ranks == 1:
            return flag
        flags = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags)

    def gather(self, value: Any) -> list[Any]:
        """What each process gives, in the order of ranks, in every process."""
        if self.ranks == 1:
            return [value]
        values: list[Any] = [None] * self.ranks
        distributed.all_gather_object(values, value)
        return values

    def close(self) -> None:
        """Leave the group."""
        if self.ranks > 1:
            distributed.destroy_process_group()


def rank_count() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_group(device: str) -> Group:
    """Meet the other processes that torchrun has started; alone where it has not.

    `device` is "cpu" or "cuda"; each process of a machine takes the GPU of its local rank.
    """
    chosen = _own_device(device)
    if rank_count() == 1:
        return Group(0, 1, chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Group(distributed.get_rank(), rank_count(), chosen)


def join_for_files(device: str) -> tuple[Group, str]:
    """Meet the other processes, which speak through the CPU and may wait long; and the device of this one."""
    cpu = torch.device("cpu")
    if rank_count() == 1:
        return Group(0, 1, cpu), device
    distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    return Group(distributed.get_rank(), rank_count(), cpu), str(_own_device(device))


def _own_device(device: str) -> torch.device:
    """Of several processes, each takes the GPU of its local rank for "cuda"."""
    if device == "cuda" and rank_count() > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(device)
