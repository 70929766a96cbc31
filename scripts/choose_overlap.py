"""Which windows suit long and short recordings best? PESQ of a checkpoint over a grid, on speech and noise mixed here.

    python scripts/choose_overlap.py --speech_dir SPEECH --noise_dir NOISE [--files 60] [--checkpoint_file CKPT]

The constants of `data.segments.plan_overlap` were chosen with this, on speech that is not in the test set. Long
files are cut with every window, hop and cross-fade of the grid; short ones are padded in every way. Mixtures are
drawn with a fixed seed, so that all rows of a table are the same files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cli import DONE, ArgumentParser, run
from data.audio import read_audio
from data.file_lists import find_audio
from data.segments import PROTOCOLS, Window, cut, join, spread_windows
from metrics.perceptual import wideband_pesq
from metrics.pool import available_cores, run_in_processes
from models.checkpoint import default_checkpoint, load_checkpoint
from models.enhancer import Enhancer, LevelMeter

SNRS_DB = (2.5, 7.5, 12.5, 17.5)
"""Signal-to-noise ratios in turn: those of the VoiceBank+DEMAND test set."""
LONG_SECONDS, SHORT_SECONDS = (3.0, 8.0), (1.0, 1.9)
WINDOW_FACTORS = (1.0, 2.0)
HOPS = (1.0, 0.875, 0.75, 0.5, 0.25)
FADES = (0.0, 0.02, 0.125, 0.25, 0.5)

Pair = tuple[np.ndarray, np.ndarray]


def mixtures(speech: list[Path], noise: list[Path], count: int, seconds: tuple[float, float], rate: int) -> list[Pair]:
    """Clean and noisy excerpts `[N, 1]` of random length: a stretch of speech plus a stretch of noise."""
    random = np.random.default_rng(0)
    pairs: list[Pair] = []
    while len(pairs) < count:
        clean = _excerpt(speech, int(random.uniform(*seconds) * rate), rate, random)
        added = _excerpt(noise, len(clean), rate, random)
        if np.sqrt(np.mean(clean**2)) < 1e-3 or len(added) < len(clean) or np.sqrt(np.mean(added**2)) < 1e-4:
            continue
        snr = SNRS_DB[len(pairs) % len(SNRS_DB)]
        gain = np.sqrt(np.mean(clean**2) / np.mean(added**2) / 10 ** (snr / 10))
        pairs.append((clean, clean + gain * added))
    return pairs


def _excerpt(files: list[Path], samples: int, rate: int, random: np.random.Generator) -> np.ndarray:
    audio = read_audio(files[random.integers(len(files))], rate)[0][:, :1]
    start = random.integers(max(1, len(audio) - samples))
    return audio[start : start + samples]


def enhance(enhancer: Enhancer, noisy: np.ndarray, layouts: list[list[Window]]) -> list[np.ndarray]:
    """One mixture `[N, 1]` by windows that start at the same places but hand over differently, one result each."""
    factor = LevelMeter().measure([noisy]).factors()
    pieces = list(enhancer.enhance_windows(cut([noisy * factor], layouts[0])))
    return [np.concatenate(list(join(pieces, windows))) / factor for windows in layouts]


def padded(enhancer: Enhancer, noisy: np.ndarray, how: str) -> np.ndarray:
    """A short mixture `[N, 1]`, padded to a segment in one of several ways."""
    missing = enhancer.segment - len(noisy)
    before = {"zeros in front": missing, "zeros on both sides": missing // 2}.get(how, 0)
    factor = LevelMeter().measure([noisy]).factors()
    if how == "own length":
        wide = noisy * factor
    else:
        mode = {"reflected": "reflect", "repeated": "wrap"}.get(how, "constant")
        wide = np.pad(noisy * factor, ((before, missing - before), (0, 0)), mode=mode)  # pyright: ignore[reportArgumentType, reportCallIssue]
    (enhanced,) = enhancer.enhance_windows(iter([wide]))
    return enhanced[before : before + len(noisy)] / factor


def mean_pesq(pairs: list[Pair]) -> float:
    """Mean wideband PESQ of enhanced signals against clean ones."""
    results = dict(run_in_processes(_pesq, pairs, available_cores()))
    return float(np.mean([score for score in results.values() if isinstance(score, float)]))


def _pesq(pair: Pair) -> float:
    clean, enhanced = (np.rint(signal[:, 0] * 32768) / 32768 for signal in pair)
    return wideband_pesq(clean, enhanced)


def print_rows(labels: list[str], pairs: list[Pair], process: Callable[[np.ndarray], list[np.ndarray]]) -> None:
    """Enhance all mixtures in ways of one cost, and print each way's score."""
    enhanced = [process(noisy) for _, noisy in tqdm(pairs, desc=labels[0], leave=False)]
    for number, label in enumerate(labels):
        scored = [(clean, ways[number]) for (clean, _), ways in zip(pairs, enhanced, strict=True)]
        print(f"{label:<44}{mean_pesq(scored):8.4f}", flush=True)


def main() -> int:
    """Print the table."""
    parser = ArgumentParser(description="Compare windows for long and short recordings.")
    parser.add_argument("--speech_dir", type=Path, required=True)
    parser.add_argument("--noise_dir", type=Path, required=True)
    parser.add_argument("--files", type=int, default=60, help="long and as many short mixtures")
    parser.add_argument("--checkpoint_file", type=Path)
    options = parser.parse_args()
    enhancer = Enhancer(*load_checkpoint(options.checkpoint_file or default_checkpoint()))
    speech, noise = find_audio(options.speech_dir), find_audio(options.noise_dir)

    short = mixtures(speech, noise, options.files, SHORT_SECONDS, enhancer.rate)
    print_rows(["short, noisy"], short, lambda noisy: [noisy])
    for how in (
        "zeros behind",
        "zeros in front",
        "zeros on both sides",
        "reflected",
        "repeated",
        "own length",
    ):
        print_rows([f"short, {how}"], short, lambda noisy, how=how: [padded(enhancer, noisy, how)])

    long = mixtures(speech, noise, options.files, LONG_SECONDS, enhancer.rate)
    print_rows(["long, noisy"], long, lambda noisy: [noisy])
    for name in ("paper", "whole"):
        layout = partial(PROTOCOLS[name], segment=enhancer.segment)
        print_rows(
            [f"long, {name}"],
            long,
            lambda noisy, layout=layout: enhance(enhancer, noisy, [layout(len(noisy))]),
        )
    for factor, hop in product(WINDOW_FACTORS, HOPS):
        fades = [fade for fade in FADES if fade <= min(hop, 1 - hop)]
        layouts = [
            partial(spread_windows, segment=int(factor * enhancer.segment), hop_share=hop, fade_share=fade)
            for fade in fades
        ]
        labels = [f"long, window ×{factor}, hop {hop}, fade {fade}" for fade in fades]
        print_rows(
            labels,
            long,
            lambda noisy, layouts=layouts: enhance(enhancer, noisy, [layout(len(noisy)) for layout in layouts]),
        )
    return DONE


if __name__ == "__main__":
    run(main)
