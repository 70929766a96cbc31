"""List the files of a folder, one id a line, so that cal_metrics.py scores just these, in this order.

    python create_test_list.py --test_dir_to_scan OUT [--output_file test_final.txt]
    python cal_metrics.py --clean_wav_dir CLEAN --noisy_wav_dir OUT --input_test_file test_final.txt

An id is a file's path below the folder without its extension, because the clean version may have another one.
Exit codes: 0 all done; 1 some files have impossible names, each named on standard error, the list holds the
others; 2 the command line is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cli import DONE, SOME_FAILED, USAGE_ERROR, ArgumentParser, UserError, run
from data.file_lists import audio_by_id, file_list_line
from utils.atomic import write_text_atomically


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    parser = ArgumentParser(description="List the audio files of a folder for cal_metrics.py.")
    parser.add_argument("--test_dir_to_scan", type=Path, required=True, metavar="DIR", help="enhanced files")
    parser.add_argument("--output_file", type=Path, default=Path("test_final.txt"), help="default: %(default)s")
    args = parser.parse_args(argv)
    lines: list[str] = []
    problems: list[str] = []
    try:
        for name in audio_by_id(args.test_dir_to_scan):
            try:
                lines.append(file_list_line(name))
            except UserError as error:
                problems.append(str(error))
        write_text_atomically(args.output_file, "".join(f"{line}\n" for line in lines))
    except UserError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        print(f"{args.output_file}: cannot be written: {error.strerror}", file=sys.stderr)
        return USAGE_ERROR
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{args.output_file}: {len(lines)} files")
    return SOME_FAILED if problems else DONE


if __name__ == "__main__":
    run(main)
