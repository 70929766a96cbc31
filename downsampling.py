"""Prepare VoiceBank+DEMAND: convert recordings at 48 kHz to mono 16-bit WAV at 16 kHz.

    python downsampling.py [--input_dir VoiceBank+DEMAND] [--output_dir VoiceBank+DEMAND/16k] [--jobs N]
    python downsampling.py --hub JacobLinCool/VoiceBank-DEMAND-16k

The input folder is the set as unpacked from Edinburgh DataShare (`clean_trainset_28spk_wav` and so on). The output
folder gets folders of the same names, the defaults of make_file_list.py. Clean and noisy files are paired by name.
Files at 16 kHz are copied sample for sample. With `--hub`, a copy of the set at 16 kHz is downloaded from the Hugging
Face hub (`pip install -e '.[hub]'`). Outputs of the right length are skipped, so that an interrupted run can be
continued.

Exit codes: 0 all done; 1 some files failed or are unpaired (each named on standard error, the others done); 2 wrong
command line; 130 interrupted.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cli import DONE, SOME_FAILED, ArgumentParser, UserError, positive, run
from data.audio import AudioError
from data.file_lists import Utterance, make_output_dir, pair_folders
from data.hub import convert_rows, count_rows, find_parquet
from data.voicebank import RATE, convert_pair, resample_as_published
from utils.processes import available_cores, run_in_processes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = ArgumentParser(description="Resample VoiceBank+DEMAND to 16 kHz.")
    add = parser.add_argument
    add("--input_dir", type=Path, default=Path("VoiceBank+DEMAND"), help="default: %(default)s")
    add(
        "--hub",
        metavar="NAME",
        help="data set of the Hugging Face hub, or folder of train*.parquet and test*.parquet, instead of --input_dir",
    )
    add("--output_dir", type=Path, help="default: 16k in the input folder")
    for split, name in (("train", "trainset_28spk_wav"), ("test", "testset_wav")):
        names = [f"clean_{name}", f"noisy_{name}"]
        text = "folder names below input and output folder; default: %(default)s"
        add(f"--{split}_folders", nargs=2, metavar=("CLEAN", "NOISY"), default=names, help=text)
    add("--resampler", choices=["soxr", "torchaudio"], default="soxr", help="default: %(default)s")
    add("--jobs", type=positive, default=available_cores(), help="processes, not with --hub; default: one per core")
    add("--quiet", action="store_true", help="no progress bar, no summary")
    options = parser.parse_args(argv)
    if options.hub and options.resampler != "soxr":
        parser.error("--resampler: not with --hub")
    if options.resampler == "torchaudio":
        resample_as_published(np.zeros((1, 1), np.float32), RATE)  # raises UserError once, before any file

    output_dir = options.output_dir or options.input_dir / "16k"
    unpaired: list[Path] = []
    if options.hub:
        files = find_parquet(options.hub)
        targets = {
            split: [output_dir / name for name in vars(options)[f"{split}_folders"]]
            for split, paths in files.items() if paths
        }  # fmt: skip
        for folder in chain(*targets.values()):
            make_output_dir(folder)
        total = sum(map(count_rows, files.values()))
        results = chain.from_iterable(convert_rows(files[split], folders) for split, folders in targets.items())
    else:
        jobs, unpaired = find_jobs(options, output_dir)
        total = len(jobs)
        converted = run_in_processes(partial(convert_pair, resampler=options.resampler), jobs, options.jobs)
        results = ((str(jobs[index][0].noisy), result) for index, result in converted)

    problems: list[str] = []
    written = skipped = 0
    for name, result in tqdm(results, total=total, unit="pair", disable=options.quiet):
        if isinstance(result, BaseException):
            message = str(result)
            problems.append(message if isinstance(result, AudioError) and not options.hub else f"{name}: {message}")
        elif result:
            written += 1
        else:
            skipped += 1
    for problem in problems + [f"{path}: no file of this name in the other folder; skipped" for path in unpaired]:
        print(problem, file=sys.stderr)
    if not options.quiet:
        print(
            f"{output_dir}: {written} pairs written, {skipped} already there, "
            f"{len(problems)} failed, {len(unpaired)} files unpaired"
        )
    return SOME_FAILED if problems or unpaired else DONE


def find_jobs(options: Namespace, output_dir: Path) -> tuple[list[tuple[Utterance, Utterance]], list[Path]]:
    """Return the pairs of source and target files, and the files without a partner; raises `UserError`."""
    splits: list[tuple[list[Path], list[Path]]] = []
    missing: list[Path] = []
    incomplete = False
    for names in (options.train_folders, options.test_folders):
        sources, targets = ([folder / name for name in names] for folder in (options.input_dir, output_dir))
        absent = [folder for folder in sources if not folder.is_dir()]
        missing += absent
        incomplete |= len(absent) == 1
        if not absent:
            splits.append((sources, targets))
    message = f"no such folder: {', '.join(map(str, missing))}"
    if incomplete or not splits:
        raise UserError(message)
    if missing:
        print(f"split skipped, {message}", file=sys.stderr)

    jobs: list[tuple[Utterance, Utterance]] = []
    unpaired: list[Path] = []
    for sources, targets in splits:
        for target in targets:
            resolved = target.resolve()
            if {source.resolve() for source in sources} & {resolved, *resolved.parents}:
                raise UserError(f"{target}: lies among the input files; choose another --output_dir")
            make_output_dir(target)
        pairing = pair_folders(*sources)
        unpaired += pairing.clean_only + pairing.noisy_only
        for pair in pairing.pairs:
            jobs.append((pair, Utterance(pair.id, *(folder / f"{pair.id}.wav" for folder in targets))))
    return jobs, unpaired


if __name__ == "__main__":
    run(main)
