"""Write the lists for training and testing, training.txt and test.txt: a line `id|clean path|noisy path` a pair.

    python make_file_list.py [--train_clean_path DIR --train_noisy_path DIR]
                             [--test_clean_path DIR --test_noisy_path DIR] [--output_dir .]

Without folders it lists what downsampling.py has written; with those of one split given, that split alone.
Files pair by name and stand in the list sorted, with their paths as the folders were given: they are
read from the same place, or give absolute folders. Exit codes: 0 all done; 1 some files have no twin or an impossible
name, each named on standard error, the lists hold the others; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import DONE, SOME_FAILED, USAGE_ERROR, ArgumentParser, UserError, run
from data.file_lists import file_list_line, require_pairs
from utils.atomic import write_text_atomically

DATA_DIR = Path("VoiceBank+DEMAND") / "16k"
DEFAULT_FOLDERS = {
    "train": (DATA_DIR / "clean_trainset_28spk_wav", DATA_DIR / "noisy_trainset_28spk_wav"),
    "test": (DATA_DIR / "clean_testset_wav", DATA_DIR / "noisy_testset_wav"),
}
LIST_NAMES = {"train": "training.txt", "test": "test.txt"}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; `splits` of the result has the clean and noisy folder of each list to write."""
    parser = ArgumentParser(description="Write training.txt and test.txt.")
    for split, (clean, noisy) in DEFAULT_FOLDERS.items():
        parser.add_argument(f"--{split}_clean_path", type=Path, metavar="DIR", help=f"default: {clean}")
        parser.add_argument(f"--{split}_noisy_path", type=Path, metavar="DIR", help=f"default: {noisy}")
    parser.add_argument("--output_dir", type=Path, default=Path(), help="where the lists go; default: here")
    args = parser.parse_args(argv)
    given = {s: (vars(args)[f"{s}_clean_path"], vars(args)[f"{s}_noisy_path"]) for s in DEFAULT_FOLDERS}
    for split, folders in given.items():
        if (folders[0] is None) != (folders[1] is None):
            parser.error(f"--{split}_clean_path and --{split}_noisy_path belong together")
    args.splits = {split: folders for split, folders in given.items() if folders[0] is not None}
    if not args.splits:
        there = {s: folders for s, folders in DEFAULT_FOLDERS.items() if any(map(Path.is_dir, folders))}
        args.splits = there or DEFAULT_FOLDERS
    return args


def list_lines(clean_dir: Path, noisy_dir: Path) -> tuple[list[str], list[str]]:
    """The lines of one list, and what is wrong with the files that are not in it.

    Raises `UserError` where a folder cannot be used at all.
    """
    file_list_line(str(clean_dir), str(noisy_dir))
    pairing = require_pairs(clean_dir, noisy_dir)
    lines: list[str] = []
    problems = [f"{path}: no file of this name in {noisy_dir}" for path in pairing.clean_only]
    problems += [f"{path}: no file of this name in {clean_dir}" for path in pairing.noisy_only]
    for pair in pairing.pairs:
        try:
            lines.append(file_list_line(pair.id, str(pair.clean), str(pair.noisy)))
        except UserError as error:
            problems.append(str(error))
    return lines, problems


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    args = parse_arguments(argv)
    try:
        lists = {split: list_lines(*folders) for split, folders in args.splits.items()}
        for split, (lines, _) in lists.items():
            path = args.output_dir / LIST_NAMES[split]
            write_text_atomically(path, "".join(f"{line}\n" for line in lines))
            print(f"{path}: {len(lines)} pairs")
    except UserError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        print(f"{error.filename}: cannot be written: {error.strerror}", file=sys.stderr)
        return USAGE_ERROR
    problems = [problem for _, found in lists.values() for problem in found]
    for problem in problems:
        print(problem, file=sys.stderr)
    return SOME_FAILED if problems else DONE


if __name__ == "__main__":
    run(main)
