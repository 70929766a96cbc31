"""This project's checkpoints beside what else a package registry offers: speed and scores of the same files in one run.

    pip install -e '.[alternatives]'      # noisereduce, pyrnnoise
    python -m tools.benchmark.peers --clean_wav_dir CLEAN --noisy_wav_dir NOISY [--files 100]
                                             [--checkpoint_file CKPT …] [--threads 2] [--json FILE]

The systems take turns file by file, so that a noisy machine slows all alike. RNNoise works at 48 kHz: bringing the
sound there and back is part of its time. noisereduce has its default settings, and once more those for steady noise.
A package that is not installed is left out, and said so. Prints the real-time factor and the mean scores of each.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import soxr
import torch
from tqdm import tqdm

from cli import DONE, SOME_FAILED, USAGE_ERROR, ArgumentParser, UserError, run
from data.audio import AudioError, AudioFormat, read_audio, write_audio
from data.file_lists import Utterance, evenly_spaced, require_pairs
from enhance.files import Load
from enhance.runtimes import fast_enhancer, keep_freed_memory, load_network
from metrics.score import METRICS, score_pairs
from metrics.signals import RATE
from metrics.summary import summarise
from models.checkpoint import DEFAULT_CHECKPOINT, LIVE_CHECKPOINT
from utils.atomic import write_text_atomically
from utils.processes import available_cores

RNNOISE_RATE = 48_000
RNNOISE_DELAY = 960
"""Samples at 48 kHz that its output is behind: two frames."""

INT16 = 2**15

System = Callable[[np.ndarray], np.ndarray]
"""Noisy samples `[N]` at 16 kHz → enhanced ones `[N]`."""


def with_noisereduce(stationary: bool) -> System:
    """Spectral gating; raises `ImportError` without the package."""
    reduce_noise = importlib.import_module("noisereduce").reduce_noise
    return lambda noisy: reduce_noise(y=noisy, sr=RATE, stationary=stationary)


def with_rnnoise() -> System:
    """RNNoise, frame by frame of 10 ms; raises `ImportError` without the package."""
    library = importlib.import_module("pyrnnoise.rnnoise")

    def enhance(noisy: np.ndarray) -> np.ndarray:
        size = library.FRAME_SIZE
        samples = soxr.resample(noisy, RATE, RNNOISE_RATE)
        padded = np.pad(samples, (0, RNNOISE_DELAY + -(len(samples) + RNNOISE_DELAY) % size))
        frames = np.clip(np.rint(padded * INT16), -INT16, INT16 - 1).astype(np.int16).reshape(-1, size)
        state = library.create()
        try:
            enhanced = np.concatenate([library.process_mono_frame(state, frame)[0] for frame in frames])
        finally:
            library.destroy(state)
        delayed = enhanced[RNNOISE_DELAY : RNNOISE_DELAY + len(samples)].astype(np.float32) / INT16
        return soxr.resample(delayed, RNNOISE_RATE, RATE)

    return enhance


def with_checkpoint(path: Path, threads: int) -> System:
    """A network of this project, as inference.py uses it by default on a CPU; raises `UserError`."""
    network, config = load_network(path, "torch", threads)
    if config.data.sampling_rate != RATE:
        raise UserError(f"{path}: made for {config.data.sampling_rate} Hz; only those for {RATE} Hz are compared")
    enhancer = fast_enhancer(network, config, "cpu", "overlap", Load(1, threads), bf16=False, compiled=False)
    return enhancer.enhance_signal


def systems_of(checkpoints: Sequence[Path], threads: int) -> dict[str, System]:
    """All that is there, by name, the noisy signal itself first; raises `UserError`."""
    systems: dict[str, System] = {"noisy": lambda noisy: noisy}
    packages: Mapping[str, Callable[[], System]] = {
        "noisereduce": lambda: with_noisereduce(False),
        "noisereduce, steady": lambda: with_noisereduce(True),
        "RNNoise": with_rnnoise,
    }
    for name, load in packages.items():
        try:
            systems[name] = load()
        except (ImportError, OSError) as error:
            print(f"{name}: left out ({error})", file=sys.stderr)
    return systems | {path.stem: with_checkpoint(path, threads) for path in checkpoints}


def enhance_all(pairs: Sequence[Utterance], systems: Mapping[str, System], folder: Path) -> dict[str, float]:
    """Write each system's results below `folder`; its real-time factor over all files. Raises `AudioError`."""
    seconds = dict.fromkeys(systems, 0.0)
    audio = 0.0
    for pair in tqdm(pairs, leave=False):
        noisy = read_audio(pair.noisy, RATE)[0][:, 0].astype(np.float32)
        audio += len(noisy) / RATE
        for name, system in systems.items():
            start = perf_counter()
            enhanced = system(noisy)
            seconds[name] += perf_counter() - start
            assert enhanced.shape == noisy.shape, name
            write_audio(folder / name / f"{pair.id}.wav", enhanced[:, None], AudioFormat(RATE, 1, "WAV", "PCM_16"))
    return {name: taken / audio for name, taken in seconds.items()}


def measure(options: Namespace, pairs: Sequence[Utterance]) -> dict[str, dict[str, Any]]:
    """Real-time factor and mean scores of each system; raises `AudioError` and `UserError`."""
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    systems = systems_of(options.checkpoint_file, options.threads)
    warm_up = np.random.default_rng(0).uniform(-0.1, 0.1, 4 * RATE).astype(np.float32)
    for system in systems.values():
        system(warm_up)
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        factors = enhance_all(pairs, systems, Path(folder))
        for name, factor in factors.items():
            results = [Utterance(pair.id, pair.clean, Path(folder, name, f"{pair.id}.wav")) for pair in pairs]
            means = summarise(score_pairs(results, "published", available_cores()))
            scores = {metric: mean.mean for metric, mean in means.items()}
            figures[name] = {"real_time_factor": factor, "scored": means["pesq"].files, **scores}
    return figures


def as_text(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as a table."""
    lines = [f"{'':22}{'real-time factor':>17}{'files':>7}" + "".join(f"{metric:>9}" for metric in METRICS)]
    for name, values in figures.items():
        scores = "".join(f"{values[metric]:9.3f}" for metric in METRICS)
        lines.append(f"{name:22}{values['real_time_factor']:17.4f}{values['scored']:7}{scores}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = ArgumentParser(description="Compare this project's checkpoints with other packages.")
    add = parser.add_argument
    add("--clean_wav_dir", type=Path, required=True, metavar="CLEAN")
    add("--noisy_wav_dir", type=Path, required=True, metavar="NOISY")
    add("--files", type=int, metavar="N", help="how many, evenly spaced in their order; default: all")
    add("--checkpoint_file", type=Path, nargs="+", default=[LIVE_CHECKPOINT, DEFAULT_CHECKPOINT], metavar="CKPT")
    add("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch; default: all cores")
    add("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args(argv)
    if options.threads < 1 or (options.files is not None and options.files < 1):
        parser.error("--threads, --files: must be 1 or more")
    try:
        pairs = require_pairs(options.clean_wav_dir, options.noisy_wav_dir).pairs
        figures = measure(options, evenly_spaced(pairs, options.files or len(pairs)))
    except (UserError, AudioError) as error:
        print(error, file=sys.stderr)
        return SOME_FAILED if isinstance(error, AudioError) else USAGE_ERROR
    print(as_text(figures))
    print(json.dumps(figures))
    if options.json:
        write_text_atomically(options.json, json.dumps(figures, indent=1) + "\n")
    return DONE


if __name__ == "__main__":
    run(main)
