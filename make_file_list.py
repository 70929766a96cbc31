"""Write the file lists training.txt and test.txt, with a line `id|clean path|noisy path` per pair.

    python make_file_list.py [--train_clean_path DIR --train_noisy_path DIR]
                             [--test_clean_path DIR --test_noisy_path DIR] [--output_dir .]

Without folders it lists the output of downsampling.py; with the folders of one split, that split only. Files are paired
by name and sorted. Relative folders give relative paths: use such a list from the same working directory.

Exit codes: 0 all done; 1 some files are unpaired or have names that a list cannot hold (each named on standard error,
the others listed); 2 wrong command line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cli import DONE, SOME_FAILED, ArgumentParser, run
from data.file_lists import file_list_line, require_pairs, write_file_list

DATA_DIR = Path("VoiceBank+DEMAND") / "16k"
DEFAULT_FOLDERS = {
    "train": (DATA_DIR / "clean_trainset_28spk_wav", DATA_DIR / "noisy_trainset_28spk_wav"),
    "test": (DATA_DIR / "clean_testset_wav", DATA_DIR / "noisy_testset_wav"),
}
LIST_NAMES = {"train": "training.txt", "test": "test.txt"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = ArgumentParser(description="Write training.txt and test.txt.")
    for split, (clean, noisy) in DEFAULT_FOLDERS.items():
        parser.add_argument(f"--{split}_clean_path", type=Path, metavar="DIR", help=f"default: {clean}")
        parser.add_argument(f"--{split}_noisy_path", type=Path, metavar="DIR", help=f"default: {noisy}")
    parser.add_argument("--output_dir", type=Path, default=Path(), help="folder for the lists; default: here")
    options = vars(parser.parse_args(argv))

    folders: dict[str, tuple[Path, Path]] = {}
    for split in DEFAULT_FOLDERS:
        clean, noisy = options[f"{split}_clean_path"], options[f"{split}_noisy_path"]
        if (clean is None) != (noisy is None):
            parser.error(f"--{split}_clean_path and --{split}_noisy_path must be given together")
        if clean is not None:
            folders[split] = clean, noisy
    if not folders:
        present = {split: both for split, both in DEFAULT_FOLDERS.items() if any(map(Path.is_dir, both))}
        folders = present or DEFAULT_FOLDERS
    for clean, noisy in folders.values():
        file_list_line(str(clean), str(noisy))  # raises UserError for folder names that a list cannot hold

    problems: list[str] = []
    pairings = {split: require_pairs(*both) for split, both in folders.items()}
    for split, pairing in pairings.items():
        path = options["output_dir"] / LIST_NAMES[split]
        rows = [(pair.id, str(pair.clean), str(pair.noisy)) for pair in pairing.pairs]
        written, rejected = write_file_list(path, rows)
        print(f"{path}: {written} pairs")
        clean, noisy = folders[split]
        problems += [f"{path}: no file of this name in {noisy}" for path in pairing.clean_only]
        problems += [f"{path}: no file of this name in {clean}" for path in pairing.noisy_only]
        problems += rejected
    for problem in problems:
        print(problem, file=sys.stderr)
    return SOME_FAILED if problems else DONE


if __name__ == "__main__":
    run(main)
