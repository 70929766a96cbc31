"""Enhance noisy speech: a file, a folder or standard input, at any sampling rate, channel count and length.

    python inference.py --input_noisy_wavs_dir noisy --output_dir enhanced
    python inference.py --input_noisy_wavs_dir - < noisy.wav > enhanced.wav

Each output keeps its input's name, sampling rate, channel count, length and sample format; a folder's tree is
mirrored. With `--input_clean_wavs_dir` the scores follow on standard output. Exit codes: 0 all done, 1 some files
failed (each named on standard error, the others done), 2 the command line or the checkpoint is wrong.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from data.audio import AudioError, AudioReader, AudioWriter, fit_length, resample_blocks
from data.file_lists import FileListError, find_audio, pair_folders
from data.segments import PROTOCOLS
from metrics.composite import VARIANTS
from metrics.pool import available_cores
from metrics.scores import score_pairs
from metrics.summary import format_table
from models.checkpoint import CheckpointError, default_checkpoint, load_checkpoint
from models.enhancer import LEVEL_BLOCK, Enhancer, LevelMeter

SOME_FAILED, WRONG_COMMAND_LINE, INTERRUPTED = 1, 2, 130
STANDARD_STREAM = "-"


def parse_arguments() -> argparse.Namespace:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description="Enhance noisy speech.")
    add = parser.add_argument
    add("--input_noisy_wavs_dir", required=True, metavar="IN", help="folder, file, or - for standard input")
    add("--output_dir", type=Path, metavar="OUT", help="folder for the results; not needed with -")
    add("--input_clean_wavs_dir", type=Path, metavar="CLEAN", help="clean versions: print the scores too")
    add("--checkpoint_file", type=Path, metavar="CKPT", help="default: the one in checkpoints/")
    add("--protocol", choices=PROTOCOLS, default="overlap", help="how long recordings are cut; default: %(default)s")
    add("--composite", choices=VARIANTS, default="published", help="variant of CSIG, CBAK, COVL in the scores")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    add("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args()
    if options.input_noisy_wavs_dir != STANDARD_STREAM and options.output_dir is None:
        parser.error("--output_dir is needed: the folder for the results")
    return options


def plan_jobs(source: Path, output_dir: Path) -> list[tuple[Path, Path]]:
    """The files to enhance and where each result goes; raises `FileListError`."""
    if source.is_file():
        sources, root = [source], source.parent
    elif source.exists():
        sources, root = find_audio(source), source
    else:
        raise FileListError(f"{source}: no such file or folder")
    if output_dir.resolve() == root.resolve():
        raise FileListError(f"{output_dir}: the output folder holds the input; choose another --output_dir")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()  # fails once, where every file would
    except OSError as error:
        raise FileListError(f"{output_dir}: cannot be written: {error.strerror}") from error
    # Results of an earlier run within the input folder are not inputs.
    inside = output_dir.resolve()
    return [(path, output_dir / path.relative_to(root)) for path in sources if inside not in path.resolve().parents]


def enhance_file(source: Path, target: Path, enhancer: Enhancer, protocol: str, name: str | None = None) -> None:
    """Enhance one audio file in two passes, block by block: measure its level, then enhance it.

    `name` is what messages call the source. Raises `AudioError`; `target` is then as it was before.
    """
    with AudioReader(source, name) as reader:
        kept = reader.format
        at_network_rate = resample_blocks(
            reader.blocks(LEVEL_BLOCK), kept.rate, enhancer.rate, kept.channels
        )
        level = LevelMeter().measure(at_network_rate)
        frames = reader.frames
    with AudioReader(source, name) as reader, AudioWriter(target, kept) as writer:
        noisy = resample_blocks(reader.blocks(), kept.rate, enhancer.rate, kept.channels)
        enhanced = enhancer.enhance(noisy, level, protocol)
        for block in fit_length(resample_blocks(enhanced, enhancer.rate, kept.rate, kept.channels), frames):
            writer.write(block)


def enhance_files(jobs: Iterable[tuple[Path, Path]], enhancer: Enhancer, protocol: str) -> list[str]:
    """Enhance each file; returns one line for each that failed."""
    problems: list[str] = []
    for source, target in jobs:
        try:
            enhance_file(source, target, enhancer, protocol)
        except AudioError as error:
            problems.append(str(error))
            tqdm.write(str(error), file=sys.stderr)
    return problems


def enhance_stream(enhancer: Enhancer, protocol: str) -> None:
    """Standard input to standard output, by way of files: the level is measured before the first sample leaves."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "noisy"), Path(folder, "enhanced")
        with source.open("wb") as stream:
            shutil.copyfileobj(sys.stdin.buffer, stream)
        enhance_file(source, target, enhancer, protocol, name="standard input")
        with target.open("rb") as stream:
            shutil.copyfileobj(stream, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def print_scores(clean: Path, output_dir: Path, variant: str) -> list[str]:
    ...


def main() -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments()
    try:
        network, config = load_checkpoint(options.checkpoint_file or default_checkpoint())
        enhancer = Enhancer(network, config).to(options.device)
        if options.input_noisy_wavs_dir == STANDARD_STREAM:
            enhance_stream(enhancer, options.protocol)
            return 0
        jobs = plan_jobs(Path(options.input_noisy_wavs_dir), options.output_dir)
    except (CheckpointError, FileListError) as error:
        print(error, file=sys.stderr)
        return WRONG_COMMAND_LINE
    except AudioError as error:
        print(error, file=sys.stderr)
        return SOME_FAILED
    problems = enhance_files(tqdm(jobs, unit="file", disable=options.quiet), enhancer, options.protocol)
    return SOME_FAILED if problems else 0


if __name__ == "__main__":
    sys.exit(main())
