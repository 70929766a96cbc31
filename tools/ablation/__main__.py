"""What is each part of IMSE worth? Train variants of it alike, score them on the same files, and compare.

    python -m tools.ablation --output_dir OUT --steps 1000 --clean_wav_dir CLEAN --noisy_wav_dir NOISY
        [--base configs/imse.json] [--ablations configs/ablation/*.json] [--files 100] [--jobs 2]
        -- --input_training_file training.txt

Each variant is the base with one file of `configs/ablation/` put over it. What stands after `--` goes to `train.py`,
the same for all: data, `--set …`, `--device`. All see the same crops in the same order, but for `other_seed`, which is
the base once more and shows what chance alone changes.
The network that each ends with enhances the test files through `inference.py`; nothing is selected. OUT gets a folder
for each variant, and `ablation.md` and `ablation.json` with parameters, MACs, real-time factor, all metrics, and the
paired difference to the base with its 95 % interval: that of the files, not of other seeds.

The command may be stopped and given again: what is done stays, and with more `--steps` training goes on from where it
was. With `--minutes`, a variant that was stopped begins anew. Exit codes: 0 all done; 1 a variant failed (named); 2 the
command line is wrong; 130 and 143 stopped.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cli import DONE, SOME_FAILED, USAGE_ERROR, ArgumentParser, UserError, run
from config import load_config, load_json, merge, parse_config
from data.file_lists import Utterance, evenly_spaced, require_pairs
from metrics.paired import paired_test
from metrics.score import METRICS, PairScores, score_pairs
from metrics.summary import json_number, summarise, write_report
from models import build
from tools.benchmark.network import macs, median_seconds, noisy_segment
from training.stop import Stop
from utils.atomic import write_text_atomically
from utils.processes import available_cores

ROOT = Path(__file__).resolve().parents[1]
BASE = "base"
NOISY = "noisy"
"""The folder of the test files' links; so no variant can have this name."""

ROUNDS = 5
"""How often a segment is timed with each variant."""

MAX_DIGITS = 3

POLL_SECONDS = 0.2


class AblationError(Exception):
    """A variant cannot be trained, or its results not be had; the message says which and why."""


@dataclass(frozen=True)
class Variant:
    """One line of the table: its name, and its whole configuration as `train.py` reads it."""

    name: str
    content: Mapping[str, Any]


def read_variants(base: Path, ablations: Sequence[Path]) -> list[Variant]:
    """The base, then the base with each delta put over it; raises `UserError`."""
    whole = load_config(base).to_dict()
    variants = [Variant(BASE, whole)]
    for path in ablations:
        delta = load_json(path)
        if not isinstance(delta, dict):
            raise UserError(str(path), ["expected an object with the sections of a configuration"])
        content = merge(whole, {name: section for name, section in delta.items() if name != "base"})
        variants.append(Variant(path.stem, parse_config(content, f"{path} over {base}").to_dict()))
    names = [NOISY, *(variant.name for variant in variants)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(str(base), [f"the name {twice[0]} is taken; rename the file of the variant"])
    return variants


def choose_files(pairs: Sequence[Utterance], files: int | None, folder: Path) -> list[Utterance]:
    """So many of the pairs, evenly spaced; their noisy files are linked in a folder for `inference.py`."""
    shutil.rmtree(folder, ignore_errors=True)
    linked: list[Utterance] = []
    for pair in evenly_spaced(pairs, files or len(pairs)):
        link = folder / f"{pair.id}{pair.noisy.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(pair.noisy.resolve())
        linked.append(Utterance(pair.id, pair.clean, link))
    return linked


def call(folder: Path, stop: Stop, threads: int, deadline: float, script: str, *arguments: object) -> None:
    """Run a script of this project, what it prints going to a file with its name; raises `AblationError`.

    At the deadline (of the monotonic clock), or when the command is stopped, it is asked to save and leave.
    """
    command = [sys.executable, str(ROOT / script), *map(str, arguments), "--quiet"]
    log_file = folder / Path(script).with_suffix(".log").name
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (
        log_file.open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        while process.poll() is None:
            if stop.code or monotonic() > deadline:
                process.terminate()
                process.wait()
                break
            sleep(POLL_SECONDS)
    if stop.code:
        raise AblationError(f"{folder.name}: stopped")
    if process.returncode != DONE and monotonic() < deadline:
        lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines() or ["no message"]
        raise AblationError(f"{folder.name}: {script} ended with code {process.returncode}: {lines[-1]}")


def train(folder: Path, options: Namespace, stop: Stop) -> bool:
    """Train one variant for the budget that all have, unless it has; whether it did. Raises `AblationError`."""
    run_dir, config, record = folder / "run", folder / "config.json", folder / "trained.json"
    trained = json.dumps([budget(options), options.train, json.loads(config.read_text(encoding="utf-8"))])
    if record.exists() and record.read_text(encoding="utf-8") == trained:
        return False
    state = run_dir / "latest.pt"
    command = ["train.py", "--config", config, "--checkpoint_path", run_dir, *options.train]
    if options.steps:
        command += ["--max_steps", options.steps, *(["--resume"] if state.exists() else [])]
        call(folder, stop, options.threads, math.inf, *command)
    else:
        deadline = monotonic() + 60 * options.minutes
        call(folder, stop, options.threads, deadline, *command, "--overwrite")
        if not state.exists():
            raise AblationError(f"{folder.name}: nothing was trained within {options.minutes:g} minutes; give more")
    write_text_atomically(record, trained)
    return True


def budget(options: Namespace) -> str:
    """What each variant is given, in words."""
    return f"{options.steps} steps" if options.steps else f"{options.minutes:g} minutes"


def train_and_enhance(variant: Variant, folder: Path, options: Namespace, stop: Stop) -> None:
    """All of a variant but its scores, into its folder; raises `AblationError`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / "config.json", json.dumps(variant.content, indent=2) + "\n")
    enhanced = folder / "enhanced"
    if train(folder, options, stop):
        shutil.rmtree(enhanced, ignore_errors=True)
    call(
        folder, stop, options.threads, math.inf, "inference.py",
        "--input_noisy_wavs_dir", options.output_dir / NOISY, "--output_dir", enhanced, "--resume",
        "--checkpoint_file", folder / "run" / "latest.safetensors", "--num_threads", options.threads,
    )  # fmt: skip
    print(f"{variant.name}: trained for {trained_steps(folder)} steps", file=sys.stderr)


def trained_steps(folder: Path) -> int:
    """How many steps a variant has taken."""
    return int(torch.load(folder / "run" / "latest.pt", map_location="cpu", weights_only=True)["global_step"])


def costs(variants: Sequence[Variant], quiet: bool) -> list[dict[str, float]]:
    """Parameters, GMACs a second of audio, and real-time factor of one segment, all timed in turns in one run."""
    figures: list[dict[str, float]] = []
    timed: list[Any] = []
    for variant in variants:
        config = parse_config(variant.content, variant.name)
        network, noisy = build(config).eval(), noisy_segment(config, "cpu")
        seconds = config.data.segment_size / config.data.sampling_rate
        # The counter knows products of matrices, not the attention that is one operation.
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
            gmacs = macs(network, noisy) / seconds / 1e9
        parameters = sum(each.numel() for each in network.parameters())
        figures.append({"parameters": parameters, "gmacs_per_second": gmacs, "real_time_factor": 1 / seconds})
        timed.append(lambda network=network, noisy=noisy: network(noisy))
    for line, seconds in zip(figures, median_seconds(timed, ROUNDS, "cpu", quiet), strict=True):
        line["real_time_factor"] *= seconds
    return figures


def compare(scores: Sequence[PairScores], base: Sequence[PairScores]) -> dict[str, Any]:
    """Means of a variant's metrics, and their paired differences to the base, as JSON can hold them."""
    tests = {
        name: paired_test(*([result.values[name] for result in results] for results in (base, scores)))
        for name in METRICS
    }
    return {
        what: {name: {key: json_number(value) for key, value in asdict(each).items()} for name, each in values.items()}
        for what, values in (("metrics", summarise(scores)), ("differences", tests))
    }


def shown(value: float | None, how: str) -> str:
    """A number as a cell shows it, or that there is none."""
    return "-" if value is None else format(value, how)


def as_markdown(figures: Mapping[str, Any]) -> str:
    """The table: a line with the base's means, then one with the differences to them for each variant."""
    labels = [metric.label for metric in METRICS.values()]
    heads = ["", "steps", "parameters", "GMAC a second", "real-time factor", *labels]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, line in figures["variants"].items():
        cells = [f"`{name}`", f"{line['steps']}", f"{line['parameters']:,}".replace(",", " ")]
        cells += [f"{line['gmacs_per_second']:.2f}", f"{line['real_time_factor']:.3f}"]
        for key, metric in METRICS.items():
            digits = min(metric.digits + 1, MAX_DIGITS)  # one more: means over many files
            other = line["differences"][key]
            if name == BASE:
                cells.append(shown(line["metrics"][key]["mean"], f".{digits}f"))
            else:
                cells.append(f"{shown(other['mean'], f'+.{digits}f')} ± {shown(other['ci95'], f'.{digits}f')}")
        lines.append(f"| {' | '.join(cells)} |")
    shows = f"means of `{BASE}`, below it differences to them with their 95 % intervals"
    return "\n".join([f"{figures['budget']} each, {figures['files']} test files: {shows}.", "", *lines]) + "\n"


def write_table(variants: Sequence[Variant], pairs: Sequence[Utterance], options: Namespace) -> tuple[str, list[str]]:
    """Score what was enhanced, and write the table; returns it, and a line for each file without a score."""
    problems: list[str] = []
    lines: dict[str, dict[str, Any]] = {}
    base: list[PairScores] | None = None
    for variant, cost in zip(variants, costs(variants, options.quiet), strict=True):
        folder = options.output_dir / variant.name
        done = [Utterance(pair.id, pair.clean, folder / "enhanced" / pair.noisy.name) for pair in pairs]
        scores = score_pairs(done, "published", available_cores(), progress=not options.quiet)
        write_report(folder, scores, "published")
        problems += [f"{variant.name}: {each.id}: {each.reason}" for each in scores if each.reason is not None]
        base = base or scores
        lines[variant.name] = {"steps": trained_steps(folder), **cost, **compare(scores, base)}
    figures = {"budget": budget(options), "train": options.train, "files": len(pairs), "variants": lines}
    text = as_markdown(figures)
    write_text_atomically(options.output_dir / "ablation.json", json.dumps(figures, indent=1, allow_nan=False) + "\n")
    write_text_atomically(options.output_dir / "ablation.md", text)
    return text, problems


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = ArgumentParser(description="Train and compare variants of a network.", epilog="-- what train.py is given")
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, metavar="OUT")
    add("--steps", type=int, help="budget of each variant; or --minutes")
    add("--minutes", type=float, help="budget of each variant")
    add("--base", type=Path, default=ROOT / "configs" / "imse.json", help="default: configs/imse.json")
    add("--ablations", type=Path, nargs="*", help="what is put over it; default: configs/ablation/*.json")
    add("--clean_wav_dir", type=Path, required=True, metavar="CLEAN", help="of the test files")
    add("--noisy_wav_dir", type=Path, required=True, metavar="NOISY", help="of the test files")
    add("--files", type=int, metavar="N", help="how many of them, evenly spaced in their order; default: all")
    add("--jobs", type=int, default=1, help="variants at a time, which share the cores; default: %(default)s")
    add("--quiet", action="store_true", help="no progress bars")
    place = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:place])
    options.train = sys.argv[place + 1 :]
    if (options.steps is None) == (options.minutes is None):
        parser.error("give a budget, --steps or --minutes")
    if any(number is not None and number <= 0 for number in (options.steps, options.minutes, options.files)):
        parser.error("--steps, --minutes, --files: must be above 0")
    if options.jobs < 1:
        parser.error("--jobs: must be 1 or more")
    if options.ablations is None:
        options.ablations = sorted((ROOT / "configs" / "ablation").glob("*.json"))
    options.threads = max(1, available_cores() // options.jobs)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments(argv)
    try:
        variants = read_variants(options.base, options.ablations)
        pairs = require_pairs(options.clean_wav_dir, options.noisy_wav_dir).pairs
        pairs = choose_files(pairs, options.files, options.output_dir / NOISY)
    except UserError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    done: list[Variant] = []
    with Stop() as stop, ThreadPoolExecutor(options.jobs) as pool:
        work = [
            pool.submit(train_and_enhance, each, options.output_dir / each.name, options, stop) for each in variants
        ]
        for variant, future in zip(variants, work, strict=True):
            try:
                future.result()
                done.append(variant)
            except AblationError as error:
                if not stop.code:
                    print(error, file=sys.stderr)
    if stop.code:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return stop.code
    if variants[0] not in done:
        print(f"{BASE}: there is nothing to compare with", file=sys.stderr)
        return SOME_FAILED
    table, problems = write_table(done, pairs, options)
    print(table, end="")
    for problem in problems:
        print(problem, file=sys.stderr)
    return SOME_FAILED if problems or len(done) < len(variants) else DONE


if __name__ == "__main__":
    run(main)
