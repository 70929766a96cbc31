"""Enhance noise of several lengths from file to file, each form and protocol in a new process: time and memory."""

from __future__ import annotations

import statistics
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from tqdm import tqdm

from config import Config, load_config
from data.audio import AudioFormat, write_audio
from enhance.files import enhance_file
from enhance.runtimes import tune_malloc
from enhance.windows import PROTOCOLS, WHOLE_LIMIT
from tools.benchmark.common import (
    ALL_CONFIGS,
    FORMS,
    Row,
    call_in_new_process,
    has_plain_form,
    make_enhancer,
    peak_memory,
    positive,
)

HELP = "recordings of several lengths"

WARM_UP_SECONDS = 10
"""Longest recording of the warm-up."""

REPEATS = 5
"""Timings of recordings up to 2 s; longer ones are timed once."""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add = parser.add_argument
    add("--config", type=Path, nargs="+", default=ALL_CONFIGS, help="default: all networks")
    add("--forms", choices=FORMS, nargs="+", default=["plain", "eager"], help="default: plain eager")
    add("--protocols", choices=PROTOCOLS, nargs="+", default=list(PROTOCOLS), help="default: all")
    add("--lengths", type=positive, nargs="+", default=[1, 10, 60], metavar="S", help="seconds; default: 1 10 60")
    add("--threads", type=positive, default=torch.get_num_threads(), help="default: all cores")
    add("--limit", type=float, default=120, metavar="S", help="skip what would take longer; default: 120 s")


def measure(options: Namespace) -> list[Row]:
    """Return time, real-time factor and peak memory of each form, protocol and length; raise `UserError`."""
    cases = [
        (config, form, protocol)
        for config in map(load_config, options.config)
        for form in options.forms
        for protocol in options.protocols
        if (form != "plain" or (has_plain_form(config) and protocol != "overlap"))  # the release has no overlap
        and (form != "compiled" or protocol != "whole")  # only windows of one length are compiled
    ]
    rows: list[Row] = []
    for case in tqdm(cases, leave=False):
        rows += call_in_new_process(measure_case, *case, options.lengths, options.threads, options.limit)
    return rows


def measure_case(
    config: Config, form: str, protocol: str, lengths: Sequence[int], threads: int, limit: float
) -> list[Row]:
    """Return a row for each length, from short to long, until one would take more than `limit` seconds."""
    torch.set_num_threads(threads)
    if form != "plain":
        tune_malloc()
    rate = config.data.sampling_rate
    enhancer = make_enhancer(config, form, protocol, "cpu", threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:

        def run(seconds: int) -> float:
            path = Path(folder, f"{seconds}.wav")
            if not path.exists():
                noise = np.random.default_rng(0).uniform(-0.1, 0.1, (seconds * rate, 1)).astype(np.float32)
                write_audio(path, noise, AudioFormat(rate, 1, "WAV", "PCM_16"))
            start = perf_counter()
            enhance_file(path, Path(folder, "enhanced.wav"), enhancer, protocol)
            return perf_counter() - start

        for length in sorted(lengths):
            too_long = protocol == "whole" and length * rate > WHOLE_LIMIT
            if too_long or (rows and rows[-1]["RTF"] * length > limit):
                break
            run(min(length, WARM_UP_SECONDS))
            seconds = statistics.median(run(length) for _ in range(REPEATS if length <= 2 else 1))
            case = {"network": config.model.name, "form": form, "protocol": protocol, "length s": length}
            rows.append({**case, "s": seconds, "RTF": seconds / length, "peak MB": round(peak_memory(), 1)})
    return rows
