"""What the networks cost: parameters, MACs, real-time factor and peak memory, all in one run.

    python -m tools.benchmark.network [--config configs/imse.json …] [--threads 2] [--compile] [--device cpu] [--json FILE]
    python -m tools.benchmark.network stream [--config configs/lite_rtse.json] [--rounds 1000]
    python -m tools.benchmark.network train [--config configs/imse.json] [--batch_sizes 2 4] [--steps 10] [--bf16] […]

Times one segment of each network, spectra in and spectra out. IMSE and MUSE stand beside a plain transcription of their
papers with the same weights (`plain/`); each round times every form of every network once, so that a noisy machine
slows all of them alike, and the medians' ratios are what counts. Prints text, and JSON as its last line. The other
forms of the command do so for sound that arrives hop by hop (`scripts/benchmark_streaming.py`) and for training steps
(`scripts/benchmark_training.py`).
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from cli import DONE, USAGE_ERROR, ArgumentParser, UserError, run
from config import MODEL_CONFIGS, Config, load_config
from metrics.signals import RATE
from models import build
from models.published import translate_published
from models.stft import Spectra, Spectrogram
from tests.reference.muse import has_reference_network, plain_network
from tools.benchmark.streaming import measure_stream, stream_as_text
from utils.atomic import write_text_atomically

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ALL_NETWORKS = [path for name in MODEL_CONFIGS if (path := CONFIGS / f"{name}.json").exists()]

Form = Callable[[Spectra], Spectra]


def noisy_segment(config: Config, device: str) -> Spectra:
    """The spectra of one segment of noise."""
    wav = 0.1 * torch.randn(1, config.data.segment_size, generator=torch.Generator().manual_seed(0))
    return Spectra(*(part.to(device) for part in Spectrogram(config.stft)(wav)))


def macs(form: Form, noisy: Spectra) -> float:
    """Multiply-accumulates of convolutions, LSTMs and matrix products on the CPU, as torch counts them."""
    operations = {torch.ops.aten.mkldnn_rnn_layer: lstm_flops}
    with FlopCounterMode(display=False, custom_mapping=operations) as counter:
        form(noisy)
    return counter.get_total_flops() / 2


def lstm_flops(x: torch.Size, input_weight: torch.Size, hidden_weight: torch.Size, *_: object, **__: object) -> int:
    """Operations of an LSTM layer on `[T, B, inputs]`, given the shapes: torch's counter does not know it."""
    return 2 * x[0] * x[1] * (input_weight.numel() + hidden_weight.numel())


@torch.inference_mode()
def median_seconds(forms: Sequence[Callable[[], object]], rounds: int, device: str, quiet: bool = False) -> list[float]:
    """The median time of each form; each round runs every form once, after two that do not count."""
    times: list[list[float]] = [[] for _ in forms]
    for number in tqdm(range(rounds + 2), leave=False, disable=quiet):
        for form, taken in zip(forms, times, strict=True):
            start = perf_counter()
            form()
            if device != "cpu":
                torch.cuda.synchronize()
            if number >= 2:
                taken.append(perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def networks_of(config: Config) -> dict[str, nn.Module]:
    """Our network with random weights and, of IMSE and MUSE, the plain transcription with the same: "plain", "ours"."""
    torch.manual_seed(0)
    ours = build(config).eval()
    if not has_reference_network(config):
        return {"ours": ours}
    plain = plain_network(config).eval()
    ours.load_state_dict(translate_published(plain.state_dict()))
    return {"plain": plain, "ours": ours}


def forms_of(config: Config, device: str) -> dict[str, Form]:
    """The networks of a configuration on a device, all called alike."""
    networks = {name: network.to(device) for name, network in networks_of(config).items()}
    forms: dict[str, Form] = dict(networks)
    if "plain" in networks:
        forms["plain"] = lambda noisy: Spectra(*networks["plain"](noisy.mag, noisy.pha))
    return forms


def highest_memory() -> float:
    """The peak of this process' resident memory so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage would count the process that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@torch.inference_mode()
def peak_megabytes(config: Config, threads: int, name: str) -> float:
    """How much memory one segment takes at its peak, above that of a process that has the weights and the input.

    To be called in a fresh process, whose peak it measures.
    """
    torch.set_num_threads(threads)
    form = forms_of(config, "cpu")[name]
    noisy = noisy_segment(config, "cpu")
    before = highest_memory()
    form(noisy)
    return highest_memory() - before


@torch.inference_mode()
def describe(config: Config, forms: dict[str, Form], noisy: Spectra, threads: int) -> dict[str, Any]:
    """What is known of a network without a clock."""
    seconds = config.data.segment_size / config.data.sampling_rate
    reference = next(iter(forms.values()))(noisy).mag
    uncompiled = forms_of(config, "cpu")
    on_cpu = noisy_segment(config, "cpu")
    memory: dict[str, float] = {}
    for name in uncompiled:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            memory[name] = fresh.submit(peak_megabytes, config, threads, name).result()
    return {
        "network": config.model.name,
        "segment_seconds": seconds,
        "parameters": {
            name: sum(each.numel() for each in net.parameters()) for name, net in networks_of(config).items()
        },
        "gmacs_per_second": {name: macs(form, on_cpu) / seconds / 1e9 for name, form in uncompiled.items()},
        "largest_magnitude_difference": {
            name: float((form(noisy).mag - reference).abs().max()) for name, form in forms.items()
        },
        "peak_megabytes_cpu": memory,
    }


def measure(configs: Sequence[Config], threads: int, device: str, compiled: bool, rounds: int) -> dict[str, Any]:
    """All figures of the networks; times in seconds a segment, memory in MB."""
    torch.set_num_threads(threads)
    networks: list[dict[str, Any]] = []
    timed: list[tuple[str, Callable[[], object]]] = []
    for config in configs:
        forms, noisy = forms_of(config, device), noisy_segment(config, device)
        if compiled:
            forms["compiled"] = torch.compile(forms["ours"], dynamic=False)
        networks.append(describe(config, forms, noisy, threads))
        timed += [(name, lambda form=form, noisy=noisy: form(noisy)) for name, form in forms.items()]
    medians = iter(median_seconds([form for _, form in timed], rounds, device))
    for figures in networks:
        times = {name: next(medians) for name in figures["largest_magnitude_difference"]}
        first, *_ = times.values()
        figures["seconds"] = times
        figures["real_time_factor"] = {name: time / figures["segment_seconds"] for name, time in times.items()}
        figures["speedup"] = {name: first / time for name, time in times.items()}
    return {"device": device, "threads": threads, "networks": networks}


def as_text(figures: dict[str, Any]) -> str:
    """The figures as a table."""
    lines = [
        f"{figures['device']}, {figures['threads']} threads, float32, one segment of each network",
        f"{'':20}{'parameters':>12}{'GMAC/s':>8}{'s':>7}{'ms':>9}{'real-time factor':>18}{'times as fast':>15}"
        f"{'MB at peak':>12}{'difference':>12}",
    ]
    for network in figures["networks"]:
        for name, seconds in network["seconds"].items():
            known = name if name in network["parameters"] else "ours"
            memory = network["peak_megabytes_cpu"].get(name)
            lines.append(
                f"{network['network'] + ' ' + name:20}{network['parameters'][known]:12,}"
                f"{network['gmacs_per_second'][known]:8.2f}{network['segment_seconds']:7.2f}{1e3 * seconds:9.1f}"
                f"{network['real_time_factor'][name]:18.3f}{network['speedup'][name]:15.2f}"
                f"{f'{memory:.0f}' if memory else '-':>12}{network['largest_magnitude_difference'][name]:12.1e}"
            )
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = ArgumentParser(description="Measure what the networks cost, in one pass, in a stream or in training.")
    add = parser.add_argument
    add("what", nargs="?", choices=("network", "stream", "train"), default="network", help="default: %(default)s")
    add("--config", type=Path, nargs="+", help="default: all networks'; stream: lite_rtse.json, train: imse.json")
    add("--threads", type=int, help="default: all cores; stream: 1")
    add("--device", default="cpu")
    add("--compile", action="store_true", help="time torch.compile too; compiling takes a minute or more")
    add("--json", type=Path, help="also write the figures to this file")
    add("--rounds", type=int, help="how often each form is timed; default: 15; stream: hops, 2000")
    add("--batch_sizes", type=int, nargs="+", help="train: crops a step; default: the config's train.batch_size")
    add("--steps", type=int, help="train: how many steps of each form are timed; default: 10")
    add("--bf16", action="store_true", help="train: time bfloat16 too")
    options = parser.parse_args(argv)
    foreign = {
        "network": ("batch_sizes", "steps", "bf16"),
        "stream": ("batch_sizes", "steps", "bf16", "compile"),
        "train": ("rounds",),
    }
    for name in foreign[options.what]:
        if getattr(options, name):
            parser.error(f"--{name}: not with {options.what}")
    streaming = options.what == "stream"
    defaults = {
        "threads": 1 if streaming else torch.get_num_threads(),
        "rounds": 2000 if streaming else 15,
        "steps": 10,
    }
    for name, value in defaults.items():
        setattr(options, name, value if getattr(options, name) is None else getattr(options, name))
    if min(options.threads, options.rounds, options.steps, *(options.batch_sizes or [1])) < 1:
        parser.error("--threads, --rounds, --batch_sizes, --steps: must be 1 or more")
    if options.what != "network" and options.config and len(options.config) > 1:
        parser.error(f"--config: one at a time with {options.what}")
    parser.check_device(options.device)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parse_arguments(argv)
    paths = options.config or {
        "network": ALL_NETWORKS, "stream": [CONFIGS / "lite_rtse.json"], "train": [CONFIGS / "imse.json"]
    }[options.what]  # fmt: skip
    try:
        configs = [load_config(path) for path in paths]
        if options.what == "train" and configs[0].loss.metric > 0 and configs[0].data.sampling_rate != RATE:
            raise UserError(f"{paths[0]}: data.sampling_rate: PESQ needs {RATE} Hz")
        text, figures = measure_what(options, configs)
    except UserError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    print(text)
    print(json.dumps(figures))
    if options.json:
        write_text_atomically(options.json, json.dumps(figures, indent=2) + "\n")
    return DONE


def measure_what(options: Namespace, configs: Sequence[Config]) -> tuple[str, dict[str, Any]]:
    """The figures that the command line asks for, as text and as data."""
    if options.what == "stream":
        figures = measure_stream(configs[0], options.threads, options.device, options.rounds)
        return stream_as_text(figures), figures
    if options.what == "train":
        # It needs what only the extra `train` installs.
        from tools.benchmark.training import measure_training, training_as_text

        batch_sizes = options.batch_sizes or [configs[0].train.batch_size]
        parts = batch_sizes, options.steps, options.bf16, options.compile
        figures = measure_training(configs[0], options.threads, options.device, *parts)
        return training_as_text(figures), figures
    figures = measure(configs, options.threads, options.device, options.compile, options.rounds)
    return as_text(figures), figures


if __name__ == "__main__":
    run(main)
