"""Shared parts of the benchmarks: forms of a network, timing in turns, peak memory, tables."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from config import MODEL_CONFIGS, Config
from enhance.enhancer import Enhancer
from enhance.onnx_export import export
from enhance.runtimes import fast_enhancer, load_network
from models import build
from models.published import translate_published
from models.stft import Spectra
from tests.reference.muse import plain_network

Row = dict[str, Any]
"""Values of one line of a table by column name; None for an empty cell."""

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ALL_CONFIGS = [path for name in MODEL_CONFIGS if (path := CONFIGS / f"{name}.json").exists()]

FORMS = ("plain", "eager", "compiled", "bf16", "onnxruntime")
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


def has_plain_form(config: Config) -> bool:
    """Return whether `tests.reference` has a transcription of the network."""
    return config.model.name in ("imse", "muse")


def make_networks(config: Config) -> dict[str, nn.Module]:
    """Return "plain", if there is a transcription, and "eager", with the same seeded random weights."""
    torch.manual_seed(0)
    network = build(config).eval()
    if not has_plain_form(config):
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
    network = networks["eager"]
    if form == "onnxruntime":
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"{config.model.name}.onnx")
            path.write_bytes(export(network, config))
            network, config = load_network(path, threads=threads)
    return fast_enhancer(
        network, config, device, protocol, threads=threads, bf16=form == "bf16", compiled=form == "compiled"
    )


@torch.inference_mode()
def median_seconds(functions: Sequence[Callable[[], object]], rounds: int, device: str = "cpu") -> list[float]:
    """Return the median time of each function; each round calls each once, after two rounds of warm-up."""
    times: list[list[float]] = [[] for _ in functions]
    for number in tqdm(range(rounds + 2), leave=False):
        for function, taken in zip(functions, times, strict=True):
            start = perf_counter()
            function()
            if device != "cpu":
                torch.cuda.synchronize()
            if number >= 2:
                taken.append(perf_counter() - start)
    return [statistics.median(taken) for taken in times]


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


def positive(text: str) -> int:
    """Parse a command-line argument as an integer of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text}: must be 1 or more")
    return int(text)


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as a table: text to the left, numbers to the right with four significant digits."""

    def cell(value: object) -> str:
        return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([cell(row.get(name)) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [isinstance(rows[0].get(name), str) for name in columns]
    return "\n".join(
        "  ".join(
            text.ljust(width) if left else text.rjust(width)
            for text, width, left in zip(line, widths, is_text, strict=True)
        ).rstrip()
        for line in cells
    )
