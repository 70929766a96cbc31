"""Train variants of IMSE with the same data, seed and number of steps, and compare them on the same files.

    python -m tools.ablation --output_dir OUT --steps N --clean_wav_dir CLEAN --noisy_wav_dir NOISY [--files 100]
        [--base configs/imse.json] [--variants configs/ablation/*.json] -- --input_training_file training.txt …
    python -m tools.ablation {train,inference} …         # train.py or inference.py, for a single variant

Each variant is the base configuration with one file of `configs/ablation/` applied. Arguments after `--` go to train.py
for all variants. `other_seed` is the base with another seed: what chance changes.

Each variant is trained in OUT/NAME/run, from its last state if it has one, and its last network enhances the test
files into OUT/NAME/enhanced. OUT/ablation.md and .json hold the means of the base and the paired differences to it with
95 % confidence intervals, which cover the choice of files, not the choice of the seed. Exit codes: 0 all done, 1 a
variant failed (named), 2 wrong command line.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import inference
import train
from cli import DONE, SOME_FAILED, USAGE_ERROR, ArgumentParser, UserError, call, positive, run
from config import load_config, load_json
from data.file_lists import evenly_spaced, require_pairs
from enhance.files import enhance_files
from enhance.runtimes import fast_enhancer, load_network
from metrics.score import METRICS, PairScores, score_pairs
from metrics.stats import paired_test
from metrics.summary import json_number, summarise, write_report
from utils.atomic import write_text_atomically
from utils.processes import available_cores

ROOT = Path(__file__).resolve().parents[2]
BASE = "base"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code. Raises `UserError`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("train", "inference"):
        return {"train": train, "inference": inference}[arguments[0]].main(arguments[1:])
    options = parse_arguments(arguments)
    pairs = require_pairs(options.clean_wav_dir, options.noisy_wav_dir).pairs
    pairs = evenly_spaced(pairs, options.files or len(pairs))
    configs = write_configs(options)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    problems: list[str] = []
    rows: dict[str, dict[str, Any]] = {}
    base: list[PairScores] = []
    for name, path in configs.items():
        folder = path.parent
        run_dir = folder / "run"
        training = ["--config", path, "--checkpoint_path", run_dir, "--max_steps", options.steps, *options.train]
        if (run_dir / "latest.pt").exists():
            training = [*without_start(training), "--resume"]
        training += ["--quiet"] * options.quiet
        print(f"{name}: training", file=sys.stderr)
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the table
            code = call(train.main, [str(each) for each in training])
        if code not in (DONE, SOME_FAILED, USAGE_ERROR):
            return code  # interrupted
        if code != DONE:
            problems.append(f"{name}: train.py ended with exit code {code}")
            if name == BASE:
                break
            continue
        shutil.rmtree(folder / "enhanced", ignore_errors=True)
        enhanced = [replace(pair, noisy=folder / "enhanced" / f"{pair.id}{pair.noisy.suffix}") for pair in pairs]
        network, config = load_network(run_dir / "latest.safetensors")
        parameters = sum(each.numel() for each in network.parameters())
        jobs = [(pair.noisy, target.noisy) for pair, target in zip(pairs, enhanced, strict=True)]
        enhancer = fast_enhancer(network, config, device)
        enhance_files(jobs, enhancer, enhancer.default_protocol, options.quiet, report=False)
        scores = score_pairs(enhanced, "published", available_cores(), progress=not options.quiet)
        write_report(folder, scores, "published")
        problems += [f"{name}: {pair.id}: {pair.reason}" for pair in scores if pair.reason is not None]
        base = base or scores
        rows[name] = {"parameters": parameters, "metrics": {}, "differences": {}}
        for metric, mean in summarise(scores).items():
            test = paired_test([pair.values[metric] for pair in base], [pair.values[metric] for pair in scores])
            for kind, result in (("metrics", mean), ("differences", test)):
                rows[name][kind][metric] = {key: json_number(value) for key, value in asdict(result).items()}
    if rows:
        figures = {"steps": options.steps, "train": options.train, "files": len(pairs), "variants": rows}
        text = as_markdown(figures)
        content = json.dumps(figures, indent=1, allow_nan=False) + "\n"
        write_text_atomically(options.output_dir / "ablation.json", content)
        write_text_atomically(options.output_dir / "ablation.md", text)
        print(text, end="")
    for problem in problems:
        print(problem, file=sys.stderr)
    return SOME_FAILED if problems else DONE


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """Parse and check the command line; raise `UserError`."""
    parser = ArgumentParser(
        prog="python -m tools.ablation",
        description="Train and compare variants of IMSE.",
        epilog="Arguments after -- go to train.py.",
    )
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, metavar="OUT")
    add("--steps", type=positive, required=True, help="training steps of each variant")
    add("--base", type=Path, default=ROOT / "configs/imse.json", help="default: configs/imse.json")
    add("--variants", type=Path, nargs="*", help="changes to the base; default: configs/ablation/*.json")
    add("--clean_wav_dir", type=Path, required=True, metavar="CLEAN", help="clean test files")
    add("--noisy_wav_dir", type=Path, required=True, metavar="NOISY", help="noisy test files")
    add("--files", type=positive, metavar="N", help="number of test files, evenly spaced; default: all")
    add("--quiet", action="store_true", help="no progress bars")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    options.train = list(arguments[end + 1 :])
    if options.variants is None:
        options.variants = sorted((ROOT / "configs/ablation").glob("*.json"))
    return options


def without_start(arguments: Sequence[Any]) -> list[str]:
    """Return the arguments of train.py without those that cannot be given with --resume."""
    start = ArgumentParser(add_help=False, allow_abbrev=False)
    start.add_argument("--fine_tune")
    start.add_argument("--teacher")
    return start.parse_known_args([str(each) for each in arguments])[1]


def write_configs(options: Namespace) -> dict[str, Path]:
    """Write OUT/NAME/config.json for the base and each variant and check them; return the paths by name.

    Raises `UserError`.
    """
    contents: dict[str, Any] = {BASE: {}}
    for path in options.variants:
        if path.stem in contents:
            raise UserError(f"{path}: the name {path.stem} is taken; rename the file")
        contents[path.stem] = load_json(path)
        if not isinstance(contents[path.stem], dict):
            raise UserError(f"{path}: should be a JSON object with sections of a configuration")
    paths: dict[str, Path] = {}
    for name, content in contents.items():
        paths[name] = options.output_dir / name / "config.json"
        content = {**content, "base": str(options.base.resolve())}
        write_text_atomically(paths[name], json.dumps(content, indent=2) + "\n")
        load_config(paths[name])
    return paths


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Return the table: means of the base in its first row, differences to them in the others."""
    heads = ["", "parameters", *(metric.label for metric in METRICS.values())]
    lines = [
        f"{figures['steps']} steps each, {figures['files']} test files: means of `{BASE}`, and differences to them "
        "with 95 % confidence intervals.",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for name, row in figures["variants"].items():
        cells = [f"`{name}`", f"{row['parameters']:,}".replace(",", " ")]
        for key, metric in METRICS.items():
            digits = min(metric.digits + 1, 3)  # one more than for a file: these are means
            mean, other = row["metrics"][key]["mean"], row["differences"][key]
            if name == BASE:
                cells.append("-" if mean is None else f"{mean:.{digits}f}")
            elif other["mean"] is None:
                cells.append("-")
            else:
                interval = "" if other["ci95"] is None else f" ± {other['ci95']:.{digits}f}"
                cells.append(f"{other['mean']:+.{digits}f}{interval}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run(main)
