"""Enhance noisy speech: a file, a folder or standard input, at any sampling rate, channel count and length; or live.

    python inference.py --input_noisy_wavs_dir noisy --output_dir enhanced
    python inference.py --input_noisy_wavs_dir - < noisy.wav > enhanced.wav
    arecord -f S16_LE -r 16000 -t raw | python inference.py --stream --checkpoint_file CKPT | aplay -f S16_LE -r 16000

Each output keeps its input's name, rate, channel count, length and sample format; a folder's tree is mirrored. With
a clean folder the scores follow. Exit codes: 0 all done, 1 some files failed (each named), 2 command line wrong.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from cli import DONE, SOME_FAILED, WRONG_COMMAND_LINE, ArgumentParser, run
from data.audio import AudioError, AudioReader, AudioWriter, fit_length, resample_blocks
from data.file_lists import FileListError, audio_by_id, pair_by_id, plan_outputs
from data.pipes import pipe_file, pipe_pcm
from data.processes import available_cores
from data.segments import PROTOCOLS
from metrics.scores import score_pairs, without_scores
from metrics.summary import format_table
from models.checkpoint import DEFAULT_CHECKPOINT, CheckpointError, load_checkpoint
from models.enhancer import LEVEL_BLOCK, Enhancer, LevelMeter
from models.streaming import Stream, StreamError


def parse_arguments() -> Namespace:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = ArgumentParser(description="Enhance noisy speech.")
    add = parser.add_argument
    add("--input_noisy_wavs_dir", metavar="IN", help="folder, file, or - for standard input")
    add("--output_dir", type=Path, metavar="OUT", help="folder for the results; not needed with -")
    add("--input_clean_wavs_dir", type=Path, metavar="CLEAN", help="clean versions: print the scores too")
    add("--checkpoint_file", type=Path, metavar="CKPT", default=DEFAULT_CHECKPOINT, help="default: this project's own")
    add("--protocol", choices=PROTOCOLS, help="how signals are cut; default: overlap")
    add("--stream", action="store_true", help="live: raw 16-bit PCM from standard input, enhanced to standard output")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    add("--quiet", action="store_true", help="no progress bar, no word on latency")
    options = parser.parse_args()
    if options.stream:
        for_files = "input_noisy_wavs_dir", "output_dir", "input_clean_wavs_dir", "protocol"
        if given := [f"--{name}" for name in for_files if getattr(options, name) is not None]:
            parser.error(f"{', '.join(given)}: not with --stream")
    elif options.input_noisy_wavs_dir is None:
        parser.error("the following arguments are required: --input_noisy_wavs_dir")
    elif options.input_noisy_wavs_dir != "-" and options.output_dir is None:
        parser.error("--output_dir is needed: the folder for the results")
    elif options.input_noisy_wavs_dir == "-" and (options.input_clean_wavs_dir or options.output_dir):
        parser.error("--output_dir, --input_clean_wavs_dir: not with standard input")
    options.protocol = options.protocol or "overlap"
    parser.check_device(options.device)
    return options


def enhance_file(source: Path, target: Path, enhancer: Enhancer, protocol: str, name: str = "") -> None:
    """Enhance one audio file in two passes, block by block: measure its level, then enhance it.

    `name` is what messages call the source. Raises `AudioError`, and `target` is then as it was before.
    """
    with AudioReader(source, name) as reader:
        kept = reader.format
        noisy = resample_blocks(reader.blocks(LEVEL_BLOCK), kept.rate, enhancer.rate, kept.channels)
        level = LevelMeter().measure(noisy)
        frames = reader.frames
    try:
        with AudioReader(source, name) as reader, AudioWriter(target, kept) as writer:
            noisy = resample_blocks(reader.blocks(), kept.rate, enhancer.rate, kept.channels)
            enhanced = enhancer.enhance(noisy, level, protocol)
            for block in fit_length(resample_blocks(enhanced, enhancer.rate, kept.rate, kept.channels), frames):
                writer.write(block)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise AudioError(f"{reader.name}: too long for --protocol {protocol} ({error}); use overlap") from error


def enhance_files(jobs: Iterable[tuple[Path, Path]], enhancer: Enhancer, protocol: str) -> dict[Path, str]:
    """Enhance each file; says at once which failed, and returns the reason for each result that is not there."""
    failures: dict[Path, str] = {}
    for source, target in jobs:
        try:
            enhance_file(source, target, enhancer, protocol)
        except AudioError as error:
            failures[target] = str(error)
            tqdm.write(str(error), file=sys.stderr)
    return failures


def enhance_live(stream: Stream, quiet: bool) -> None:
    """Standard input to standard output, in real time."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # a frame is too little work to share
    if not quiet:
        print(f"live at {stream.rate} Hz, {1000 * stream.latency:g} ms behind", file=sys.stderr)
    pipe_pcm(stream.process, stream.flush)


def score(options: Namespace, targets: list[Path], failed: dict[Path, str], clean: dict[str, Path]) -> list[str]:
    """Score the results against their clean versions and print the table; returns a line for each problem."""
    problems: list[str] = []
    ids: dict[str, Path] = {}
    for target in targets:
        name = target.relative_to(options.output_dir).with_suffix("").as_posix()
        if ids.setdefault(name, target) != target:
            problems.append(f"{target}: not scored: {ids[name]} has the same name '{name}'")
    pairing = pair_by_id(clean, ids)
    problems += [f"{path}: has no clean version to score with" for path in pairing.noisy_only]
    if Path(options.input_noisy_wavs_dir).is_dir():
        problems += [f"{path}: has no noisy version" for path in pairing.clean_only]
    there = [pair for pair in pairing.pairs if pair.noisy not in failed]
    results = score_pairs(there, "published", available_cores())
    problems += [f"{result.id}: {result.reason}" for result in results if result.reason is not None]
    results += [without_scores(pair, failed[pair.noisy]) for pair in pairing.pairs if pair.noisy in failed]
    print(format_table(results, "published"))
    return problems


def main() -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments()
    torch.backends.cudnn.allow_tf32 = False  # a GPU gives the CPU's numbers
    try:
        network, config = load_checkpoint(options.checkpoint_file)
        if options.stream:
            enhance_live(Stream(network.to(options.device), config), options.quiet)
            return DONE
        enhancer = Enhancer(network, config).to(options.device)
        if options.input_noisy_wavs_dir == "-":
            pipe_file(lambda source, target: enhance_file(source, target, enhancer, options.protocol, "standard input"))
            return DONE
        jobs = plan_outputs(Path(options.input_noisy_wavs_dir), options.output_dir)
        clean = audio_by_id(options.input_clean_wavs_dir) if options.input_clean_wavs_dir else {}
    except (CheckpointError, StreamError, FileListError, AudioError) as error:
        print(error, file=sys.stderr)
        return SOME_FAILED if isinstance(error, AudioError) else WRONG_COMMAND_LINE
    failures = enhance_files(tqdm(jobs, unit="file", disable=options.quiet), enhancer, options.protocol)
    problems = score(options, [target for _, target in jobs], failures, clean) if clean else []
    for problem in problems:
        print(problem, file=sys.stderr)
    return SOME_FAILED if failures or problems else DONE


if __name__ == "__main__":
    run(main)
