"""Time scoring in processes against one file after another with plain loops over frames (LLR, WSS, SSNR)."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np

from cli import UserError
from data.audio import read_audio
from data.file_lists import Utterance, evenly_spaced, require_pairs
from metrics.pesq import wideband_pesq
from metrics.score import score_pair
from metrics.si_sdr import si_sdr
from metrics.signals import RATE
from metrics.stoi import estoi, stoi
from tests.reference.composite import plain_composite, plain_llr, plain_ssnr, plain_wss
from tools.benchmark.common import Row, positive
from utils.processes import available_cores, run_in_processes

HELP = "scoring files against plain loops over frames"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add = parser.add_argument
    add("--clean_wav_dir", type=Path, required=True, metavar="CLEAN")
    add("--noisy_wav_dir", type=Path, required=True, metavar="NOISY")
    add("--files", type=positive, default=60, metavar="N", help="evenly spaced; default: 60")
    add("--jobs", type=positive, default=available_cores(), help="processes; default: all cores")


def measure(options: Namespace) -> list[Row]:
    """Return the time for all files, reading and starting processes included; raise `UserError`."""
    pairs = require_pairs(options.clean_wav_dir, options.noisy_wav_dir).pairs
    pairs = evenly_spaced(pairs, options.files)
    fast = partial(score_pair, variant="published")
    cases: dict[str, tuple[Callable[[Utterance], object], int]] = {
        "plain loops": (plain_scores, 1),
        "one process": (fast, 1),
        f"{options.jobs} processes": (fast, options.jobs),
        "PESQ alone, one process": (pesq_alone, 1),
    }
    seconds = {name: time_all(task, pairs, workers) for name, (task, workers) in cases.items()}
    plain = seconds["plain loops"]
    return [
        {"form": name, "files": len(pairs), "s": taken, "speed-up": plain / taken} for name, taken in seconds.items()
    ]


def time_all(task: Callable[[Utterance], object], pairs: Sequence[Utterance], workers: int) -> float:
    """Return the seconds that a task takes for all pairs; raise `UserError` if it fails for one."""
    start = perf_counter()
    for index, result in run_in_processes(task, pairs, workers):
        if isinstance(result, BaseException):
            raise UserError(f"{pairs[index].id}: {result}", exit_code=1) from result
    return perf_counter() - start


def read_pair(pair: Utterance) -> tuple[np.ndarray, np.ndarray]:
    """Read the first channels `[N]` at 16 kHz, cut to the shorter."""
    clean, noisy = (read_audio(path, RATE)[0][:, 0].astype(np.float64) for path in (pair.clean, pair.noisy))
    samples = min(len(clean), len(noisy))
    return clean[:samples], noisy[:samples]


def plain_scores(pair: Utterance) -> tuple[float, float, float]:
    """Compute all metrics, the composite measures by loops over frames; return CSIG, CBAK and COVL."""
    clean, noisy = read_pair(pair)
    for metric in (stoi, estoi, si_sdr):
        metric(clean, noisy)
    llr, wss = plain_llr(clean, noisy), plain_wss(clean, noisy, divide=True)
    return plain_composite(wideband_pesq(clean, noisy), llr, wss, plain_ssnr(clean, noisy))


def pesq_alone(pair: Utterance) -> float:
    """Read a pair and compute its PESQ."""
    return wideband_pesq(*read_pair(pair))
