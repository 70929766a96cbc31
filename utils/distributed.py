"""Processes started by torchrun. Without torchrun there is one process, and every function here does nothing.

`torchrun --nproc_per_node 8 train.py …` starts 8 processes of the same script. Each works on its part of every batch,
gradients are averaged, and only rank 0 writes files (`join_group`). The processes of `inference.py` work on different
files and meet at the end (`join_for_files`).
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

FILES_TIMEOUT = timedelta(weeks=4)
"""How long a process waits for others that have more files; PyTorch's default is meant for training steps."""


@dataclass(frozen=True)
class Group:
    """The processes of a run: the rank of this one, their number, and the device of this one."""

    rank: int
    ranks: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module with its gradients averaged over all processes."""
        if self.ranks == 1:
            return module
        return DistributedDataParallel(module, device_ids=[self.device] if self.device.type == "cuda" else None)

    def mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Average scalar tensors over all processes; waits for the device."""
        stacked = torch.stack([value.detach().to(self.device, torch.float64) for value in values.values()])
        if self.ranks > 1:
            distributed.all_reduce(stacked)
        return dict(zip(values, (stacked / self.ranks).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; waits for the processes, not for their devices."""
        if self.ranks == 1:
            return flag
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return bool(flags)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank, in every process."""
        if self.ranks == 1:
            return [value]
        values: list[Any] = [None] * self.ranks
        distributed.all_gather_object(values, value)
        return values

    def share_buffers(self, network: nn.Module) -> None:
        """Give the network of every process the buffers of rank 0, such as the statistics of batch norms."""
        if self.ranks > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, 0)

    def close(self) -> None:
        """Leave the group."""
        if self.ranks > 1:
            distributed.destroy_process_group()


def rank_count() -> int:
    """Return the number of processes started by torchrun, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_group(device: str) -> Group:
    """Join the processes started by torchrun; with `device` "cuda" each takes the GPU of its local rank."""
    own = _own_device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if rank_count() == 1:
        return Group(0, 1, own)
    # Tensors on the CPU go through gloo, without waiting for the GPU.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    return Group(distributed.get_rank(), rank_count(), own)


def join_for_files(device: str) -> tuple[Group, str]:
    """Join processes that communicate on the CPU and may wait long; return the group and the device of this process."""
    cpu = torch.device("cpu")
    if rank_count() == 1:
        return Group(0, 1, cpu), device
    distributed.init_process_group("gloo", timeout=FILES_TIMEOUT)
    return Group(distributed.get_rank(), rank_count(), cpu), str(_own_device(device))


def _own_device(device: str) -> torch.device:
    if device == "cuda":  # `torch.cuda.set_device` needs an index
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(device)
