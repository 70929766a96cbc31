"""Speed and scores of this project's checkpoints and other packages."""

from __future__ import annotations

import importlib
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import soxr
import torch
from tqdm import tqdm

from cli import UserError
from data.audio import AudioFormat, read_audio, write_audio
from data.file_lists import Utterance, evenly_spaced, require_pairs
from enhance.runtimes import fast_enhancer, load_network, tune_malloc
from metrics.score import score_pairs
from metrics.signals import RATE
from metrics.summary import summarise
from tools.benchmark.inference import Row
from utils.processes import available_cores

RNNOISE_RATE = 48_000
RNNOISE_DELAY = 960
"""Delay of its output in samples at 48 kHz: two frames."""

System = Callable[[np.ndarray], np.ndarray]
"""Maps noisy samples `[N]` at 16 kHz to enhanced ones `[N]`."""


def measure_peers(options: Namespace) -> list[Row]:
    """Compare checkpoints with other packages on the same files: real-time factor and mean scores.

    Needs pip install -e '.[alternatives]' (noisereduce, pyrnnoise); packages that are missing are left out. Systems
    take turns file by file. RNNoise works at 48 kHz; the conversion is part of its time. noisereduce is run with its
    default settings and with those for stationary noise. Raises `UserError`.
    """
    tune_malloc()
    torch.set_num_threads(options.num_threads)
    pairs = evenly_spaced(require_pairs(options.clean_wav_dir, options.noisy_wav_dir).pairs, options.files)
    systems: dict[str, System] = {"noisy": lambda noisy: noisy}
    packages: dict[str, Callable[[], System]] = {
        "noisereduce": lambda: make_noisereduce(stationary=False),
        "noisereduce, stationary": lambda: make_noisereduce(stationary=True),
        "RNNoise": make_rnnoise,
    }
    for name, make in packages.items():
        try:
            systems[name] = make()
        except (ImportError, OSError) as error:
            print(f"{name}: left out ({error})", file=sys.stderr)
    for path in options.checkpoint_file:
        network, config = load_network(path, threads=options.num_threads)
        if config.data.sampling_rate != RATE:
            raise UserError(f"{path}: for {config.data.sampling_rate} Hz; only checkpoints for {RATE} Hz are compared")
        systems[path.stem] = fast_enhancer(network, config, threads=options.num_threads).enhance_signal

    warm_up = np.random.default_rng(0).uniform(-0.1, 0.1, 4 * RATE).astype(np.float32)
    for system in systems.values():
        system(warm_up)
    seconds = dict.fromkeys(systems, 0.0)
    audio_seconds = 0.0
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for pair in tqdm(pairs, leave=False):
            noisy = read_audio(pair.noisy, RATE)[0][:, 0].astype(np.float32)
            audio_seconds += len(noisy) / RATE
            for name, system in systems.items():
                start = perf_counter()
                enhanced = system(noisy)
                seconds[name] += perf_counter() - start
                wav_format = AudioFormat(RATE, 1, "WAV", "PCM_16")
                write_audio(Path(folder, name, f"{pair.id}.wav"), enhanced[:, None], wav_format)
        for name in systems:
            enhanced = [Utterance(pair.id, pair.clean, Path(folder, name, f"{pair.id}.wav")) for pair in pairs]
            means = summarise(score_pairs(enhanced, "published", available_cores()))
            row: Row = {"system": name, "RTF": seconds[name] / audio_seconds, "files": means["pesq"].files}
            rows.append({**row, **{metric: mean.mean for metric, mean in means.items()}})
    return rows


def make_noisereduce(stationary: bool) -> System:
    """Return noisereduce's spectral gating; raise `ImportError` without the package."""
    reduce_noise = importlib.import_module("noisereduce").reduce_noise
    return lambda noisy: reduce_noise(y=noisy, sr=RATE, stationary=stationary)


def make_rnnoise() -> System:
    """Return RNNoise, frame by frame of 10 ms; raise `ImportError` without the package."""
    library = importlib.import_module("pyrnnoise.rnnoise")

    def enhance(noisy: np.ndarray) -> np.ndarray:
        size = library.FRAME_SIZE
        samples = soxr.resample(noisy, RATE, RNNOISE_RATE)
        padded = np.pad(samples, (0, RNNOISE_DELAY + -(len(samples) + RNNOISE_DELAY) % size))
        frames = np.clip(np.rint(padded * 2**15), -(2**15), 2**15 - 1).astype(np.int16).reshape(-1, size)
        state = library.create()
        try:
            enhanced = np.concatenate([library.process_mono_frame(state, frame)[0] for frame in frames])
        finally:
            library.destroy(state)
        delayed = enhanced[RNNOISE_DELAY : RNNOISE_DELAY + len(samples)].astype(np.float32) / 2**15
        return soxr.resample(delayed, RNNOISE_RATE, RATE)

    return enhance
