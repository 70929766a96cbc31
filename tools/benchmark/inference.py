"""Time and memory of inference: one segment, recordings of several lengths, live hops."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from config import Config, load_config
from data.audio import AudioFormat, write_audio
from enhance.enhancer import Enhancer
from enhance.files import enhance_file
from enhance.runtimes import BACKENDS, fast_enhancer, fast_stream, tune_malloc
from enhance.windows import WHOLE_LIMIT
from models import build
from models.published import translate_published
from models.stft import AnySpectra, Spectra, Spectrogram
from tests.reference.muse import has_reference_network, plain_network

Row = dict[str, Any]
"""Values of one line of a table by column name; None for an empty cell."""

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

FORMS = ("plain", "eager", "compiled", "bf16", "openvino", "openvino bf16", "onnxruntime")
"""The plain transcription of IMSE and MUSE, and this project's networks as inference.py runs them."""


class Plain(nn.Module):
    """A plain transcription with the interface of this project's networks: any number of frames, `Spectra`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Spectra) -> Spectra:
        """Pad to a multiple of four frames, enhance, cut."""
        frames = noisy.mag.shape[-1]
        mag, pha = self.network(*(functional.pad(part, (0, -frames % 4)) for part in noisy))
        return Spectra(mag[..., :frames], pha[..., :frames])


def make_networks(config: Config) -> dict[str, nn.Module]:
    """Return "plain", if there is a transcription, and "eager", with the same seeded random weights."""
    torch.manual_seed(0)
    network = build(config).eval()
    if not has_reference_network(config):
        return {"eager": network}
    plain = plain_network(config).eval()
    network.load_state_dict(translate_published(plain.state_dict()))
    return {"plain": Plain(plain), "eager": network}


def make_enhancer(
    config: Config, form: str, protocol: str = "paper", device: str = "cpu", threads: int = 1
) -> Enhancer:
    """Return an enhancer whose network has one of `FORMS` and seeded random weights; raise `UserError`."""
    networks = make_networks(config)
    if form == "plain":
        return Enhancer(networks["plain"], config).to(device)
    backend, _, precision = form.partition(" ")
    return fast_enhancer(
        networks["eager"],
        config,
        device,
        protocol,
        backend if backend in BACKENDS else "torch",
        batch_size=1,
        threads=threads,
        bf16="bf16" in (form, precision),
        compiled=form == "compiled",
    )


def call_in_new_process(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Call a function in a new process, to measure its peak memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *args, **kwargs).result()


def peak_memory() -> float:
    """Return the peak resident memory of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux getrusage includes the parent's memory before exec
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# One segment


@torch.inference_mode()
def measure_networks(options: Namespace) -> list[Row]:
    """Time one segment of each network, from spectra to spectra, in several forms with the same weights.

    Raises `UserError`.
    """
    tune_malloc()
    torch.set_num_threads(options.num_threads)
    rows: list[Row] = []
    runs: list[tuple[nn.Module, AnySpectra]] = []
    for config in map(load_config, options.config):
        noisy = noise_segment(config)
        noisy = type(noisy)(*(part.to(options.device) for part in noisy))
        networks = make_networks(config)
        first = None
        for form in options.forms:
            if form == "plain" and "plain" not in networks:
                continue
            network = make_enhancer(config, form, "paper", options.device, options.num_threads).network
            mag = network(noisy).mag
            first = mag if first is None else first
            row: Row = {"network": config.model.name, "form": form}
            if form in networks:
                row["parameters"] = sum(each.numel() for each in networks[form].parameters())
                row["GMAC/s"] = count_macs(networks[form], config) / segment_seconds(config) / 1e9
                memory = call_in_new_process(segment_memory, config, form, options.num_threads)
                row["peak MB"] = round(memory, 1)
            rows.append({**row, "difference": float((mag - first).abs().max()), "s": segment_seconds(config)})
            runs.append((network, noisy))
    times: list[list[float]] = [[] for _ in runs]
    for number in tqdm(range(options.rounds + 2), leave=False):
        for (network, noisy), taken in zip(runs, times, strict=True):
            start = perf_counter()
            network(noisy)
            if options.device != "cpu":
                torch.cuda.synchronize(options.device)
            if number >= 2:  # the first rounds warm up
                taken.append(perf_counter() - start)
    first_of: dict[str, float] = {}
    for row, taken in zip(rows, times, strict=True):
        seconds = statistics.median(taken)
        row["ms"], row["RTF"] = 1e3 * seconds, seconds / row.pop("s")
        row["speed-up"] = first_of.setdefault(row["network"], seconds) / seconds
    return rows


def segment_seconds(config: Config) -> float:
    """Return the length of a segment in seconds."""
    return config.data.segment_size / config.data.sampling_rate


def noise_segment(config: Config) -> AnySpectra:
    """Return the spectra of one segment of noise, `[1, F, T]`."""
    wav = 0.1 * torch.randn(1, config.data.segment_size, generator=torch.Generator().manual_seed(0))
    return Spectrogram(config.stft, config.model.complex_spectra)(wav)


@torch.inference_mode()
def count_macs(network: nn.Module, config: Config) -> float:
    """Count the multiply-accumulates of convolutions, LSTMs, GRUs and matrix products in one segment, on the CPU."""

    def lstm_flops(x: torch.Size, weight_ih: torch.Size, weight_hh: torch.Size, *_: object, **__: object) -> int:
        return 2 * x[0] * x[1] * (weight_ih.numel() + weight_hh.numel())

    # torch's counter knows neither LSTM layers nor fused attention.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: lstm_flops})
    with sdpa_kernel(SDPBackend.MATH), counter:
        network(noise_segment(config))
    return counter.get_total_flops() / 2


@torch.inference_mode()
def segment_memory(config: Config, form: str, threads: int) -> float:
    """Return the peak memory of one segment in MB, beyond the weights and the input; call in a new process."""
    torch.set_num_threads(threads)
    network, noisy = make_networks(config)[form], noise_segment(config)
    before = peak_memory()
    network(noisy)
    return peak_memory() - before


# Recordings of several lengths


def measure_lengths(options: Namespace) -> list[Row]:
    """Enhance noise of several lengths from file to file: time and peak memory by form and protocol.

    Raises `UserError`.
    """
    cases = [
        (config, form, protocol)
        for config in map(load_config, options.config)
        for form in options.forms
        for protocol in options.protocols
        if (form != "plain" or (has_reference_network(config) and protocol in ("paper", "whole")))  # as released
        and (form != "compiled" or protocol != "whole")  # only windows of one length are compiled
    ]
    rows: list[Row] = []
    for case in tqdm(cases, leave=False):
        rows += call_in_new_process(measure_case, *case, options)
    return rows


def measure_case(config: Config, form: str, protocol: str, options: Namespace) -> list[Row]:
    """Return a row for each length, from short to long, until one would take longer than `--limit`."""
    torch.set_num_threads(options.num_threads)
    if form != "plain":
        tune_malloc()
    rate = config.data.sampling_rate
    enhancer = make_enhancer(config, form, protocol, "cpu", options.num_threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:

        def enhance(seconds: int) -> float:
            path = Path(folder, f"{seconds}.wav")
            if not path.exists():
                noise = np.random.default_rng(0).uniform(-0.1, 0.1, (seconds * rate, 1)).astype(np.float32)
                write_audio(path, noise, AudioFormat(rate, 1, "WAV", "PCM_16"))
            start = perf_counter()
            enhance_file(path, Path(folder, "enhanced.wav"), enhancer, protocol)
            return perf_counter() - start

        for length in sorted(options.lengths):
            too_long = protocol == "whole" and length * rate > WHOLE_LIMIT
            if too_long or (rows and rows[-1]["RTF"] * length > options.limit):
                break
            enhance(min(length, 10))  # warm up
            seconds = statistics.median(enhance(length) for _ in range(5 if length <= 2 else 1))
            case = {"network": config.model.name, "form": form, "protocol": protocol, "length s": length}
            rows.append({**case, "s": seconds, "RTF": seconds / length, "peak MB": round(peak_memory(), 1)})
    return rows


# Live enhancement


def measure_stream(options: Namespace) -> list[Row]:
    """Time live enhancement hop by hop, or block by block, STFT and inverse STFT included.

    Raises `UserError` if a network cannot stream.
    """
    torch.set_num_threads(options.num_threads)
    rows: list[Row] = []
    backend = options.backend if options.device == "cpu" else "torch"
    for config in map(load_config, options.config):
        torch.manual_seed(0)
        stream = fast_stream(build(config).eval(), config, options.device, backend, options.num_threads)
        hop, warm_up = config.model.block_frames * config.stft.hop_size, 50
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, (warm_up + options.hops, hop)).astype(np.float32)
        times: list[float] = []
        for samples in tqdm(noise, leave=False):
            start = perf_counter()
            stream.process(samples)
            times.append(perf_counter() - start)
        hop_ms = 1e3 * hop / config.data.sampling_rate
        for name, quantile in (("median", 50), ("99th percentile", 99)):
            ms = 1e3 * float(np.percentile(times[warm_up:], quantile))
            row = {"network": config.model.name, "statistic": name, "ms": ms, "hop ms": hop_ms, "RTF": ms / hop_ms}
            rows.append({**row, "latency ms": 1e3 * stream.latency})
    return rows
