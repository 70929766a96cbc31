"""Benchmarks; run from the project's root, since they compare with the plain transcriptions in `tests.reference`.

    python -m tools.benchmark network     a segment of each network: time, parameters, MACs, memory
    python -m tools.benchmark train       a training step against the plain training loop
    python -m tools.benchmark stream      live enhancement, hop by hop
    python -m tools.benchmark lengths     recordings of 1 s to 10 min: time and memory
    python -m tools.benchmark folder      a folder of files against the plain IMSE
    python -m tools.benchmark metrics     scoring files against plain loops over frames
    python -m tools.benchmark peers       speed and scores of this project and other packages

Alternatives take turns within a run, so that other load on the machine affects all of them; compare ratios of medians
rather than times of different runs. Each prints a table; `--json FILE` writes it with a description of the machine.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from cli import DONE, ArgumentParser, run
from tools.benchmark import folder, lengths, metrics, network, peers, stream, train
from tools.benchmark.common import as_table
from utils.atomic import write_text_atomically

COMMANDS = {
    "network": network,
    "train": train,
    "stream": stream,
    "lengths": lengths,
    "folder": folder,
    "metrics": metrics,
    "peers": peers,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark; return the exit code. Raises `UserError`."""
    parser = ArgumentParser(prog="python -m tools.benchmark", description="Measure what this project costs.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")
    options = parser.parse_args(argv)
    if "device" in options:
        parser.check_device(options.device)
    rows = COMMANDS[options.command].measure(options)
    print(as_table(rows))
    if options.json:
        given = {key: value for key, value in vars(options).items() if key != "json"}
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
        content = {"options": given, "machine": machine, "torch": torch.__version__, "rows": rows}
        write_text_atomically(options.json, json.dumps(content, indent=1, default=str) + "\n")
    return DONE


if __name__ == "__main__":
    run(main)
