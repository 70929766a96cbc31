"""What live enhancement costs, hop by hop: `python -m tools.benchmark.network stream`."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from config import Config
from enhance.streaming import Stream
from models import build

WARM_UP = 50


def measure_stream(config: Config, threads: int, device: str, hops: int) -> dict[str, Any]:
    """Time `hops` hops of noise, each from its samples to the enhanced ones, STFT and its inverse included.

    Times in seconds; a real-time factor is the time over that of the hop itself. Raises `UserError`.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    stream = Stream(build(config).eval().to(device), config)
    hop = config.stft.hop_size
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (WARM_UP + hops, hop)).astype(np.float32)
    times: list[float] = []
    for samples in tqdm(noise, leave=False):
        start = perf_counter()
        stream.process(samples)
        times.append(perf_counter() - start)
    hop_seconds = hop / config.data.sampling_rate
    seconds = {
        "median": float(np.median(times[WARM_UP:])),
        "percentile_99": float(np.percentile(times[WARM_UP:], 99)),
    }
    return {
        "network": config.model.name,
        "device": device,
        "threads": threads,
        "hops": hops,
        "hop_seconds": hop_seconds,
        "latency_seconds": stream.latency,
        "seconds": seconds,
        "real_time_factor": {name: value / hop_seconds for name, value in seconds.items()},
    }


def stream_as_text(figures: dict[str, Any]) -> str:
    """The figures as lines."""
    lines = [
        f"{figures['network']}, {figures['device']}, {figures['threads']} threads, float32, {figures['hops']} hops of "
        f"{1e3 * figures['hop_seconds']:.1f} ms, algorithmic latency {1e3 * figures['latency_seconds']:.0f} ms",
        f"{'':16}{'ms a hop':>10}{'real-time factor':>18}",
    ]
    for name, seconds in figures["seconds"].items():
        lines.append(f"{name:16}{1e3 * seconds:10.2f}{figures['real_time_factor'][name]:18.3f}")
    return "\n".join(lines)
