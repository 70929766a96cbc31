"""One process or many: what `torchrun` starts, agreed on in one place; with one process each function does nothing.

`torchrun --nproc_per_node 8 train.py …` starts 8 processes of the same script; each works on its own part of every
batch, gradients are averaged, and only rank 0 writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Group:
    """The processes of this run: this one's number from 0, how many there are, and this one's device."""

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


def join_group(device: str) -> Group:
    """Meet the other processes that torchrun has started; alone where it has not.

    `device` is "cpu" or "cuda"; each process of a machine takes the GPU of its local rank.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return Group(0, 1, torch.device(device))
    chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device == "cuda" else torch.device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Group(distributed.get_rank(), ranks, chosen)
