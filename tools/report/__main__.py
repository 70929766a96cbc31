"""Make a page to listen to results with: noisy, enhanced and clean versions side by side, their scores and pictures.

    python -m tools.report --input_noisy_wavs_dir NOISY [--input_clean_wavs_dir CLEAN]
                             --enhanced NAME=DIR [--enhanced NAME=DIR ...] --output_dir OUT

OUT/index.html opens from disk, without a network. Versions are paired by the files' names. With clean versions it shows
the scores of `cal_metrics.py`, their distributions and paired tests. Needs pip install -e '.[report]'. Exit codes: 0
all done; 1 some files are left out, unreadable or cannot be scored (each named); 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cli import DONE, SOME_FAILED, USAGE_ERROR, ArgumentParser, UserError, run
from data.file_lists import Utterance, audio_by_id, make_output_dir
from metrics.composite import VARIANTS
from metrics.score import PairScores, score_pairs
from tools.report.versions import Version, common_ids
from utils.processes import available_cores


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = ArgumentParser(description="Make a page to listen to noisy, enhanced and clean versions of recordings.")
    add = parser.add_argument
    add("--input_noisy_wavs_dir", type=Path, required=True, metavar="NOISY", help="folder of noisy files")
    add("--input_clean_wavs_dir", type=Path, metavar="CLEAN", help="clean versions: show scores and statistics too")
    add("--enhanced", action="append", default=[], metavar="NAME=DIR", help="a system and its results; repeatable")
    add("--output_dir", type=Path, required=True, metavar="OUT", help="folder for index.html")
    add("--composite", choices=VARIANTS, default="published", help="CSIG, CBAK and COVL as in cal_metrics.py")
    add("--jobs", type=int, default=available_cores(), help="processes (default: all cores)")
    add("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"argument --jobs: at least 1, not {options.jobs}")
    systems: dict[str, Path] = {}
    for text in options.enhanced:
        name, equals, folder = (part.strip() for part in text.partition("="))
        if not (name and equals and folder):
            parser.error(f"argument --enhanced: expected NAME=DIR, not '{text}'")
        if name in (*systems, "noisy", "clean"):
            parser.error(f"argument --enhanced: '{name}' is the name of another version; choose another")
        systems[name] = Path(folder)
    options.enhanced = systems
    if find_spec("matplotlib") is None:
        parser.error("needs matplotlib: pip install -e '.[report]'")
    try:
        make_output_dir(options.output_dir)
    except UserError as error:
        parser.error(f"argument --output_dir: {error}")
    return options


def find_versions(options: argparse.Namespace) -> list[Version]:
    """All versions in the order of the page, clean at the end; raises `UserError`."""
    versions = [Version("noisy", "noisy", audio_by_id(options.input_noisy_wavs_dir))]
    versions += [Version(name, "enhanced", audio_by_id(folder)) for name, folder in options.enhanced.items()]
    if options.input_clean_wavs_dir:
        versions.append(Version("clean", "clean", audio_by_id(options.input_clean_wavs_dir)))
    return versions


def score(versions: list[Version], ids: list[str], options: argparse.Namespace) -> list[list[PairScores] | None]:
    """The scores of each version against the clean one; None for that itself, and for all where there is none."""
    others = [version for version in versions if version.role != "clean"]
    if len(others) == len(versions):
        return [None] * len(versions)
    clean = versions[-1]
    pairs = [Utterance(name, clean.files[name], version.files[name]) for version in others for name in ids]
    results = score_pairs(pairs, options.composite, options.jobs, progress=not options.quiet)
    return [*(results[start : start + len(ids)] for start in range(0, len(results), len(ids))), None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments(argv)
    from tools.report.page import Content, write_page  # late: matplotlib may be missing

    try:
        versions = find_versions(options)
        ids, left_out = common_ids(versions)
        if not ids:
            names = ", ".join(f"'{version.name}'" for version in versions)
            raise UserError(f"{options.input_noisy_wavs_dir}: no file is in all of {names} under one name")
    except UserError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    results = score(versions, ids, options)
    subject = f"{len(ids)} recordings: {', '.join(version.name for version in versions)}"
    content = Content(subject, versions, ids, results, options.composite, left_out)
    try:
        problems = write_page(options.output_dir, content, options.jobs, progress=not options.quiet)
    except OSError as error:
        problems = [f"{options.output_dir}: cannot be written: {error.strerror}"]
    failures = [f"{name}: {line}" for index, name in enumerate(ids) for line in content.failures(index)]
    problems = [*left_out, *failures, *problems]
    for problem in problems:
        print(problem, file=sys.stderr)
    return SOME_FAILED if problems else DONE


if __name__ == "__main__":
    run(main)
