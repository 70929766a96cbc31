"""What a network costs: parameters, MACs, real-time factor and peak memory, beside a plain transcription of the paper.

    python -m scripts.benchmark [--config configs/imse.json] [--threads 2] [--compile] [--device cpu] [--json FILE]
    python -m scripts.benchmark train [--batch_sizes 2 4] [--steps 10] [--bf16] […]

Times one segment (308 frames for IMSE) as network only, spectra in and spectra out. The plain transcription in
`tests/models/plain_imse.py` has the same weights; each round times every form once, so that a noisy machine slows
all of them alike, and the medians' ratios are what counts. Prints text, and JSON as its last line. The second form
of the command does so for training steps (`scripts/benchmark_training.py`).
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from cli import DONE, WRONG_COMMAND_LINE, ArgumentParser, run
from config import Config, ConfigError, load_config
from data.atomic import write_text_atomically
from metrics.signals import RATE
from models import build
from models.published import translate_imse
from models.spectrogram import Spectra, Spectrogram
from tests.models.plain_imse import PlainIMSE

Form = Callable[[Spectra], object]


def noisy_segment(config: Config, device: str) -> Spectra:
    """The spectra of one segment of noise."""
    wav = torch.randn(1, config.data.segment_size, generator=torch.Generator().manual_seed(0))
    return Spectra(*(part.to(device) for part in Spectrogram(config.stft)(wav)))


def macs(form: Form, noisy: Spectra) -> float:
    """Multiply-accumulates of convolutions and matrix products, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        form(noisy)
    return counter.get_total_flops() / 2


@torch.inference_mode()
def median_seconds(forms: dict[str, Form], noisy: Spectra, rounds: int) -> dict[str, float]:
    """The median time of each form; each round runs every form once, after two that do not count."""
    times: dict[str, list[float]] = {name: [] for name in forms}
    for number in tqdm(range(rounds + 2), leave=False):
        for name, form in forms.items():
            start = perf_counter()
            form(noisy)
            if noisy.mag.is_cuda:
                torch.cuda.synchronize()
            if number >= 2:
                times[name].append(perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def plain_form(config: Config) -> tuple[PlainIMSE, nn.Module]:
    """The plain transcription with random weights, and our network with the same."""
    torch.manual_seed(0)
    plain, ours = PlainIMSE(config.model.channels, config.stft.bins).eval(), build(config).eval()
    ours.load_state_dict(translate_imse(plain.state_dict()))
    return plain, ours


def highest_memory() -> float:
    """The peak of this process' resident memory so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage would count the process that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@torch.inference_mode()
def peak_megabytes(config: Config, threads: int, plain: bool) -> float:
    """How much memory one segment takes at its peak, above that of a process that has the weights and the input.

    To be called in a fresh process, whose peak it measures.
    """
    torch.set_num_threads(threads)
    oracle, ours = plain_form(config)
    noisy = noisy_segment(config, "cpu")
    before = highest_memory()
    if plain:
        oracle(noisy.mag, noisy.pha)
    else:
        ours(noisy)
    return highest_memory() - before


def measure(config: Config, threads: int, device: str, compiled: bool, rounds: int) -> dict[str, object]:
    """All figures of one network; times in seconds a segment, memory in MB."""
    torch.set_num_threads(threads)
    seconds = config.data.segment_size / config.data.sampling_rate
    plain, ours = (network.to(device) for network in plain_form(config))
    noisy = noisy_segment(config, device)
    forms: dict[str, Form] = {"plain": lambda spectra: plain(spectra.mag, spectra.pha), "ours": ours}
    if compiled:
        forms["compiled"] = torch.compile(ours)
    with torch.inference_mode():
        reference = plain(noisy.mag, noisy.pha)[0]
        difference = {name: float((form(noisy)[0] - reference).abs().max()) for name, form in forms.items()}  # pyright: ignore[reportIndexIssue]
    times = median_seconds(forms, noisy, rounds)
    memory: dict[str, float] = {}
    for form in ("plain", "ours"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            memory[form] = fresh.submit(peak_megabytes, config, threads, form == "plain").result()
    return {
        "network": config.model.name,
        "device": device,
        "threads": threads,
        "parameters": sum(weight.numel() for weight in ours.parameters()),
        "parameters_plain": sum(weight.numel() for weight in plain.parameters()),
        "gmacs_per_second": macs(ours, noisy) / seconds / 1e9,
        "gmacs_per_second_plain": macs(forms["plain"], noisy) / seconds / 1e9,
        "segment_seconds": seconds,
        "seconds": times,
        "real_time_factor": {name: time / seconds for name, time in times.items()},
        "speedup": {name: times["plain"] / time for name, time in times.items()},
        "largest_magnitude_difference": difference,
        "peak_megabytes_cpu": memory,
    }


def as_text(figures: dict) -> str:
    """The figures as a table."""
    lines = [
        f"{figures['network']}, {figures['device']}, {figures['threads']} threads, float32, "
        f"one segment of {figures['segment_seconds']:.2f} s",
        f"parameters {figures['parameters']:,} (as released {figures['parameters_plain']:,}), "
        f"{figures['gmacs_per_second']:.2f} GMAC a second of audio ({figures['gmacs_per_second_plain']:.2f})",
        f"{'':10}{'ms':>9}{'real-time factor':>18}{'times as fast':>15}{'MB at peak':>12}{'difference':>12}",
    ]
    for name, seconds in figures["seconds"].items():
        memory = figures["peak_megabytes_cpu"].get(name)
        lines.append(
            f"{name:10}{1e3 * seconds:9.1f}{figures['real_time_factor'][name]:18.3f}{figures['speedup'][name]:15.2f}"
            f"{f'{memory:.0f}' if memory else '-':>12}{figures['largest_magnitude_difference'][name]:12.1e}"
        )
    return "\n".join(lines)


def parse_arguments() -> Namespace:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = ArgumentParser(description="Measure what a network costs, or what training it costs.")
    add = parser.add_argument
    add("what", nargs="?", choices=("network", "train"), default="network", help="default: %(default)s")
    add("--config", type=Path, default=Path(__file__).resolve().parents[1] / "configs" / "imse.json")
    add("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    add("--device", default="cpu")
    add("--compile", action="store_true", help="time torch.compile too; compiling takes a minute or more")
    add("--json", type=Path, help="also write the figures to this file")
    add("--rounds", type=int, help="network: how often each form is timed; default: 15")
    add("--batch_sizes", type=int, nargs="+", help="train: crops a step; default: the config's train.batch_size")
    add("--steps", type=int, help="train: how many steps of each form are timed; default: 10")
    add("--bf16", action="store_true", help="train: time bfloat16 too")
    options = parser.parse_args()
    for name in ("rounds",) if options.what == "train" else ("batch_sizes", "steps", "bf16"):
        if getattr(options, name):
            parser.error(f"--{name}: not with {options.what}")
    options.rounds = 15 if options.rounds is None else options.rounds
    options.steps = 10 if options.steps is None else options.steps
    if min(options.threads, options.rounds, options.steps, *(options.batch_sizes or [1])) < 1:
        parser.error("--threads, --rounds, --batch_sizes, --steps: must be 1 or more")
    parser.check_device(options.device)
    return options


def check_trainable(path: Path, config: Config) -> None:
    """Raises `ConfigError` where the plain training loop cannot go by the configuration: it always has PESQ labels."""
    if config.loss.metric == 0:
        raise ConfigError(str(path), ["loss.metric: must be above 0, for the plain loop always has labels"])
    if config.data.sampling_rate != RATE:
        raise ConfigError(str(path), [f"data.sampling_rate: PESQ needs {RATE} Hz"])


def main() -> int:
    """Measure and print."""
    options = parse_arguments()
    try:
        config = load_config(options.config)
        if options.what == "train":
            check_trainable(options.config, config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return WRONG_COMMAND_LINE
    if options.what == "train":
        from scripts.benchmark_training import measure_training, training_as_text

        batch_sizes = options.batch_sizes or [config.train.batch_size]
        parts = batch_sizes, options.steps, options.bf16, options.compile
        figures = measure_training(config, options.threads, options.device, *parts)
        print(training_as_text(figures))
    else:
        figures = measure(config, options.threads, options.device, options.compile, options.rounds)
        print(as_text(figures))
    print(json.dumps(figures))
    if options.json:
        write_text_atomically(options.json, json.dumps(figures, indent=2) + "\n")
    return DONE


if __name__ == "__main__":
    run(main)
