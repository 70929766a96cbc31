"""Enhance noisy speech: a file, a folder or standard input, at any sampling rate, channel count and length; or live.

    python inference.py --input_noisy_wavs_dir noisy --output_dir enhanced [--resume]
    torchrun --nproc_per_node N inference.py …      # each process takes its share of the files
    python inference.py --input_noisy_wavs_dir - < noisy.wav > enhanced.wav
    arecord -f S16_LE -r 16000 -t wav | python inference.py --stream | aplay

Each output keeps its input's name, sampling rate, channel count, length and sample format; a folder's tree is mirrored.
With a folder of clean files the scores are printed too. Exit codes: 0 all done, 1 some files failed (each is named on
standard error), 2 the command line is wrong.
"""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cli import DONE, SOME_FAILED, ArgumentParser, UserError, positive, run
from data.file_lists import audio_by_id, plan_outputs
from enhance.enhancer import default_protocol
from enhance.files import enhance_file, enhance_files, is_done
from enhance.runtimes import BACKENDS, fast_enhancer, fast_stream, has_fast_bfloat16, load_network, tune_malloc
from enhance.stdio import pipe_file, pipe_pcm
from enhance.windows import MAX_HOP, PROTOCOLS
from models.checkpoint import DEFAULT_CHECKPOINT, LIVE_CHECKPOINT
from utils.distributed import join_for_files, rank_count

SKIPPED = 0.5
"""Seconds for which --skip_start drops input: what has waited in the pipe and in the sound card arrives within them."""

WATCHED = 5
"""Seconds of live sound after which a warning is given if computing took longer."""


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Parse the command line and fill in defaults; raises `UserError` for options that do not go together."""
    parser = ArgumentParser(description="Enhance noisy speech.")
    add = parser.add_argument
    add("--input_noisy_wavs_dir", metavar="IN", help="noisy folder or file, or - for standard input")
    add("--output_dir", type=Path, metavar="OUT", help="folder for the results; not with -")
    add("--input_clean_wavs_dir", type=Path, metavar="CLEAN", help="folder of clean files: print the scores too")
    add(
        "--resume",
        action="store_true",
        help="skip files with a complete result that is not older, of any checkpoint",
    )
    add("--checkpoint_file", type=Path, metavar="CKPT", help="default: checkpoints/default.safetensors")
    protocols = [name for name in PROTOCOLS if name != "averaged"]
    add(
        "--protocol",
        choices=protocols,
        help="how signals are cut into windows; default: overlap, for live networks whole",
    )
    add("--passes", type=int, choices=MAX_HOP, help="of protocol overlap: 2 averages two passes; default: 1")
    add("--stream", action="store_true", help="live: WAV or raw 16-bit PCM from standard input to standard output")
    add("--skip_start", action="store_true", help="of --stream: drop what a microphone records while the network loads")
    add("--backend", choices=BACKENDS, default="auto", help="default: OpenVINO on a CPU, else PyTorch")
    add("--device", help="cpu or cuda; default: cuda if available, with --stream cpu")
    add("--batch_size", type=positive, metavar="N", help="windows in a batch; default: 1, on a GPU 16")
    add("--num_threads", type=positive, metavar="N", help="CPU threads of the network; default: all cores")
    add("--bf16", action="store_true", help="compute in bfloat16: faster on new hardware, less exact")
    add("--compile", action="store_true", help="use torch.compile, which takes a minute: for many files on a GPU")
    add("--quiet", action="store_true", help="no progress bar, no line about the latency")
    options = parser.parse_args(argv)

    source, stdin = options.input_noisy_wavs_dir, options.stream or options.input_noisy_wavs_dir == "-"
    if options.stream:
        allowed = ("stream", "skip_start", "checkpoint_file", "backend", "device", "quiet")
        given = [f"--{name}" for name, value in vars(options).items() if value and name not in allowed]
        if given:
            parser.error(f"{', '.join(given)}: not with --stream")
    elif options.skip_start:
        parser.error("--skip_start: only with --stream")
    elif source is None:
        parser.error("the following arguments are required: --input_noisy_wavs_dir")
    elif source != "-" and options.output_dir is None:
        parser.error("--output_dir is needed: the folder for the results")
    elif source == "-" and (options.input_clean_wavs_dir or options.output_dir or options.resume):
        parser.error("--output_dir, --input_clean_wavs_dir, --resume: not with standard input")
    if stdin and rank_count() > 1:
        parser.error("standard input is for one process, not for torchrun")

    if options.passes and options.protocol not in (None, "overlap"):
        parser.error(f"--passes: not with --protocol {options.protocol}")
    if options.passes:
        options.protocol = "averaged" if options.passes == 2 else "overlap"
    options.checkpoint_file = options.checkpoint_file or (LIVE_CHECKPOINT if options.stream else DEFAULT_CHECKPOINT)
    onnx_file = options.checkpoint_file.suffix == ".onnx"
    if onnx_file and options.backend == "auto":
        options.backend = "onnxruntime"
    # A live block is too little work for a GPU: starting its thousands of operations takes longer than computing them.
    on_cpu = options.stream or options.backend in ("openvino", "onnxruntime") or not torch.cuda.is_available()
    options.device = options.device or ("cpu" if on_cpu else "cuda")
    if options.backend == "auto" and (options.device != "cpu" or options.protocol == "paper" or options.compile):
        options.backend = "torch"
    if onnx_file and options.backend != "onnxruntime":
        parser.error(f"--backend {options.backend}: not with an .onnx file")
    if options.backend in ("openvino", "onnxruntime") and (options.device != "cpu" or options.compile):
        parser.error(f"--backend {options.backend}: computes on the CPU, without --compile")
    if options.backend == "onnxruntime" and options.bf16:
        parser.error("--backend onnxruntime: not with --bf16")
    parser.check_device(options.device)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments(argv)
    tune_malloc()
    if options.stream:
        return enhance_live(options)
    if options.num_threads:
        torch.set_num_threads(options.num_threads)
    group, device = join_for_files(options.device)
    pipe = options.input_noisy_wavs_dir == "-"
    jobs = [] if pipe else plan_outputs(Path(options.input_noisy_wavs_dir), options.output_dir)
    clean = audio_by_id(options.input_clean_wavs_dir) if options.input_clean_wavs_dir else {}
    network, config = load_network(options.checkpoint_file, torch.get_num_threads())
    options.protocol = options.protocol or default_protocol(network, config)
    if options.compile and options.protocol == "whole":
        raise UserError("--compile: not with protocol whole, where each file has its own length")
    bf16 = options.bf16 and has_fast_bfloat16(device)
    if bf16 != options.bf16:
        print("--bf16: this CPU or GPU has no fast bfloat16, float32 is used", file=sys.stderr)
    enhancer = fast_enhancer(
        network,
        config,
        device,
        options.protocol,
        options.backend,
        options.batch_size,
        bf16=bf16,
        compiled=options.compile,
    )
    if pipe:
        pipe_file(lambda source, target: enhance_file(source, target, enhancer, options.protocol))
        return DONE

    own = jobs[group.rank :: group.ranks]
    if options.resume:
        left = [job for job in own if not is_done(*job)]
        print(f"{len(own) - len(left)} of {len(own)} files are done already", file=sys.stderr)
        own = left
    failures = enhance_files(own, enhancer, options.protocol, options.quiet or not group.leads)
    failures = {target: reason for part in group.gather(failures) for target, reason in part.items()}

    problems: list[str] = []
    if clean and group.leads:
        from metrics.summary import print_scores  # late: importing SciPy takes as long as importing PyTorch

        targets = {target: target.relative_to(options.output_dir) for _, target in jobs}
        whole = Path(options.input_noisy_wavs_dir).is_dir()
        problems = print_scores(clean, targets, failures, whole, progress=not options.quiet)
        for problem in problems:
            print(problem, file=sys.stderr)
    # The same exit code in all processes, because torchrun ends all of them when one fails.
    failed = group.any(bool(failures or problems))
    group.close()
    return SOME_FAILED if failed else DONE


def enhance_live(options: Namespace) -> int:
    """Enhance standard input to standard output in real time."""
    stream = fast_stream(*load_network(options.checkpoint_file), options.device, options.backend)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # a frame is too little work to share
    rate, computing, heard = stream.sampling_rate, 0.0, 0  # in Hz, seconds and samples
    if not options.quiet:
        print(f"live at {rate} Hz, {1000 * stream.latency:g} ms behind", file=sys.stderr)

    def process(samples: np.ndarray) -> np.ndarray:
        nonlocal computing, heard
        began = time.perf_counter()
        enhanced = stream.process(samples)
        computing += time.perf_counter() - began
        heard += len(samples)
        if heard >= WATCHED * rate > heard - len(samples) and computing > heard / rate:
            print(
                f"slower than live: {computing * rate / heard:.1f} s for a second of sound; use --backend openvino, "
                "or a faster network, such as --checkpoint_file checkpoints/dpcrn_live.safetensors",
                file=sys.stderr,
            )
        return enhanced

    pipe_pcm(process, stream.flush, rate, SKIPPED if options.skip_start else 0.0)
    return DONE


if __name__ == "__main__":
    run(main)
