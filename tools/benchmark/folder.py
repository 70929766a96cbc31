"""How fast a folder is enhanced: by the pipeline of inference.py, and one segment at a time by the plain IMSE.

    python -m tools.benchmark.folder --input_noisy_wavs_dir NOISY --checkpoint_file g_best_pesq_3.373 [--files 40]

Protocol "paper", files read and written in both ways (`plain/imse.py` is the plain one, all threads on
one segment). The two take turns, a few files each, so that a noisy machine slows both alike. Prints seconds, their
ratio, and the largest difference between results in steps of 16 bits.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from tqdm import tqdm

from cli import DONE, SOME_FAILED, USAGE_ERROR, ArgumentParser, UserError, run
from data.audio import AudioError, read_audio, write_audio
from data.file_lists import plan_outputs
from enhance.files import Load, enhance_files
from enhance.runtimes import fast_enhancer, load_network
from tests.reference.imse import ReferenceIMSE, plain_paper_protocol

ROUND = 10
"""Files at a time in each way."""

FULL_SCALE = 2**15

Job = tuple[Path, Path]


def load_plain(checkpoint: Path) -> ReferenceIMSE:
    """The plain network with the weights of a released checkpoint, which load as they are.

    Raises `UserError` where it is another.
    """
    network = ReferenceIMSE().eval()
    try:
        network.load_state_dict(torch.load(checkpoint, "cpu", weights_only=True)["generator"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{checkpoint}: not a released checkpoint of IMSE, which the plain network needs") from error
    return network


@torch.inference_mode()
def enhance_plainly(jobs: list[Job], network: ReferenceIMSE) -> None:
    """One file after another, one segment after another; raises `AudioError`."""
    for source, target in jobs:
        noisy, audio_format = read_audio(source)
        channels = [plain_paper_protocol(network, torch.from_numpy(channel.copy())).numpy() for channel in noisy.T]
        write_audio(target, np.stack(channels, axis=1), audio_format)


def largest_difference(jobs: list[Job], others: list[Job]) -> float:
    """Between the results of two runs, in steps of 16 bits."""
    pairs = [(read_audio(one)[0], read_audio(other)[0]) for (_, one), (_, other) in zip(jobs, others, strict=True)]
    return FULL_SCALE * max(float(np.abs(one - other).max()) for one, other in pairs)


def measure(options: Namespace, plain: ReferenceIMSE) -> bool:
    """Measure and print; whether all files could be enhanced."""
    load = Load.choose(options.device, "paper", options.batch_size, options.num_threads)
    network, config = load_network(options.checkpoint_file, options.backend, load.threads)
    enhancer = fast_enhancer(network, config, options.device, "paper", load, options.bf16, options.compile)
    torch.set_num_threads(load.threads)
    with tempfile.TemporaryDirectory() as folder:
        ours, plainly = (
            plan_outputs(options.input_noisy_wavs_dir, Path(folder, name))[: options.files]
            for name in ("ours", "plain")
        )
        seconds = {"pipeline": 0.0, "plain": 0.0}
        for start in tqdm(range(0, len(ours), ROUND), leave=False):
            part = slice(start, start + ROUND)
            before = perf_counter()
            failures = enhance_files(ours[part], enhancer, "paper", load)
            between = perf_counter()
            if failures:
                return False
            enhance_plainly(plainly[part], plain)
            seconds["pipeline"] += between - before
            seconds["plain"] += perf_counter() - between
        difference = largest_difference(ours, plainly)
    print(f"{len(ours)} files, {load}")
    for name, taken in seconds.items():
        print(f"{name:10}{taken:8.2f} s")
    print(f"{seconds['plain'] / seconds['pipeline']:.2f} times as fast; largest difference {difference:g} steps")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = ArgumentParser(description="Time inference on a folder against the plain network.")
    add = parser.add_argument
    add("--input_noisy_wavs_dir", type=Path, required=True, metavar="NOISY", help="files at 16 kHz")
    add("--checkpoint_file", type=Path, required=True, metavar="CKPT", help="a released checkpoint of IMSE")
    add("--files", type=int, default=40, help="how many, from the first; default: %(default)s")
    add("--device", default="cpu", help="of the pipeline; default: %(default)s")
    add("--backend", choices=("torch", "onnxruntime"), default="torch", help="as for inference.py, like all below")
    add("--batch_size", type=int)
    add("--num_threads", type=int)
    add("--bf16", action="store_true")
    add("--compile", action="store_true")
    options = parser.parse_args(argv)
    if any(number is not None and number < 1 for number in (options.files, options.batch_size, options.num_threads)):
        parser.error("--files, --batch_size, --num_threads: must be 1 or more")
    parser.check_device(options.device)
    try:
        plain = load_plain(options.checkpoint_file)
        return DONE if measure(options, plain) else SOME_FAILED
    except (UserError, AudioError) as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR


if __name__ == "__main__":
    run(main)
