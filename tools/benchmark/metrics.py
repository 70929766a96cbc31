"""Time the metrics: all cores on the fast code, against one file after another with plain loops over frames.

    python -m tools.benchmark.metrics --clean_wav_dir CLEAN --noisy_wav_dir NOISY [--files N] [--jobs N]

Both ways score the same files in one run, reading and starting the processes included, with one arithmetic
thread a process. The plain way takes PESQ, STOI, ESTOI and SI-SDR from the same code, and LLR, WSS and SSNR
from `tests.reference.composite`. Prints a text and a line of JSON: seconds of each way, their ratio, the
same with one process each, and the share of PESQ in the fast way's work.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import numpy as np

from cli import DONE, USAGE_ERROR, ArgumentParser, UserError, run
from data.audio import AudioError, read_audio
from data.file_lists import Utterance, require_pairs
from metrics.composite import VARIANTS
from metrics.pesq import wideband_pesq
from metrics.score import score_pair
from metrics.si_sdr import si_sdr
from metrics.signals import RATE, ScoreError
from metrics.stoi import estoi, stoi
from tests.reference.composite import plain_composite, plain_llr, plain_ssnr, plain_wss
from utils.processes import available_cores, run_in_processes

VARIANT = VARIANTS[0]
Result = TypeVar("Result")


def read_pair(utterance: Utterance) -> tuple[np.ndarray, np.ndarray]:
    """Both files' first channel `[N]` at 16 kHz, cut to the shorter."""
    clean, degraded = (read_audio(path, RATE)[0][:, 0] for path in (utterance.clean, utterance.noisy))
    samples = min(len(clean), len(degraded))
    return clean[:samples].astype(np.float64), degraded[:samples].astype(np.float64)


def plain_scores(utterance: Utterance) -> tuple[float, float, float]:
    """All scores of a pair the slow way; returns CSIG, CBAK and COVL."""
    clean, degraded = read_pair(utterance)
    for measure in (stoi, estoi, si_sdr):
        measure(clean, degraded)
    llr, wss = plain_llr(clean, degraded), plain_wss(clean, degraded, divide=True)
    return plain_composite(wideband_pesq(clean, degraded), llr, wss, plain_ssnr(clean, degraded))


def pesq_and_all_seconds(utterance: Utterance) -> tuple[float, float]:
    """Seconds that PESQ takes for a pair, and that all scores with reading take."""
    signals = read_pair(utterance)
    start = perf_counter()
    wideband_pesq(*signals)
    middle = perf_counter()
    score_pair(utterance, VARIANT)
    return middle - start, perf_counter() - middle


def results_and_seconds(
    task: Callable[[Utterance], Result], utterances: list[Utterance], jobs: int
) -> tuple[list[Result], float]:
    """What `task` gives for each, and the seconds for all; raises the first error there is."""
    start = perf_counter()
    results: list[Result] = []
    for _, result in run_in_processes(task, utterances, jobs):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results, perf_counter() - start


def benchmark(utterances: list[Utterance], jobs: int) -> dict[str, float]:
    """Seconds of both ways, their ratio, and the share of PESQ in the fast way; all over the same files.

    Raises `ScoreError` for a file without a PESQ, and `AudioError` for one that cannot be read.
    """
    fast_task = partial(score_pair, variant=VARIANT)
    _, plain = results_and_seconds(plain_scores, utterances, 1)
    _, fast = results_and_seconds(fast_task, utterances, jobs)
    _, fast_alone = results_and_seconds(fast_task, utterances, 1)
    parts, _ = results_and_seconds(pesq_and_all_seconds, utterances, 1)
    return {
        "files": len(utterances),
        "jobs": jobs,
        "pool_seconds": fast,
        "plain_seconds": plain,
        "ratio": plain / fast,
        "one_process_seconds": fast_alone,
        "one_process_ratio": plain / fast_alone,
        "pesq_share": sum(pesq for pesq, _ in parts) / sum(everything for _, everything in parts),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and print it."""
    parser = ArgumentParser(description="Time the metrics.")
    parser.add_argument("--clean_wav_dir", type=Path, required=True)
    parser.add_argument("--noisy_wav_dir", type=Path, required=True)
    parser.add_argument("--files", type=int, default=60, help="how many pairs, spread over the folder")
    parser.add_argument("--jobs", type=int, default=available_cores())
    options = parser.parse_args(argv)
    if options.files < 1 or options.jobs < 1:
        parser.error("--files, --jobs: must be 1 or more")
    try:
        pairs = require_pairs(options.clean_wav_dir, options.noisy_wav_dir).pairs
        chosen = pairs[:: max(1, len(pairs) // options.files)][: options.files]
        numbers = benchmark(chosen, options.jobs)
    except (UserError, AudioError, ScoreError) as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    print(
        f"{numbers['files']} files in {numbers['jobs']} processes: {numbers['pool_seconds']:.1f} s;"
        f" one after another with plain loops: {numbers['plain_seconds']:.1f} s; ratio {numbers['ratio']:.1f}"
        f" ({numbers['one_process_ratio']:.1f} with one process)"
    )
    print(f"PESQ is {numbers['pesq_share']:.0%} of the fast way's work")
    print(json.dumps(numbers))
    return DONE


if __name__ == "__main__":
    run(main)
