"""What recordings of many lengths cost: networks × ways to compute them × lengths × threads, in one run.

    python -m tools.benchmark.lengths [--config configs/imse.json …] [--forms eager compiled] [--protocols overlap]
                                        [--lengths 1 10 60] [--threads 1 2] [--json FILE] [--plot STEM]

Each case has a process of its own, which enhances noise with a network of random weights as inference.py does with a
recording once it has been read. Forms: "plain", the plain transcriptions of IMSE's and MUSE's papers, and this
repository's networks by PyTorch ("eager"), `torch.compile` ("compiled") or onnxruntime; protocols as for inference.py.
Prints the real-time factor, the time until the first enhanced samples are there and the process' highest memory, and
the same as JSON in the last line; `--plot STEM` draws them as STEM.png and STEM.svg (needs matplotlib).
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from cli import DONE, USAGE_ERROR, ArgumentParser, UserError, run
from config import Config, load_config
from enhance.enhancer import LEVEL_BLOCK, Enhancer, LevelMeter
from enhance.files import Load
from enhance.onnx_export import export
from enhance.onnx_runtime import load_onnx
from enhance.runtimes import fast_enhancer, keep_freed_memory
from enhance.windows import PROTOCOLS, WHOLE_LIMIT
from models.imse import FRAME_MULTIPLE
from models.stft import Spectra
from tests.reference.muse import has_reference_network
from tools.benchmark.network import ALL_NETWORKS, highest_memory, networks_of
from utils.atomic import atomic_open, write_text_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMS = {
    "plain": ("paper", "whole"),
    "eager": ("overlap", "paper", "whole"),
    "compiled": ("overlap", "paper"),
    "onnxruntime": ("overlap", "paper", "whole"),
}
"""How a network is computed, and the protocols that this goes with."""

WARM_UP_SECONDS = 10
"""Audio that is enhanced before the clock starts; no more, but of each length that is not longer."""

REPEATED_SECONDS = 2
"""A recording up to here is timed several times, and the median counts."""

REPEATS = 5


@dataclass(frozen=True)
class Case:
    """What a process measures."""

    network: str
    form: str
    protocol: str
    threads: int


@dataclass(frozen=True)
class Cost:
    """What a recording of some length costs in a case; times in seconds, memory in MB."""

    length: float
    seconds: float
    real_time_factor: float
    first_output: float
    peak_megabytes: float


class Plain(nn.Module):
    """A plain transcription that is called as ours are, with any number of frames."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Spectra) -> Spectra:
        """Noisy spectra → enhanced ones."""
        frames = noisy.mag.shape[-1]
        padded = (functional.pad(part, (0, -frames % FRAME_MULTIPLE)) for part in noisy)
        mag, pha = self.network(*padded)
        return Spectra(mag[..., :frames], pha[..., :frames])


def enhancer_of(config: Config, case: Case, onnx_file: Path | None) -> Enhancer:
    """What enhances in a case; may raise `UserError`."""
    if case.form == "plain":
        return Enhancer(Plain(networks_of(config)["plain"]), config)  # as it is, without what makes ours faster
    network = load_onnx(onnx_file, case.threads)[0] if onnx_file else networks_of(config)["ours"]
    load = Load(1, case.threads)
    return fast_enhancer(network, config, "cpu", case.protocol, load, bf16=False, compiled=case.form == "compiled")


def noise_blocks(samples: int) -> Iterator[np.ndarray]:
    """White noise in blocks `[n, 1]`."""
    generator = np.random.default_rng(0)
    for start in range(0, samples, LEVEL_BLOCK):
        yield generator.uniform(-0.1, 0.1, (min(LEVEL_BLOCK, samples - start), 1)).astype(np.float32)


def timed(enhancer: Enhancer, protocol: str, length: float) -> tuple[float, float]:
    """Enhance noise of `length` seconds: the time until the first output, and until the last."""
    samples = round(length * enhancer.rate)
    level = LevelMeter().measure(noise_blocks(samples))
    start = perf_counter()
    enhanced = enhancer.enhance(noise_blocks(samples), level, protocol)
    next(enhanced)
    first = perf_counter() - start
    for _ in enhanced:
        pass
    return first, perf_counter() - start


def forget_highest_memory() -> None:
    """Let the highest memory of this process be counted from now on, where the system can do that."""
    counter = Path("/proc/self/clear_refs")
    if counter.exists():
        counter.write_text("5")


def measure_case(
    config: Config, case: Case, lengths: Sequence[float], limit: float, onnx_file: Path | None
) -> list[Cost]:
    """The costs of each length, shortest first, but for those that would take more than `limit` seconds.

    To be called in a fresh process, whose memory it measures.
    """
    torch.set_num_threads(case.threads)
    if case.form != "plain":
        keep_freed_memory()
    enhancer = enhancer_of(config, case, onnx_file)
    longest = WHOLE_LIMIT / enhancer.rate if case.protocol == "whole" else np.inf
    costs: list[Cost] = []
    for length in sorted(lengths):
        if length > longest or (costs and costs[-1].real_time_factor * length > limit):
            break
        timed(enhancer, case.protocol, min(length, WARM_UP_SECONDS))
        forget_highest_memory()
        times = [timed(enhancer, case.protocol, length) for _ in range(REPEATS if length <= REPEATED_SECONDS else 1)]
        first, seconds = (statistics.median(column) for column in zip(*times, strict=True))
        costs.append(Cost(length, seconds, seconds / length, first, highest_memory()))
    return costs


def cases_of(config: Config, forms: Sequence[str], protocols: Sequence[str], threads: Sequence[int]) -> list[Case]:
    """The cases of a network."""
    return [
        Case(config.model.name, form, protocol, number)
        for form in forms
        if form != "plain" or has_reference_network(config)
        for protocol in FORMS[form]
        if protocol in protocols
        for number in threads
    ]


def measure(configs: Sequence[Config], options: Namespace) -> list[tuple[Case, list[Cost]]]:
    """All cases, one after another, each in a process of its own."""
    chosen = options.forms, options.protocols, options.threads
    todo = [(config, case) for config in configs for case in cases_of(config, *chosen)]
    results: list[tuple[Case, list[Cost]]] = []
    with tempfile.TemporaryDirectory() as folder:
        exported: dict[str, Path] = {}
        for config in configs if "onnxruntime" in options.forms else []:  # first, for it may fail
            exported[config.model.name] = Path(folder, f"{config.model.name}.onnx")
            exported[config.model.name].write_bytes(export(networks_of(config)["ours"], config))
        for config, case in tqdm(todo, leave=False):
            onnx_file = exported[case.network] if case.form == "onnxruntime" else None
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                arguments = config, case, options.lengths, options.limit, onnx_file
                results.append((case, fresh.submit(measure_case, *arguments).result()))
    return results


def as_text(results: Sequence[tuple[Case, list[Cost]]]) -> str:
    """The costs as a table."""
    lines = [
        f"{'network':11}{'form':13}{'protocol':10}{'threads':>7}{'s':>8}{'real-time factor':>18}{'first output ms':>17}"
        f"{'peak MB':>9}"
    ]
    for case, costs in results:
        named = f"{case.network:11}{case.form:13}{case.protocol:10}{case.threads:7}"
        for cost in costs:
            lines.append(
                f"{named}{cost.length:8g}{cost.real_time_factor:18.3f}{1e3 * cost.first_output:17.0f}"
                f"{cost.peak_megabytes:9.0f}"
            )
    return "\n".join(lines)


def plot(results: Sequence[tuple[Case, list[Cost]]], stem: Path) -> None:
    """Draw the costs: real-time factors of one length, and how time and memory grow with the length.

    Writes STEM.png and STEM.svg; raises `OSError`.
    """
    from matplotlib.figure import Figure  # late: only the plot needs it

    figure = Figure(figsize=(13, 6), layout="constrained")
    bars, times, memory = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    draw_factors(bars, results)
    for case, costs in results:
        if case.threads == max(other.threads for other, _ in results) and len(costs) > 1:
            label = f"{case.network} {case.form}, {case.protocol}"
            lengths = [cost.length for cost in costs]
            style = {"marker": "o", "markersize": 3, "linewidth": 1, "label": label}
            times.plot(lengths, [cost.seconds for cost in costs], **style)
            memory.plot(lengths, [cost.peak_megabytes for cost in costs], **style)
    for axes, title in ((times, "time, s"), (memory, "highest memory of the process, MB")):
        axes.set(xscale="log", yscale="log", xlabel="length of the recording, s", title=title)
        axes.grid(alpha=0.3)
    times.legend(fontsize=6)
    for suffix in ("png", "svg"):
        with atomic_open(stem.with_name(f"{stem.name}.{suffix}")) as stream:
            figure.savefig(stream, format=suffix, dpi=150)


def draw_factors(axes: Axes, results: Sequence[tuple[Case, list[Cost]]]) -> None:
    """A bar for each case: its real-time factor at the longest length that all cases have."""
    length = min(max(cost.length for cost in costs) for _, costs in results)
    names = [f"{case.network} {case.form}, {case.protocol}, {case.threads} threads" for case, _ in results]
    factors = [next(cost.real_time_factor for cost in costs if cost.length == length) for _, costs in results]
    drawn = axes.barh(names, factors, color=[f"C{list(FORMS).index(case.form)}" for case, _ in results])
    axes.bar_label(drawn, fmt="%.3f", fontsize=7, padding=2)
    axes.tick_params("y", labelsize=7)
    axes.invert_yaxis()
    axes.set(title=f"real-time factor, {length:g} s of audio", xlim=(0, 1.15 * max(factors)))


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = ArgumentParser(description="Measure what recordings of many lengths cost.")
    add = parser.add_argument
    add("--config", type=Path, nargs="+", default=ALL_NETWORKS, help="default: all networks'")
    add("--forms", choices=FORMS, nargs="+", default=list(FORMS), help="default: all")
    add("--protocols", choices=PROTOCOLS, nargs="+", default=list(PROTOCOLS), help="default: all")
    add("--lengths", type=float, nargs="+", default=[1, 10, 60], metavar="S", help="seconds; default: 1 10 60")
    add("--threads", type=int, nargs="+", default=[torch.get_num_threads()], metavar="N", help="default: all cores")
    add(
        "--limit", type=float, default=120, metavar="S", help="leave out what would take longer; default: %(default)s s"
    )
    add("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    add("--plot", type=Path, metavar="STEM", help="draw STEM.png and STEM.svg")
    options = parser.parse_args(argv)
    if not all(0 < number < np.inf for number in [*options.threads, *options.lengths, options.limit]):
        parser.error("--threads, --lengths, --limit: must be above 0")
    if options.plot and not find_spec("matplotlib"):
        parser.error("--plot: needs matplotlib: pip install matplotlib")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options = parse_arguments(argv)
    try:
        configs = [load_config(path) for path in options.config]
        results = measure(configs, options)
    except UserError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    figures = [{**asdict(case), **asdict(cost)} for case, costs in results for cost in costs]
    print(as_text(results))
    print(json.dumps(figures))
    if options.json:
        write_text_atomically(options.json, json.dumps(figures, indent=1) + "\n")
    if options.plot:
        plot(results, options.plot)
    return DONE


if __name__ == "__main__":
    run(main)
