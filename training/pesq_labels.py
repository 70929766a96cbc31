"""PESQ labels of training crops, computed in other processes while the device works."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from metrics.pesq import wideband_pesq
from metrics.signals import ScoreError
from utils.processes import LostProcessError, ProcessPool

TIMEOUT = 60.0
"""Seconds after which a crop counts as hung."""


class PesqLabeler:
    """Compute the PESQ labels that the metric discriminator learns, in a persistent pool of processes.

        with PesqLabeler(workers=8) as labeler:
            pending = labeler.submit(clean, enhanced)   # array and tensor [B, N]; returns at once
            ...                                         # the device works meanwhile
            labels = labeler.collect(pending)           # [B]

    Parameters
    ----------
    workers: number of processes.
    score: maps a clean and an enhanced crop `[N]` to PESQ, or raises `ScoreError`; an importable function.
    """

    def __init__(self, workers: int, score: Callable[[np.ndarray, np.ndarray], float] = wideband_pesq) -> None:
        self._pool = ProcessPool(score, workers, TIMEOUT)
        self._thread = ThreadPoolExecutor(1)

    def submit(self, clean: np.ndarray, enhanced: Tensor) -> Future[list[Future[float]]]:
        """Start scoring `enhanced` `[B, N]`, on any device, against `clean` `[B, N]`, both at 16 kHz; return at once.

        Both are copied; a thread waits until the device has computed them. Raises `ValueError` on other shapes and
        `RuntimeError` after `close`.
        """
        if clean.ndim != 2 or clean.shape != enhanced.shape:
            raise ValueError(f"expected two batches [B, N] of one shape, got {clean.shape} and {tuple(enhanced.shape)}")
        clean, computed = clean.copy(), None
        if enhanced.device.type == "cuda":
            device, enhanced = enhanced.device, enhanced.to("cpu", non_blocking=True)  # to pinned memory
            computed = torch.cuda.current_stream(device).record_event()
        else:
            enhanced = enhanced.clone()

        def start() -> list[Future[float]]:
            if computed:
                computed.synchronize()
            return [self._pool.submit(*pair) for pair in zip(clean, enhanced.numpy(), strict=True)]

        return self._thread.submit(start)

    def collect(self, pending: Future[list[Future[float]]]) -> np.ndarray:
        """Wait for a batch and return its labels (PESQ − 1) / 3.5, float32 `[B]`.

        The label is NaN if PESQ has no score for the crop, or if its process hung or died twice. Raises
        `RuntimeError` if no process can be started.
        """
        labels: list[float] = []
        for crop in pending.result():
            try:
                labels.append((crop.result() - 1) / 3.5)
            except (ScoreError, LostProcessError) as error:
                labels.append(math.nan)
                if isinstance(error, LostProcessError):
                    tqdm.write(f"PESQ labels: a crop has no label: {error}", file=sys.stderr)
        return np.array(labels, dtype=np.float32)

    def close(self) -> None:
        """End the processes, busy or not."""
        self._thread.shutdown(cancel_futures=True)
        self._pool.close()

    def __enter__(self) -> PesqLabeler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
