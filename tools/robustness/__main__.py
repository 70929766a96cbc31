"""Measure checkpoints under conditions that vary one property at a time, on any clean speech and noise.

    pip install -e '.[report]'            # matplotlib
    python -m tools.robustness --input_clean_wavs_dir CLEAN --input_noise_dir NOISE --output_dir OUT
        [--checkpoint_file CKPT …] [--held_out] [--files N] [--seconds S] [--conditions snr …]
    pip install -e '.[dnsmos]'            # speechmos
    python -m tools.robustness --input_noisy_wavs_dir NOISY --output_dir OUT      # no clean reference: DNSMOS

Conditions: snr, noise, reverb, level, clipping, band, codec, group (the first folders of CLEAN: speakers, languages).
The base is 5 dB SNR, noise files in turn, no room, −26 dBFS, no clipping, full band, no codec. `--held_out` uses only
the speakers and noises that training on these folders holds out, by the seed in the checkpoints. Writes robustness.csv
and .md to OUT, and with a reference .json and .png. `--audio_dir` also writes one mix of each condition, its reference
(`clean`) and the outputs to folders in DIR, from which tools.report makes a page to listen to. Exit codes: 0 all done,
1 some files failed (each named), 2 wrong command line.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cli import DONE, SOME_FAILED, ArgumentParser, UserError, positive, run
from config import Config
from data.audio import AudioFormat, write_audio
from data.degradations import CODECS, RATE, encode_decode
from data.file_lists import audio_by_id, evenly_spaced, make_output_dir
from enhance.enhancer import Enhancer
from enhance.graphs import GraphNetwork
from enhance.runtimes import fast_enhancer, load_network, tune_malloc
from models.checkpoint import DEFAULT_CHECKPOINT
from tools.robustness.conditions import ALL, AXES, BASE, NOT_HELD_OUT, Axis, make_axes
from tools.robustness.dnsmos import load_dnsmos, measure_recordings, summarise_dnsmos
from tools.robustness.mixes import Material, find_pool, make_mix
from tools.robustness.scoring import measure
from tools.robustness.summary import as_csv, as_json, as_markdown
from utils.atomic import atomic_open, write_text_atomically
from utils.processes import available_cores


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code. Raises `UserError`."""
    options = parse_arguments(argv)
    tune_malloc()
    torch.set_num_threads(options.num_threads)
    make_output_dir(options.output_dir)
    networks: dict[str, tuple[nn.Module, Config]] = {}
    for path in options.checkpoint_file:
        network, config = load_network(path, options.num_threads)
        name = path.name.removesuffix(".safetensors")
        if config.data.sampling_rate != RATE:
            raise UserError(f"{path}: for {config.data.sampling_rate} Hz; only checkpoints for {RATE} Hz are measured")
        if name in networks or name in ("noisy", "clean"):
            raise UserError(f"{path}: the name {name} is taken; rename the file")
        networks[name] = network, config
    seeds = {config.train.seed for _, config in networks.values()}
    if options.held_out and len(seeds) > 1:
        raise UserError("--held_out: the checkpoints were trained with different seeds; measure them one by one")
    if options.input_noisy_wavs_dir:
        files = audio_by_id(options.input_noisy_wavs_dir)
        chosen = {id_: files[id_] for id_ in evenly_spaced(list(files), options.files)}
        enhancers = make_enhancers(options, networks)
        scores, problems = measure_recordings(chosen, enhancers, load_dnsmos(), options.quiet)
        if scores:
            names = list(enhancers)
            write_results(options.output_dir, as_csv([({}, scores)], names), summarise_dnsmos(scores, names))
    else:
        problems = measure_mixes(options, networks, seeds.pop() if options.held_out else None)
    for problem in problems:
        print(problem, file=sys.stderr)
    return SOME_FAILED if problems else DONE


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Parse and check the command line; raise `UserError`."""
    parser = ArgumentParser(
        prog="python -m tools.robustness",
        description="Measure checkpoints under conditions that vary one property at a time.",
    )
    add = parser.add_argument
    add("--input_clean_wavs_dir", type=Path, metavar="CLEAN", help="clean speech; its first folders are groups")
    add("--input_noise_dir", type=Path, metavar="NOISE", help="noise; its first folders are categories")
    add("--input_noisy_wavs_dir", type=Path, metavar="NOISY", help="recordings to score by DNSMOS, instead of both")
    add("--output_dir", type=Path, required=True, metavar="OUT")
    add("--checkpoint_file", type=Path, nargs="+", default=[DEFAULT_CHECKPOINT], metavar="CKPT")
    add("--held_out", action="store_true", help="use only what training on these folders holds out")
    add("--files", type=positive, default=16, metavar="N", help="utterances per condition, evenly spaced; default: 16")
    add("--seconds", type=float, default=5.0, metavar="S", help="longest crop of an utterance; default: 5")
    add("--conditions", nargs="+", choices=AXES, default=AXES, metavar="AXIS", help=f"{', '.join(AXES)}; default: all")
    add("--audio_dir", type=Path, metavar="DIR", help="write one mix of each condition to listen to, see tools.report")
    add("--seed", type=int, default=0, help="of crops, noises and rooms; default: 0")
    add("--device", help="cpu or cuda; default: cuda if available")
    threads = torch.get_num_threads()
    add("--num_threads", type=positive, default=threads, metavar="N", help="CPU threads; default: all cores")
    add("--jobs", type=positive, default=available_cores(), metavar="N", help="scoring processes; default: all cores")
    add("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(argv)
    mixed = options.input_clean_wavs_dir, options.input_noise_dir
    if (options.input_noisy_wavs_dir is None and None in mixed) or (options.input_noisy_wavs_dir and any(mixed)):
        parser.error("give --input_clean_wavs_dir and --input_noise_dir, or --input_noisy_wavs_dir alone")
    if options.audio_dir and options.input_noisy_wavs_dir:
        parser.error("--audio_dir: not with --input_noisy_wavs_dir")
    package, extra = ("speechmos", "dnsmos") if options.input_noisy_wavs_dir else ("matplotlib", "report")
    if find_spec(package) is None:
        parser.error(f"needs {package}: pip install -e '.[{extra}]'")
    if not 1 <= options.seconds <= 40:
        parser.error("--seconds: must be from 1 to 40")
    if options.seed < 0:
        parser.error("--seed: must not be negative")
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    parser.check_device(options.device)
    return options


def make_enhancers(options: Namespace, networks: Mapping[str, tuple[nn.Module, Config]]) -> dict[str, Enhancer]:
    """Prepare networks for the device; this takes seconds, so call it after all input has been checked."""
    enhancers: dict[str, Enhancer] = {}
    for name, (network, config) in networks.items():
        device = "cpu" if isinstance(network, GraphNetwork) else options.device
        backend = "auto" if device == "cpu" else "torch"
        enhancers[name] = fast_enhancer(network, config, device, backend=backend, threads=options.num_threads)
    return enhancers


def measure_mixes(
    options: Namespace, networks: Mapping[str, tuple[nn.Module, Config]], held_out_seed: int | None
) -> list[str]:
    """Measure mixes of speech and noise and write the results; return a message for each file that failed.

    Raises `UserError` and `OSError`.
    """
    pool = find_pool(options.input_clean_wavs_dir, options.input_noise_dir, held_out_seed)
    material = Material(pool, options.files, options.seconds, options.seed)
    if not material.utterances[ALL]:
        raise UserError("\n".join(material.problems.values()))
    material.read_noises()
    groups: dict[str, str] = {}
    if "group" in options.conditions:
        material.add_groups()
        for group, ids in material.utterances.items():
            if group != ALL and ids:
                label = group + (NOT_HELD_OUT if group in pool.seen else "")
                groups[label] = ALL if ids == material.utterances[ALL] else group
    if "codec" in options.conditions:
        for codec in CODECS.values():
            encode_decode(np.zeros(RATE), codec)  # reports a codec that is missing before the long computation
    axes = make_axes(options.conditions, material.noises, list(CODECS), groups)
    for name in options.conditions:
        if name not in {axis.name for axis in axes}:
            print(f"{name}: left out: only one", file=sys.stderr)
    if not axes:
        raise UserError(f"--conditions {' '.join(options.conditions)}: there is nothing to compare")

    enhancers = make_enhancers(options, networks)
    if options.audio_dir:
        write_mixes(options.audio_dir, material, axes, enhancers)

    files = len(material.utterances[ALL])
    settings = {
        "files": files,
        "seconds": options.seconds,
        "seed": options.seed,
        "held_out": None if held_out_seed is None else [held_out_seed],
        "base": asdict(BASE),
        "checkpoints": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in options.checkpoint_file
        },
        "noise_files": len(pool.noise),
    }
    results = measure(
        {each: len(material.utterances[each.group]) for axis in axes for each in axis.conditions.values()},
        partial(make_mix, material),
        enhancers,
        options.jobs,
        options.quiet,
    )
    note = (
        f"{files} utterances per condition, at most {options.seconds:g} s each, {len(pool.noise)} noise files; "
        f"{'not only ' if held_out_seed is None else ''}held out from training; seed {options.seed}. "
        "Base: 5 dB SNR, noise files in turn, no room, −26 dBFS (RMS of the mix), no clipping, full band, no codec."
    )
    if pool.seen.intersection(material.utterances):
        note += " Groups that are not held out were seen by checkpoints trained on these folders."
    from tools.robustness.chart import draw  # late: matplotlib is an extra

    names = list(enhancers)
    rows = [
        ({"axis": axis.name, "condition": label}, results[condition])
        for axis in axes
        for label, condition in axis.conditions.items()
    ]
    content = json.dumps(as_json(axes, results, names, settings), ensure_ascii=False).replace('}, "', '},\n"')
    text = as_markdown(axes, results, names, note)
    write_results(options.output_dir, as_csv(rows, names), text)
    write_text_atomically(options.output_dir / "robustness.json", content + "\n")
    with atomic_open(options.output_dir / "robustness.png") as stream:
        stream.write(draw(axes, results, names))
    reasons = [f"{row.id}: {row.reason}" for scores in results.values() for row in scores if row.reason]
    return [*material.problems.values(), *dict.fromkeys(reasons)]


def write_mixes(folder: Path, material: Material, axes: Sequence[Axis], enhancers: Mapping[str, Enhancer]) -> None:
    """Write a mix of each condition: to `clean`, `noisy` and a folder for each checkpoint. Raises `UserError`."""
    conditions = [(f"{axis.name} {label}", condition) for axis in axes for label, condition in axis.conditions.items()]
    for number, (label, condition) in enumerate(conditions):
        file = re.sub(r"[^\w.-]+", "_", label) + ".wav"
        mix = make_mix(material, condition, number % len(material.utterances[condition.group]))
        versions = {"clean": mix.reference, "noisy": mix.noisy}
        versions |= {name: each.enhance_signal(mix.noisy.astype(np.float32)) for name, each in enhancers.items()}
        for name, samples in versions.items():
            make_output_dir(folder / name)
            write_audio(folder / name / file, samples[:, None].astype(np.float32), AudioFormat(RATE, 1, "WAV", "FLOAT"))


def write_results(folder: Path, csv_text: str, markdown: str) -> None:
    """Write the scores and the tables, and the tables to standard output too."""
    write_text_atomically(folder / "robustness.csv", csv_text)
    write_text_atomically(folder / "robustness.md", markdown)
    print(markdown, end="")


if __name__ == "__main__":
    run(main)
