"""What breaks first: checkpoints under conditions that vary one thing at a time, on any clean speech and noise.

    pip install -e '.[report]'            # matplotlib
    python -m tools.robustness --input_clean_wavs_dir CLEAN --input_noise_dir NOISE --output_dir OUT
                                 [--checkpoint_file CKPT …] [--held_out] [--files N] [--seconds S] [--conditions snr …]
    pip install -e '.[dnsmos]'            # speechmos
    python -m tools.robustness --input_noisy_wavs_dir NOISY --output_dir OUT      # no clean version: DNSMOS

Axes: snr, noise, reverb, level, clipping, band, codec, group (the first folders of CLEAN: speakers, languages). The
base is 5 dB, noise files in turn, no room, −26 dBFS, not clipped, full band, not coded; the same crops and noises for
all. `--held_out` takes only the speakers and noises that training on these folders holds out, by the seed in the
checkpoints. OUT gets robustness.csv, .json, .md and .png; `parts` in it is what is done, for a run that was ended.
Exit codes: 0 all done, 1 some files failed (each named), 2 command line wrong.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from cli import DONE, SOME_FAILED, USAGE_ERROR, ArgumentParser, UserError, run
from data.file_lists import make_output_dir
from enhance.enhancer import Enhancer
from enhance.files import Load
from enhance.runtimes import fast_enhancer, keep_freed_memory, load_network
from models.checkpoint import DEFAULT_CHECKPOINT
from tools.robustness.degradations import RATE
from tools.robustness.plan import AXES
from tools.robustness.run import Settings, with_clean, without_clean
from utils.processes import available_cores


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = ArgumentParser(description="Measure checkpoints under conditions that vary one thing at a time.")
    add = parser.add_argument
    add("--input_clean_wavs_dir", type=Path, metavar="CLEAN", help="clean speech; its first folders are groups")
    add("--input_noise_dir", type=Path, metavar="NOISE", help="noise; its first folders are kinds of noise")
    add("--input_noisy_wavs_dir", type=Path, metavar="NOISY", help="instead of both: recordings, scored by DNSMOS")
    add("--output_dir", type=Path, required=True, metavar="OUT")
    add("--checkpoint_file", type=Path, nargs="+", default=[DEFAULT_CHECKPOINT], metavar="CKPT")
    add("--held_out", action="store_true", help="only what training on these folders holds out")
    add("--files", type=int, default=16, metavar="N", help="utterances a condition, evenly spaced; default: 16")
    add("--seconds", type=float, default=5.0, metavar="S", help="of each utterance, at most; default: 5")
    add("--conditions", nargs="+", choices=AXES, default=AXES, metavar="AXIS", help=f"of {', '.join(AXES)}; all")
    add("--seed", type=int, default=0, help="of crops, noises and rooms; default: 0")
    add("--device", help="cpu or cuda; default: cuda where there is one")
    add("--num_threads", type=int, metavar="N", help="CPU threads of the network; default: all cores")
    add("--jobs", type=int, metavar="N", help="processes that score beside it; default: all cores")
    add("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(argv)
    mixed = options.input_clean_wavs_dir, options.input_noise_dir
    if (options.input_noisy_wavs_dir is None and None in mixed) or (options.input_noisy_wavs_dir and any(mixed)):
        parser.error("give --input_clean_wavs_dir and --input_noise_dir, or --input_noisy_wavs_dir")
    package, extra = ("speechmos", "dnsmos") if options.input_noisy_wavs_dir else ("matplotlib", "report")
    if find_spec(package) is None:
        parser.error(f"needs {package}: pip install -e '.[{extra}]'")
    options.num_threads = torch.get_num_threads() if options.num_threads is None else options.num_threads
    options.jobs = available_cores() if options.jobs is None else options.jobs
    if min(options.files, options.num_threads, options.jobs) < 1 or not 1 <= options.seconds <= 40:
        parser.error("--files, --num_threads, --jobs: must be 1 or more; --seconds: from 1 to 40")
    if options.seed < 0:
        parser.error("--seed: must not be negative")
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    parser.check_device(options.device)
    return options


def load_all(options: Namespace) -> tuple[dict[str, Enhancer], int | None]:
    """The checkpoints by name, as inference.py uses them; and with `--held_out` the seed that all were trained with.

    Raises `UserError`.
    """
    torch.set_num_threads(options.num_threads)
    load = Load(1, options.num_threads)
    enhancers: dict[str, Enhancer] = {}
    seeds: set[int] = set()
    for path in options.checkpoint_file:
        network, config = load_network(path, "torch", options.num_threads)
        if (rate := config.data.sampling_rate) != RATE:
            raise UserError(f"{path}: made for {rate} Hz; only those for {RATE} Hz are measured")
        if (name := path.name.removesuffix(".safetensors")) in enhancers:
            raise UserError(f"{path}: another checkpoint is called {name} too")
        enhancers[name] = fast_enhancer(network, config, options.device, "overlap", load, False, False)
        seeds.add(config.train.seed)
    if options.held_out and len(seeds) > 1:
        raise UserError("--held_out: the checkpoints were trained with different seeds; measure them one by one")
    return enhancers, seeds.pop() if options.held_out else None


def measure(options: Namespace) -> list[str]:
    """Do what the command line says; returns a line for each file that failed.

    Raises `UserError`, `UserError`, `UserError` and `ImportError`.
    """
    make_output_dir(options.output_dir)
    enhancers, held_out_seed = load_all(options)
    if options.input_noisy_wavs_dir:
        return without_clean(options.input_noisy_wavs_dir, options.output_dir, options.files, enhancers, options.quiet)
    settings = Settings(
        speech_dir=options.input_clean_wavs_dir,
        noise_dir=options.input_noise_dir,
        output_dir=options.output_dir,
        checkpoints=options.checkpoint_file,
        held_out_seed=held_out_seed,
        files=options.files,
        seconds=options.seconds,
        conditions=options.conditions,
        seed=options.seed,
        jobs=options.jobs,
        quiet=options.quiet,
    )
    return with_clean(settings, enhancers)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments(argv)
    keep_freed_memory()
    try:
        problems = measure(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    except ImportError as error:
        print(f"speechmos cannot be used: {error}; pip install -e '.[dnsmos]'", file=sys.stderr)
        return USAGE_ERROR
    for problem in problems:
        print(problem, file=sys.stderr)
    return SOME_FAILED if problems else DONE


if __name__ == "__main__":
    run(main)
