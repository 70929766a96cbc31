"""Score a folder of enhanced (or noisy) files against their clean versions: the table of the papers.

    python cal_metrics.py --clean_wav_dir CLEAN --noisy_wav_dir OUT [--input_test_file test_final.txt]
                          [--composite published|loizou] [--report DIR] [--jobs N] [--quiet]

Prints mean and 95 % confidence interval of PESQ, CSIG, CBAK, COVL, SSNR, STOI, ESTOI and SI-SDR. Without a
file list the folders are paired by name. A folder given here comes before a path in the list, so that the
list of the noisy test set also serves for the enhanced one. `--report` writes scores.csv, summary.json and
index.html, a page to listen to the files (which needs pip install -e '.[report]'; with several systems and the noisy
files on one page: scripts/report.py). Exit codes: 0 all scored, 1 some files failed (each named on standard error,
the others scored), 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cli import DONE, SOME_FAILED, USAGE_ERROR, ArgumentParser, UserError, run
from data.file_lists import Utterance, read_file_list, require_pairs
from metrics.composite import VARIANTS
from metrics.score import PairScores, score_pairs
from metrics.summary import format_table, write_report
from tools.report.versions import Version
from utils.processes import available_cores


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = ArgumentParser(description="Score enhanced files against their clean versions.")
    parser.add_argument("--clean_wav_dir", type=Path, help="folder of clean files")
    parser.add_argument("--noisy_wav_dir", type=Path, help="folder of the files to score: enhanced or noisy")
    parser.add_argument("--input_test_file", type=Path, help="file list: id, id|clean or id|clean|noisy a line")
    parser.add_argument(
        "--composite",
        choices=VARIANTS,
        default="published",
        help="version of CSIG, CBAK and COVL: as published in this lineage (default), or as Loizou's",
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="folder for scores.csv, summary.json and the page")
    parser.add_argument("--jobs", type=int, default=available_cores(), help="processes (default: all cores)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"argument --jobs: at least 1, not {options.jobs}")
    if not options.input_test_file:
        for name in ("clean_wav_dir", "noisy_wav_dir"):
            if getattr(options, name) is None:
                parser.error(f"--{name} is needed (or --input_test_file with the paths of all files)")
    if options.report:
        try:
            options.report.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"argument --report: {options.report}: {error.strerror}")
    return options


def find_pairs(options: argparse.Namespace) -> tuple[list[Utterance], list[Path]]:
    """The pairs to score, and the files of either folder that have no twin; raises `UserError`."""
    if options.input_test_file:
        return read_file_list(options.input_test_file, options.clean_wav_dir, options.noisy_wav_dir), []
    pairing = require_pairs(options.clean_wav_dir, options.noisy_wav_dir)
    return pairing.pairs, pairing.clean_only + pairing.noisy_only


def write_listening_page(
    options: argparse.Namespace, pairs: list[Utterance], results: list[PairScores], left_out: list[str]
) -> list[str]:
    """The page of the scored files beside the clean ones; returns a line for each that it cannot show."""
    if find_spec("matplotlib") is None:
        print("no index.html: needs matplotlib: pip install -e '.[report]'", file=sys.stderr)
        return []
    from tools.report.page import Content, write_page  # late: scores are printed without waiting for matplotlib

    folder = options.noisy_wav_dir
    name = folder.resolve().name if folder else "scored"
    versions = [
        Version(name, "enhanced", {pair.id: pair.noisy for pair in pairs}),
        Version("clean", "clean", {pair.id: pair.clean for pair in pairs}),
    ]
    subject = f"{len(pairs)} recordings: {folder or options.input_test_file}"
    content = Content(subject, versions, [pair.id for pair in pairs], [results, None], options.composite, left_out)
    return write_page(options.report, content, options.jobs, progress=not options.quiet)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments(argv)
    try:
        pairs, unpaired = find_pairs(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    results = score_pairs(pairs, options.composite, options.jobs, progress=not options.quiet)
    left_out = [f"{path}: has no twin in the other folder" for path in unpaired]
    problems = left_out + [f"{result.id}: {result.reason}" for result in results if result.reason is not None]
    print(format_table(results, options.composite))
    if options.report:
        try:
            write_report(options.report, results, options.composite, unpaired)
            problems += write_listening_page(options, pairs, results, left_out)
        except OSError as error:
            problems.append(f"{options.report}: cannot be written: {error.strerror}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return SOME_FAILED if problems else DONE


if __name__ == "__main__":
    run(main)
