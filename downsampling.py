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
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from tqdm import tqdm

from data.audio import AudioError
from data.file_lists import FileListError, Utterance, pair_folders
from data.preparation import RATE, Resampler, convert_pair, resample_as_published

Job = tuple[Utterance, Utterance]
"""A pair of source files and the pair of files to make of it."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Resample VoiceBank+DEMAND to 16 kHz.")
    add = parser.add_argument
    add("--input_dir", type=Path, default=Path("VoiceBank+DEMAND"), help="default: %(default)s")
    add("--output_dir", type=Path, help="default: 16k in the input folder")
    for split, name in (("train", "trainset_28spk_wav"), ("test", "testset_wav")):
        names = [f"clean_{name}", f"noisy_{name}"]
        text = "their names in the input and the output folder; default: %(default)s"
        add(f"--{split}_folders", nargs=2, metavar=("CLEAN", "NOISY"), default=names, help=text)
    add("--resampler", choices=["soxr", "torchaudio"], default="soxr", help="default: %(default)s")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one a core")
    add("--quiet", action="store_true", help="no progress bar, no summary")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error(f"--jobs: must be 1 or more, not {args.jobs}")
    args.output_dir = args.output_dir or args.input_dir / "16k"
    return args


def plan(input_dir: Path, output_dir: Path, splits: list[list[str]]) -> tuple[list[Job], list[Path]]:
    """List the jobs of all splits (clean and noisy folder name of each) and the files without a twin.

    Raises `FileListError` where no split or half a split is there, or outputs would land among the inputs.
    """
    missing = [[input_dir / name for name in names if not (input_dir / name).is_dir()] for names in splits]
    message = f"no such folder: {', '.join(str(path) for paths in missing for path in paths)}"
    if all(missing) or any(len(paths) == 1 for paths in missing):
        raise FileListError(message)
    if any(missing):
        print(f"left out, {message}", file=sys.stderr)
    jobs: list[Job] = []
    unpaired: list[Path] = []
    for names in (names for names, paths in zip(splits, missing, strict=True) if not paths):
        sources, targets = ([folder / name for name in names] for folder in (input_dir, output_dir))
        for target in (path.resolve() for path in targets):
            if {source.resolve() for source in sources} & {target, *target.parents}:
                raise FileListError(f"{target}: lies among the input files; choose another --output_dir")
            target.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=target).close()  # fails once, where every file would
        pairing = pair_folders(*sources)
        unpaired += pairing.clean_only + pairing.noisy_only
        jobs += [
            (pair, Utterance(pair.id, *(folder / f"{pair.id}.wav" for folder in targets))) for pair in pairing.pairs
        ]
    return jobs, unpaired


def convert(job: Job, resampler: Resampler) -> tuple[str, str]:
    """Do one job: what became of it, and a line that says why where it failed."""
    try:
        return ("written" if convert_pair(*job, resampler) else "skipped"), ""
    except AudioError as error:
        return "failed", str(error)


def run(jobs: list[Job], resampler: Resampler, workers: int) -> Iterator[tuple[str, str]]:
    """Do all jobs, in any order; Ctrl-C is the parent's to answer."""
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        try:
            for done in as_completed([pool.submit(partial(convert, resampler=resampler), job) for job in jobs]):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def main() -> int:
    """Do what the command line says; returns the exit code."""
    args = parse_arguments()
    try:
        if args.resampler == "torchaudio":
            resample_as_published(np.zeros((1, 1), np.float32), RATE)
        jobs, unpaired = plan(args.input_dir, args.output_dir, [args.train_folders, args.test_folders])
    except (ImportError, FileListError) as error:
        return stop(str(error), 2)
    except OSError as error:
        return stop(f"{error.filename}: cannot be written: {error.strerror}", 2)
    for path in unpaired:
        print(f"{path}: no file of this name on the other side; not written", file=sys.stderr)
    counts: Counter[str] = Counter()
    try:
        results = run(jobs, args.resampler, args.jobs)
        for outcome, message in tqdm(results, total=len(jobs), unit="pair", disable=args.quiet):
            counts[outcome] += 1
            if message:
                tqdm.write(message, file=sys.stderr)
    except KeyboardInterrupt:
        return stop("interrupted; the same command goes on from here", 130)
    except BrokenProcessPool:
        return stop("a process was killed, likely for want of memory; try fewer --jobs", 1)
    if not args.quiet:
        print(
            f"{args.output_dir}: {counts['written']} pairs written, {counts['skipped']} already there, "
            f"{counts['failed']} failed, {len(unpaired)} files without a twin"
        )
    return 1 if counts["failed"] or unpaired else 0


def stop(message: str, exit_code: int) -> int:
    """Say in one line why the work ends here."""
    print(f"downsampling.py: {message}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
