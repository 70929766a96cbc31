"""Enhance noisy speech: a file, a folder or standard input, at any sampling rate, channel count and length; or live.

    python inference.py --input_noisy_wavs_dir noisy --output_dir enhanced [--resume]
    torchrun --nproc_per_node N inference.py …      # each process takes its share of the files
    python inference.py --input_noisy_wavs_dir - < noisy.wav > enhanced.wav
    arecord -f S16_LE -r 16000 -t raw | python inference.py --stream | aplay -f S16_LE -r 16000

Each output keeps its input's name, rate, channel count, length and sample format; a folder's tree is mirrored. With
a clean folder the scores follow. Exit codes: 0 all done, 1 some files failed (each named), 2 command line wrong.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from cli import DONE, SOME_FAILED, USAGE_ERROR, ArgumentParser, UserError, run
from data.audio import AudioError
from data.file_lists import audio_by_id, plan_outputs
from enhance.enhancer import Enhancer
from enhance.files import Load, enhance_file, enhance_files, without_done
from enhance.runtimes import fast_enhancer, keep_freed_memory, load_network
from enhance.stdio import pipe_file, pipe_pcm
from enhance.streaming import Stream
from enhance.windows import PROTOCOLS
from models.checkpoint import DEFAULT_CHECKPOINT, LIVE_CHECKPOINT
from utils.distributed import Group, join_for_files, rank_count

WITH_STREAM = ("stream", "checkpoint_file", "backend", "device", "quiet")


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = ArgumentParser(description="Enhance noisy speech.")
    add = parser.add_argument
    add("--input_noisy_wavs_dir", metavar="IN", help="folder, file, or - for standard input")
    add("--output_dir", type=Path, metavar="OUT", help="folder for the results; not needed with -")
    add("--input_clean_wavs_dir", type=Path, metavar="CLEAN", help="clean versions: print the scores too")
    add("--resume", action="store_true", help="skip files that have a whole result already, not older than they are")
    add("--checkpoint_file", type=Path, metavar="CKPT", help="default: this project's own")
    add("--protocol", choices=PROTOCOLS, help="how signals are cut; default: overlap")
    add("--stream", action="store_true", help="live: raw 16-bit PCM from standard input, enhanced to standard output")
    add("--backend", choices=("torch", "onnxruntime"), help="what computes; default: torch, for an .onnx onnxruntime")
    add("--device", help="cpu or cuda; default: cuda where there is one")
    add("--batch_size", type=int, metavar="N", help="windows in a batch; default: 1, on a GPU 16")
    add("--num_threads", type=int, metavar="N", help="CPU threads of the network; default: all cores")
    add("--bf16", action="store_true", help="compute in bfloat16: faster on new hardware, less exact")
    add("--compile", action="store_true", help="compile the network: takes a minute, pays for many files")
    add("--quiet", action="store_true", help="no progress bar, no word on latency")
    options = parser.parse_args(argv)
    if options.stream:
        given = [name for name, value in vars(options).items() if value not in (None, False)]
        if for_files := [f"--{name}" for name in given if name not in WITH_STREAM]:
            parser.error(f"{', '.join(for_files)}: not with --stream")
    elif options.input_noisy_wavs_dir is None:
        parser.error("the following arguments are required: --input_noisy_wavs_dir")
    elif options.input_noisy_wavs_dir != "-" and options.output_dir is None:
        parser.error("--output_dir is needed: the folder for the results")
    elif options.input_noisy_wavs_dir == "-" and (options.input_clean_wavs_dir or options.output_dir or options.resume):
        parser.error("--output_dir, --input_clean_wavs_dir, --resume: not with standard input")
    elif options.compile and options.protocol == "whole":
        parser.error("--compile: not with --protocol whole, where every length is another")
    options.protocol = options.protocol or "overlap"
    options.checkpoint_file = options.checkpoint_file or (LIVE_CHECKPOINT if options.stream else DEFAULT_CHECKPOINT)
    check_computing(parser, options)
    return options


def check_computing(parser: ArgumentParser, options: Namespace) -> None:
    """Choose what computes, and where; ends the program where that does not go together."""
    if rank_count() > 1 and (options.stream or options.input_noisy_wavs_dir == "-"):
        parser.error("standard input is for one process, not for torchrun")
    if any(number is not None and number < 1 for number in (options.batch_size, options.num_threads)):
        parser.error("--batch_size, --num_threads: must be 1 or more")
    onnx_file = options.checkpoint_file.suffix == ".onnx"
    options.backend = options.backend or ("onnxruntime" if onnx_file else "torch")
    on_cpu = options.backend == "onnxruntime" or not torch.cuda.is_available()
    options.device = options.device or ("cpu" if on_cpu else "cuda")
    if options.backend == "torch" and onnx_file:
        parser.error("--backend torch: not with an .onnx file")
    if options.backend == "onnxruntime" and (options.device != "cpu" or options.bf16 or options.compile):
        parser.error("--backend onnxruntime: computes on the CPU, without --bf16 and --compile")
    parser.check_device(options.device)


def enhance_live(stream: Stream, quiet: bool) -> None:
    """Standard input to standard output, in real time."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # a frame is too little work to share
    if not quiet:
        print(f"live at {stream.rate} Hz, {1000 * stream.latency:g} ms behind", file=sys.stderr)
    pipe_pcm(stream.process, stream.flush)


def enhance_share(
    jobs: list[tuple[Path, Path]], enhancer: Enhancer, load: Load, group: Group, options: Namespace
) -> dict[Path, str]:
    """Enhance this process' share of the files; returns the failures of all processes."""
    own = jobs[group.rank :: group.ranks]
    own = without_done(own) if options.resume else own
    failures = enhance_files(own, enhancer, options.protocol, load, options.quiet or not group.leads)
    return {target: reason for part in group.gather(failures) for target, reason in part.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments(argv)
    torch.backends.cudnn.allow_tf32 = False  # a GPU gives the CPU's numbers
    keep_freed_memory()
    protocol = options.protocol
    group, device = join_for_files(options.device)
    load = Load.choose(device, protocol, options.batch_size, options.num_threads)
    try:
        network, config = load_network(options.checkpoint_file, options.backend, 1 if options.stream else load.threads)
        if options.stream:
            enhance_live(Stream(network.to(device), config), options.quiet)
            return DONE
        enhancer = fast_enhancer(network, config, device, protocol, load, options.bf16, options.compile)
        if options.input_noisy_wavs_dir == "-":
            pipe_file(lambda source, target: enhance_file(source, target, enhancer, protocol, load))
            return DONE
        jobs = plan_outputs(Path(options.input_noisy_wavs_dir), options.output_dir)
        clean = audio_by_id(options.input_clean_wavs_dir) if options.input_clean_wavs_dir else {}
    except (UserError, AudioError) as error:
        print(error, file=sys.stderr)
        return SOME_FAILED if isinstance(error, AudioError) else USAGE_ERROR
    failures = enhance_share(jobs, enhancer, load, group, options)
    problems: list[str] = []
    if clean and group.leads:
        from metrics.results import print_scores  # late: with SciPy, it takes as long to import as PyTorch

        targets = {target: target.relative_to(options.output_dir) for _, target in jobs}
        problems = print_scores(clean, targets, failures, whole=Path(options.input_noisy_wavs_dir).is_dir())
    for problem in problems:
        print(problem, file=sys.stderr)
    failed = group.any(bool(failures or problems))  # together, for torchrun ends all when one has failed
    group.close()
    return SOME_FAILED if failed else DONE


if __name__ == "__main__":
    run(main)
