"""Write a listening page: noisy, enhanced and clean versions of recordings with players, spectrograms and scores.

    python -m tools.report --input_noisy_wavs_dir NOISY [--input_clean_wavs_dir CLEAN]
                           --enhanced NAME=DIR [--enhanced NAME=DIR ...] --output_dir OUT

OUT/index.html opens from disk and needs no network. Versions are matched by file name. With a clean folder the page has
the scores of `cal_metrics.py`, their means and paired tests. Needs pip install -e '.[report]'. Exit codes: 0
all done; 1 some files were left out, unreadable or could not be scored (each is named); 2 invalid command line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cli import DONE, SOME_FAILED, ArgumentParser, UserError, positive, run
from data.file_lists import Utterance, audio_by_id, make_output_dir
from metrics.composite import VARIANTS
from metrics.score import PairScores, score_pairs
from utils.plots import check_plotting
from utils.processes import available_cores


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; `enhanced` becomes {name: folder}."""
    parser = ArgumentParser(
        prog="python -m tools.report",
        description="Write a page to listen to noisy, enhanced and clean versions of recordings.",
    )
    add = parser.add_argument
    add("--input_noisy_wavs_dir", type=Path, required=True, metavar="NOISY", help="folder of noisy files")
    add("--input_clean_wavs_dir", type=Path, metavar="CLEAN", help="folder of clean files: adds scores and statistics")
    add("--enhanced", action="append", default=[], metavar="NAME=DIR", help="name and folder of a system; repeatable")
    add("--output_dir", type=Path, required=True, metavar="OUT", help="folder for index.html")
    add("--composite", choices=VARIANTS, default="published", help="CSIG, CBAK and COVL as in cal_metrics.py")
    add("--jobs", type=positive, default=available_cores(), help="number of processes (default: all cores)")
    add("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(argv)
    systems: dict[str, Path] = {}
    for text in options.enhanced:
        name, equals, folder = (part.strip() for part in text.partition("="))
        if not (name and equals and folder):
            parser.error(f"argument --enhanced: expected NAME=DIR, not '{text}'")
        if name in (*systems, "noisy", "clean"):
            parser.error(f"argument --enhanced: the name '{name}' is taken; choose another")
        systems[name] = Path(folder)
    options.enhanced = systems
    check_plotting()
    make_output_dir(options.output_dir)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(argv)
    from tools.report.page import Content, Version, write_page  # late: matplotlib is slow to import

    versions = [Version("noisy", "noisy", audio_by_id(options.input_noisy_wavs_dir))]
    versions += [Version(name, "enhanced", audio_by_id(folder)) for name, folder in options.enhanced.items()]
    results: list[list[PairScores] | None] = [None] * len(versions)
    if options.input_clean_wavs_dir:
        versions.append(Version("clean", "clean", audio_by_id(options.input_clean_wavs_dir)))
    names = [version.name for version in versions]
    ids = [id_ for id_ in versions[0].files if all(id_ in version.files for version in versions)]
    left_out: list[str] = []
    for version in versions:
        for id_, path in version.files.items():
            if missing := [f"'{other.name}'" for other in versions if id_ not in other.files]:
                left_out.append(f"{path}: left out: has no partner in {' and '.join(missing)}")
    if not ids:
        quoted = ", ".join(f"'{name}'" for name in names)
        raise UserError(f"{options.input_noisy_wavs_dir}: no file name is common to all of {quoted}")
    if options.input_clean_wavs_dir:
        *scored, clean = versions
        pairs = [Utterance(id_, clean.files[id_], version.files[id_]) for version in scored for id_ in ids]
        scores = score_pairs(pairs, options.composite, options.jobs, progress=not options.quiet)
        results = [*(scores[start : start + len(ids)] for start in range(0, len(scores), len(ids))), None]

    subject = f"{len(ids)} recordings: {', '.join(names)}"
    content = Content(subject, versions, ids, results, options.composite, left_out)
    try:
        problems = write_page(options.output_dir, content, options.jobs, progress=not options.quiet)
    except OSError as error:
        problems = [f"{options.output_dir}: cannot be written: {error.strerror}"]
    failures = [f"{id_}: {reason}" for index, id_ in enumerate(ids) for reason in content.failures(index)]
    problems = [*left_out, *failures, *problems]
    for problem in problems:
        print(problem, file=sys.stderr)
    return SOME_FAILED if problems else DONE


if __name__ == "__main__":
    run(main)
