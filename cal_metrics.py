"""Score a folder of enhanced (or noisy) files against their clean versions.

    python cal_metrics.py --clean_wav_dir CLEAN --noisy_wav_dir OUT [--input_test_file test_final.txt]
                          [--composite published|loizou] [--report DIR] [--jobs N] [--quiet]

Prints mean and 95 % confidence interval of PESQ, CSIG, CBAK, COVL, SSNR, STOI, ESTOI and SI-SDR. Without a file list
the folders are paired by name. A folder given here has precedence over the paths in the list, so that the list of the
noisy test set also serves for the enhanced one. `--report` writes scores.csv, summary.json and the listening page
index.html, which needs pip install -e '.[report]'. `python -m tools.report` compares several systems on one page.

Exit codes: 0 all files scored; 1 some files failed or are unpaired (reported on standard error, the others scored); 2
wrong command line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cli import DONE, SOME_FAILED, ArgumentParser, UserError, positive, run
from data.file_lists import make_output_dir, read_file_list, require_pairs
from metrics.composite import VARIANTS
from metrics.score import score_pairs
from metrics.summary import format_table, write_report
from utils.plots import check_plotting
from utils.processes import available_cores


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = ArgumentParser(description="Score enhanced files against their clean versions.")
    add = parser.add_argument
    add("--clean_wav_dir", type=Path, help="folder of clean files")
    add("--noisy_wav_dir", type=Path, help="folder of the files to score: enhanced or noisy")
    add("--input_test_file", type=Path, help="file list with lines id, id|clean or id|clean|noisy")
    add("--composite", choices=VARIANTS, default="published", help="variant of CSIG, CBAK, COVL; default: %(default)s")
    add("--report", type=Path, metavar="DIR", help="folder for scores.csv, summary.json and the listening page")
    add("--jobs", type=positive, default=available_cores(), help="processes; default: one per core")
    add("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(argv)

    unpaired: dict[Path, list[Path]] = {}
    if options.input_test_file:
        pairs = read_file_list(options.input_test_file, options.clean_wav_dir, options.noisy_wav_dir)
    elif options.clean_wav_dir and options.noisy_wav_dir:
        pairing = require_pairs(options.clean_wav_dir, options.noisy_wav_dir)
        pairs = pairing.pairs
        unpaired = {options.clean_wav_dir: pairing.clean_only, options.noisy_wav_dir: pairing.noisy_only}
    else:
        name = "noisy_wav_dir" if options.clean_wav_dir else "clean_wav_dir"
        parser.error(f"--{name} is needed (or --input_test_file with the paths of all files)")
    if options.report:
        make_output_dir(options.report)

    results = score_pairs(pairs, options.composite, options.jobs, progress=not options.quiet)
    print(format_table(results, options.composite))
    left_out = [
        f"{folder}: {len(files)} without a file of the same name in the other folder: "
        + ", ".join(str(path.relative_to(folder)) for path in files[:3])
        + (", …" if len(files) > 3 else "")
        for folder, files in unpaired.items()
        if files
    ]
    problems = left_out + [f"{result.id}: {result.reason}" for result in results if result.reason is not None]
    for problem in problems:
        print(problem, file=sys.stderr)

    if options.report:
        try:
            all_unpaired = [path for files in unpaired.values() for path in files]
            write_report(options.report, results, options.composite, all_unpaired)
            try:
                check_plotting()
            except UserError as error:
                print(f"no index.html: {error}", file=sys.stderr)
            else:
                from tools.report.page import Content, Version, write_page  # late: scores do not wait for matplotlib

                folder = options.noisy_wav_dir
                name = folder.resolve().name if folder else ""
                versions = [
                    Version("scored" if name in ("", "clean") else name, "enhanced", {p.id: p.noisy for p in pairs}),
                    Version("clean", "clean", {pair.id: pair.clean for pair in pairs}),
                ]
                title = f"{len(pairs)} recordings: {folder or options.input_test_file}"
                ids = [pair.id for pair in pairs]
                content = Content(title, versions, ids, [results, None], options.composite, left_out)
                for problem in write_page(options.report, content, options.jobs, progress=not options.quiet):
                    print(problem, file=sys.stderr)
                    problems.append(problem)
        except OSError as error:
            raise UserError(f"{options.report}: cannot be written: {error.strerror}", SOME_FAILED) from error
    return SOME_FAILED if problems else DONE


if __name__ == "__main__":
    run(main)
