"""List the files of a folder, one id per line, for `cal_metrics.py --input_test_file`.

    python create_test_list.py --test_dir_to_scan OUT [--output_file test_final.txt]
    python cal_metrics.py --clean_wav_dir CLEAN --noisy_wav_dir OUT --input_test_file test_final.txt

An id is the path below the folder without extension, since the clean version may have another extension.

Exit codes: 0 all done; 1 some names cannot stand in a list (each named on standard error, the others listed); 2 wrong
command line.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cli import DONE, SOME_FAILED, ArgumentParser, run
from data.file_lists import audio_by_id, write_file_list


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = ArgumentParser(description="List the audio files of a folder for cal_metrics.py.")
    parser.add_argument("--test_dir_to_scan", type=Path, required=True, metavar="DIR", help="enhanced files")
    parser.add_argument("--output_file", type=Path, default=Path("test_final.txt"), help="default: %(default)s")
    options = parser.parse_args(argv)
    written, problems = write_file_list(options.output_file, [(id_,) for id_ in audio_by_id(options.test_dir_to_scan)])
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{options.output_file}: {written} files")
    return SOME_FAILED if problems else DONE


if __name__ == "__main__":
    run(main)
