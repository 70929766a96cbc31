"""Time one segment of each network, from spectra to spectra, in several forms with the same weights."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from config import Config, load_config
from enhance.runtimes import tune_malloc
from models.stft import Spectra, Spectrogram
from tools.benchmark.common import (
    ALL_CONFIGS,
    FORMS,
    Row,
    call_in_new_process,
    has_plain_form,
    make_enhancer,
    make_networks,
    median_seconds,
    peak_memory,
    positive,
)

HELP = "a segment of each network"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add = parser.add_argument
    add("--config", type=Path, nargs="+", default=ALL_CONFIGS, help="default: all networks")
    add("--forms", choices=FORMS, nargs="+", default=["plain", "eager"], help="default: plain eager")
    add("--threads", type=positive, default=torch.get_num_threads(), help="default: all cores")
    add("--rounds", type=positive, default=15, help="timings of each form; default: 15")
    add("--device", default="cpu", help="cpu or cuda; default: cpu")


def measure(options: Namespace) -> list[Row]:
    """Return time, real-time factor, speed-up, MACs, parameters, peak memory and difference to the first form."""
    tune_malloc()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    functions = []
    for path in options.config:
        config = load_config(path)
        noisy = Spectra(*(part.to(options.device) for part in noise_segment(config)))
        networks = make_networks(config)
        first = None
        for form in options.forms:
            if form == "plain" and not has_plain_form(config):
                continue
            network = make_enhancer(config, form, "paper", options.device, options.threads).network
            with torch.inference_mode():
                mag = network(noisy).mag
            first = mag if first is None else first
            row: Row = {"network": config.model.name, "form": form}
            if form in networks:
                row["parameters"] = sum(each.numel() for each in networks[form].parameters())
                row["GMAC/s"] = count_macs(networks[form], config) / segment_seconds(config) / 1e9
                memory = call_in_new_process(segment_memory, config, form, options.threads)
                row["peak MB"] = round(memory, 1)
            row["difference"] = float((mag - first).abs().max())
            rows.append(row)
            functions.append((segment_seconds(config), lambda network=network, noisy=noisy: network(noisy)))
    medians = median_seconds([function for _, function in functions], options.rounds, options.device)
    slowest: dict[str, float] = {}
    for row, (length, _), seconds in zip(rows, functions, medians, strict=True):
        row["ms"] = 1e3 * seconds
        row["RTF"] = seconds / length
        row["speed-up"] = slowest.setdefault(row["network"], seconds) / seconds
    return rows


def segment_seconds(config: Config) -> float:
    """Return the length of a segment in seconds."""
    return config.data.segment_size / config.data.sampling_rate


def noise_segment(config: Config) -> Spectra:
    """Return the spectra of one segment of noise, `[1, F, T]`."""
    wav = 0.1 * torch.randn(1, config.data.segment_size, generator=torch.Generator().manual_seed(0))
    return Spectrogram(config.stft)(wav)


@torch.inference_mode()
def count_macs(network: nn.Module, config: Config) -> float:
    """Count the multiply-accumulates of convolutions, LSTMs and matrix products in one segment, on the CPU."""

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
