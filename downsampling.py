"""Prepare VoiceBank+DEMAND: recordings at 48 kHz become mono 16-bit WAV at 16 kHz.

    python downsampling.py [--input_dir VoiceBank+DEMAND] [--output_dir VoiceBank+DEMAND/16k] [--jobs N]

The input folder holds the release as it is unpacked from Edinburgh DataShare (`clean_trainset_28spk_wav` and
so on); the output folder gets folders of the same names, which make_file_list.py takes by default. Clean and
noisy files belong together by name. A set that is at 16 kHz already is only rewritten, sample for sample.
A rerun leaves outputs of the right length as they are, so that it goes on where the last one ended.
Exit codes: 0 all done; 1 some files failed or have no twin, each named on standard error, the others done;
2 the command line is wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from tqdm import tqdm

from cli import DONE, SOME_FAILED, USAGE_ERROR, ArgumentParser, UserError, run
from data.audio import AudioError
from data.file_lists import Utterance, pair_folders
from data.voicebank import RATE, Resampler, convert_pair, resample_as_published
from utils.processes import available_cores, run_in_processes

Job = tuple[Utterance, Utterance]
"""A pair of source files and the pair of files to make of it."""


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description="Resample VoiceBank+DEMAND to 16 kHz.")
    add = parser.add_argument
    add("--input_dir", type=Path, default=Path("VoiceBank+DEMAND"), help="default: %(default)s")
    add("--output_dir", type=Path, help="default: 16k in the input folder")
    for split, name in (("train", "trainset_28spk_wav"), ("test", "testset_wav")):
        names = [f"clean_{name}", f"noisy_{name}"]
        text = "their names in the input and the output folder; default: %(default)s"
        add(f"--{split}_folders", nargs=2, metavar=("CLEAN", "NOISY"), default=names, help=text)
    add("--resampler", choices=["soxr", "torchaudio"], default="soxr", help="default: %(default)s")
    add("--jobs", type=int, default=available_cores(), help="processes; default: one a core")
    add("--quiet", action="store_true", help="no progress bar, no summary")
    args = parser.parse_args(argv)
    if args.jobs < 1:
        parser.error(f"--jobs: must be 1 or more, not {args.jobs}")
    args.output_dir = args.output_dir or args.input_dir / "16k"
    return args


def plan(input_dir: Path, output_dir: Path, splits: list[list[str]]) -> tuple[list[Job], list[Path]]:
    """List the jobs of all splits (clean and noisy folder name of each) and the files without a twin.

    Raises `UserError` where no split or half a split is there, or outputs would land among the inputs.
    """
    missing = [[input_dir / name for name in names if not (input_dir / name).is_dir()] for names in splits]
    message = f"no such folder: {', '.join(str(path) for paths in missing for path in paths)}"
    if all(missing) or any(len(paths) == 1 for paths in missing):
        raise UserError(message)
    if any(missing):
        print(f"left out, {message}", file=sys.stderr)
    jobs: list[Job] = []
    unpaired: list[Path] = []
    for names in (names for names, paths in zip(splits, missing, strict=True) if not paths):
        sources, targets = ([folder / name for name in names] for folder in (input_dir, output_dir))
        for target in (path.resolve() for path in targets):
            if {source.resolve() for source in sources} & {target, *target.parents}:
                raise UserError(f"{target}: lies among the input files; choose another --output_dir")
            target.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=target).close()  # fails once, where every file would
        pairing = pair_folders(*sources)
        unpaired += pairing.clean_only + pairing.noisy_only
        jobs += [
            (pair, Utterance(pair.id, *(folder / f"{pair.id}.wav" for folder in targets))) for pair in pairing.pairs
        ]
    return jobs, unpaired


def convert_job(job: Job, resampler: Resampler) -> bool:
    """Do one job; False where it was done before. Raises `AudioError`."""
    return convert_pair(*job, resampler)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    args = parse_arguments(argv)
    try:
        if args.resampler == "torchaudio":
            resample_as_published(np.zeros((1, 1), np.float32), RATE)
        jobs, unpaired = plan(args.input_dir, args.output_dir, [args.train_folders, args.test_folders])
    except (ImportError, UserError) as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        print(f"{error.filename}: cannot be written: {error.strerror}", file=sys.stderr)
        return USAGE_ERROR
    problems: list[str] = []
    task = partial(convert_job, resampler=args.resampler)
    written = skipped = 0
    for index, result in tqdm(
        run_in_processes(task, jobs, args.jobs), total=len(jobs), unit="pair", disable=args.quiet
    ):
        if isinstance(result, AudioError):
            problems.append(str(result))
        elif isinstance(result, BaseException):
            problems.append(f"{jobs[index][0].noisy}: {result}")
        else:
            written, skipped = written + result, skipped + (not result)
    lonely = [f"{path}: no file of this name on the other side; not written" for path in unpaired]
    for problem in problems + lonely:
        print(problem, file=sys.stderr)
    if not args.quiet:
        print(
            f"{args.output_dir}: {written} pairs written, {skipped} already there, "
            f"{len(problems)} failed, {len(unpaired)} files without a twin"
        )
    return SOME_FAILED if problems or unpaired else DONE


if __name__ == "__main__":
    run(main)
