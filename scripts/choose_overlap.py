"""Which windows suit long and short recordings best? PESQ of a checkpoint over a grid, on speech and noise mixed here.

    python -m scripts.choose_overlap --speech_dir SPEECH --noise_dir NOISE [--files 60] [--checkpoint_file CKPT]

The protocol "overlap" (`data.segments.plan_overlap`) was chosen with this, on speech that is not in the test set.
Whole utterances are mixed with noise, at a fixed seed, so that all rows of a table are the same files. Those longer
than a segment are cut with every window, hop and cross-fade of the grid; shorter ones are padded in every way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cli import DONE, WRONG_COMMAND_LINE, ArgumentParser, run
from data.audio import AudioError, read_audio
from data.file_lists import FileListError, find_audio
from data.mixing import add_noise, check_mix
from data.processes import available_cores, run_in_processes
from data.recordings import Recordings
from data.segments import PROTOCOLS, Window, cut, join, spread_windows
from metrics.perceptual import wideband_pesq
from models.checkpoint import DEFAULT_CHECKPOINT, CheckpointError, load_checkpoint
from models.enhancer import Enhancer, LevelMeter

SNRS_DB = (2.5, 7.5, 12.5, 17.5)
"""Signal-to-noise ratios in turn: those of the VoiceBank+DEMAND test set."""
QUIETEST_NOISE = 1e-4
LONGEST_SECONDS = 40  # that PESQ takes
WINDOW_FACTORS = (1.0, 1.5, 2.0)
HOPS = (1.0, 0.875, 0.75, 0.5, 0.25)
FADES = (0.0, 0.02, 0.125, 0.25, 0.5)
PADDINGS = ("zeros behind", "zeros in front", "zeros on both sides", "reflected", "repeated", "own length")

Pair = tuple[np.ndarray, np.ndarray]
"""Clean and noisy, `[N, 1]` each."""


def mixtures(speech: list[Path], noise: list[Path], shortest: int, longest: int, count: int, rate: int) -> list[Pair]:
    """Whole utterances of `shortest` samples up to `longest`, each with a stretch of noise, looped if need be."""
    random = np.random.default_rng(0)
    pairs: list[Pair] = []
    for number in random.permutation(len(speech)):
        clean = read_audio(speech[number], rate)[0][:, :1]
        added = np.zeros(1)
        while np.sqrt(np.mean(added**2)) < QUIETEST_NOISE:
            added = np.roll(read_audio(noise[random.integers(len(noise))], rate)[0][:, :1], random.integers(2**31))
            added = np.resize(added, clean.shape)
        if shortest <= len(clean) < longest:
            pairs.append((clean, add_noise(clean, added, SNRS_DB[len(pairs) % len(SNRS_DB)])))
        if len(pairs) == count:
            break
    return pairs


def enhance(enhancer: Enhancer, noisy: np.ndarray, layouts: list[list[Window]]) -> list[np.ndarray]:
    """One mixture `[N, 1]` by windows that start at the same places but hand over differently, one result each."""
    factor = enhancer.factors(LevelMeter().measure([noisy]))
    pieces = list(enhancer.enhance_windows(cut([noisy * factor], layouts[0])))
    return [np.concatenate(list(join(pieces, windows))) / factor for windows in layouts]


def enhance_padded(enhancer: Enhancer, noisy: np.ndarray, how: str) -> np.ndarray:
    """A short mixture `[N, 1]`, padded to a segment in one of `PADDINGS`."""
    missing = 0 if how == "own length" else enhancer.segment - len(noisy)
    before = {"zeros in front": missing, "zeros on both sides": missing // 2}.get(how, 0)
    index = np.arange(-before, len(noisy) + missing - before)
    if how == "reflected":
        index = np.abs((index + len(noisy) - 1) % (2 * len(noisy) - 2) - len(noisy) + 1)
    factor = enhancer.factors(LevelMeter().measure([noisy]))
    there = (index < len(noisy)) & (index >= 0) | (how == "repeated")
    (enhanced,) = enhancer.enhance_windows(iter([noisy[index % len(noisy)] * there[:, None] * factor]))
    return enhanced[before : before + len(noisy)] / factor


def mean_pesq(pairs: list[Pair]) -> tuple[float, int]:
    """Mean wideband PESQ of enhanced signals against clean ones, and of how many it is."""
    results = dict(run_in_processes(_pesq, pairs, available_cores()))
    scores = [score for score in results.values() if isinstance(score, float)]
    return float(np.mean(scores)), len(scores)


def _pesq(pair: Pair) -> float:
    clean, enhanced = (np.rint(signal[:, 0] * 32768.0) / 32768 for signal in pair)
    return wideband_pesq(clean, enhanced)


def print_rows(labels: list[str], pairs: list[Pair], process: Callable[[np.ndarray], list[np.ndarray]]) -> None:
    """Enhance all mixtures in ways of one cost, and print each way's score."""
    enhanced = [process(noisy) for _, noisy in tqdm(pairs, desc=labels[0], leave=False)]
    for number, label in enumerate(labels):
        mean, count = mean_pesq([(clean, ways[number]) for (clean, _), ways in zip(pairs, enhanced, strict=True)])
        print(f"{label:<44}{mean:8.4f}{count:6}", flush=True)


def compare_windows(enhancer: Enhancer, long: list[Pair]) -> None:
    """The table for recordings longer than a segment."""
    print_rows(["long, noisy"], long, lambda noisy: [noisy])
    for name in ("paper", "whole"):
        plan = PROTOCOLS[name]
        print_rows(
            [f"long, {name}"],
            long,
            lambda noisy, plan=plan: enhance(enhancer, noisy, [plan(len(noisy), enhancer.segment)]),
        )
    for factor, hop in product(WINDOW_FACTORS, HOPS):
        fades = [fade for fade in FADES if fade <= min(hop, 1 - hop)]

        def layouts(samples: int, factor: float = factor, hop: float = hop, fades: list[float] = fades):
            return [spread_windows(samples, int(factor * enhancer.segment), hop, fade) for fade in fades]

        labels = [f"long, window ×{factor}, hop {hop}, fade {fade}" for fade in fades]
        print_rows(labels, long, lambda noisy, layouts=layouts: enhance(enhancer, noisy, layouts(len(noisy))))


def main() -> int:
    """Print both tables."""
    parser = ArgumentParser(description="Compare windows for long and short recordings.")
    parser.add_argument("--speech_dir", type=Path, required=True)
    parser.add_argument("--noise_dir", type=Path, required=True)
    parser.add_argument("--files", type=int, default=60, help="how many long and how many short mixtures")
    parser.add_argument("--checkpoint_file", type=Path, default=DEFAULT_CHECKPOINT, help="default: %(default)s")
    options = parser.parse_args()
    try:
        enhancer = Enhancer(*load_checkpoint(options.checkpoint_file))
        speech, noise = find_audio(options.speech_dir), find_audio(options.noise_dir)
        check_mix(speech, noise, Recordings(enhancer.rate, keep=False))
    except (CheckpointError, FileListError, AudioError) as error:
        print(error, file=sys.stderr)
        return WRONG_COMMAND_LINE
    make = partial(mixtures, speech, noise, count=options.files, rate=enhancer.rate)
    try:
        short, long = make(enhancer.rate, enhancer.segment), make(enhancer.segment, LONGEST_SECONDS * enhancer.rate)
    except AudioError as error:
        print(error, file=sys.stderr)
        return WRONG_COMMAND_LINE
    if not short or not long:
        print(f"{options.speech_dir}: needs utterances shorter and longer than a segment", file=sys.stderr)
        return WRONG_COMMAND_LINE
    print_rows(["short, noisy"], short, lambda noisy: [noisy])
    for how in PADDINGS:
        print_rows([f"short, {how}"], short, lambda noisy, how=how: [enhance_padded(enhancer, noisy, how)])
    compare_windows(enhancer, long)
    return DONE


if __name__ == "__main__":
    run(main)
