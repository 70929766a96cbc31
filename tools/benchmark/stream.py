"""Time live enhancement hop by hop, STFT and inverse STFT included."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from tqdm import tqdm

from config import load_config
from enhance.streaming import Stream
from models import build
from tools.benchmark.common import CONFIGS, Row, positive

HELP = "live enhancement, hop by hop"
WARM_UP = 50


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add = parser.add_argument
    add("--config", type=Path, default=CONFIGS / "lite_rtse.json", help="default: lite_rtse.json")
    add("--hops", type=positive, default=2000, help="timed hops; default: 2000")
    add("--threads", type=positive, default=1, help="default: 1")
    add("--device", default="cpu", help="cpu or cuda; default: cpu")


def measure(options: Namespace) -> list[Row]:
    """Return the median and 99th percentile of the time per hop; raise `UserError` if the network cannot stream."""
    torch.set_num_threads(options.threads)
    config = load_config(options.config)
    torch.manual_seed(0)
    stream = Stream(build(config).eval().to(options.device), config)
    hop = config.stft.hop_size
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (WARM_UP + options.hops, hop)).astype(np.float32)
    times: list[float] = []
    for samples in tqdm(noise, leave=False):
        start = perf_counter()
        stream.process(samples)
        times.append(perf_counter() - start)
    hop_ms = 1e3 * hop / config.data.sampling_rate
    rows: list[Row] = []
    for name, quantile in (("median", 50), ("99th percentile", 99)):
        ms = 1e3 * float(np.percentile(times[WARM_UP:], quantile))
        row = {"network": config.model.name, "statistic": name, "ms": ms, "hop ms": hop_ms, "RTF": ms / hop_ms}
        rows.append({**row, "latency ms": 1e3 * stream.latency})
    return rows
