"""Benchmarks; run from the project's root, since they compare with the plain transcriptions in `tests.reference`.

    python -m tools.benchmark {network,lengths,stream,live,train,peers} [--json FILE] …

Alternatives take turns within a run, so that other load on the machine affects all of them; compare ratios of medians
rather than times of different runs. Each prints a table; `--json FILE` writes it with a description of the machine.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cli import DONE, ArgumentParser, positive, run
from config import MODEL_CONFIGS
from enhance.runtimes import BACKENDS
from enhance.windows import PROTOCOLS
from models.checkpoint import DEFAULT_CHECKPOINT, LIVE_CHECKPOINT
from tools.benchmark import inference, live, scoring, training
from tools.benchmark.inference import FORMS
from utils.atomic import write_text_atomically

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SAMPLE = CONFIGS.parent / "samples" / "noisy" / "babble_5dB.flac"
ALL_CONFIGS = [path for name in MODEL_CONFIGS if (path := CONFIGS / f"{name}.json").exists()]


REQUIRED = object()
OPTIONS: dict[str, dict[str, Any]] = {
    "clean_wav_dir": {"type": Path, "metavar": "CLEAN", "help": "clean files"},
    "noisy_wav_dir": {"type": Path, "metavar": "NOISY", "help": "noisy files"},
    "checkpoint_file": {"type": Path, "nargs": "+", "metavar": "CKPT", "help": "checkpoints"},
    "noisy_file": {"type": Path, "metavar": "FILE", "help": "file to play, repeated"},
    "seconds": {"type": positive, "metavar": "S", "help": "seconds to play"},
    "buffer": {"type": positive, "metavar": "MS", "help": "buffer of the player in ms"},
    "files": {"type": positive, "metavar": "N", "help": "number of files, evenly spaced"},
    "config": {"type": Path, "nargs": "+", "help": "configurations of the networks"},
    "forms": {"choices": FORMS, "nargs": "+", "metavar": "FORM", "help": ", ".join(FORMS)},
    "protocols": {"choices": PROTOCOLS, "nargs": "+", "metavar": "NAME", "help": ", ".join(PROTOCOLS)},
    "lengths": {"type": positive, "nargs": "+", "metavar": "S", "help": "seconds"},
    "limit": {"type": float, "metavar": "S", "help": "skip recordings that would take longer than this"},
    "rounds": {"type": positive, "help": "timings of each form"},
    "hops": {"type": positive, "help": "timed hops"},
    "steps": {"type": positive, "help": "timed steps of each form"},
    "batch_sizes": {"type": positive, "nargs": "+", "help": "crops per step"},
    "backend": {"choices": BACKENDS, "help": "what runs the network"},
    "compile": {"action": "store_true", "help": "use torch.compile"},
    "bf16": {"action": "store_true", "help": "compute in bfloat16"},
    "num_threads": {"type": positive, "help": "CPU threads of PyTorch"},
    "device": {"help": "cpu or cuda"},
}


def make_parser() -> ArgumentParser:
    """Return the parser; `measure` of its result is the function that measures."""
    parser = ArgumentParser(prog="python -m tools.benchmark", description="Measure speed, memory and scores.")
    subparsers = parser.add_subparsers(dest="command", required=True)

    def add(name: str, measure: object, **defaults: Any) -> None:
        text = str(measure.__doc__).partition("\n\n")[0]
        subparser = subparsers.add_parser(name, help=text.splitlines()[0], description=text)
        subparser.set_defaults(measure=measure)
        for option, default in defaults.items():
            settings = dict(OPTIONS[option])
            if default is REQUIRED:
                settings["required"] = True
            elif default is not False:
                shown = [Path(each).name for each in map(str, default if isinstance(default, list) else [default])]
                settings["help"] += f"; default: {' '.join(shown)}"
                settings["default"] = default
            subparser.add_argument(f"--{option}", **settings)
        subparser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")

    threads = torch.get_num_threads()
    networks = {"config": ALL_CONFIGS, "forms": ["plain", "eager"], "num_threads": threads}
    add("network", inference.measure_networks, **networks, rounds=15, device="cpu")
    lengths = {"protocols": list(PROTOCOLS), "lengths": [1, 10, 60], "limit": 120.0}
    add("lengths", inference.measure_lengths, **networks, **lengths)
    add(
        "stream",
        inference.measure_stream,
        config=[CONFIGS / "imse_live.json", CONFIGS / "dpcrn_live.json"],
        hops=2000,
        num_threads=1,
        device="cpu",
        backend="auto",
    )
    played = {"noisy_file": SAMPLE, "seconds": 60, "buffer": 100}
    add("live", live.measure_live, checkpoint_file=[LIVE_CHECKPOINT], backend="auto", **played)
    steps = {"config": [CONFIGS / "imse.json"], "batch_sizes": [2], "steps": 10}
    add("train", training.measure_training, **steps, compile=False, bf16=False, num_threads=threads, device="cpu")
    checkpoints = [LIVE_CHECKPOINT, DEFAULT_CHECKPOINT]
    pairs = {"clean_wav_dir": REQUIRED, "noisy_wav_dir": REQUIRED, "files": 1000}
    add("peers", scoring.measure_peers, **pairs, checkpoint_file=checkpoints, num_threads=threads)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark; return the exit code. Raises `UserError`."""
    parser = make_parser()
    options = parser.parse_args(argv)
    if "device" in options:
        parser.check_device(options.device)
    rows = options.measure(options)
    print(as_table(rows))
    if options.json:
        given = {key: value for key, value in vars(options).items() if key not in ("json", "measure")}
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
        content = {"options": given, "machine": machine, "torch": torch.__version__, "rows": rows}
        write_text_atomically(options.json, json.dumps(content, indent=1, default=str) + "\n")
    return DONE


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format rows as a table: text to the left, numbers to the right with four significant digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines: list[list[str]] = [[] for _ in range(1 + len(rows))]
    for name in columns:
        values = [row.get(name) for row in rows]
        cells = ["-" if each is None else f"{each:.4g}" if isinstance(each, float) else str(each) for each in values]
        width = max(map(len, [name, *cells]))
        for line, cell in zip(lines, [name, *cells], strict=True):
            line.append(cell.ljust(width) if isinstance(values[0], str) else cell.rjust(width))
    return "\n".join("  ".join(line).rstrip() for line in lines)


if __name__ == "__main__":
    run(main)
