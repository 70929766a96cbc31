"""Time a folder of files through inference.py's code against the plain IMSE, both with the protocol "paper"."""

from __future__ import annotations

import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from tqdm import tqdm

from cli import UserError
from data.audio import read_audio, write_audio
from data.file_lists import plan_outputs
from enhance.files import enhance_files
from enhance.runtimes import fast_enhancer, load_network, tune_malloc
from tests.reference.imse import ReferenceIMSE, plain_paper_protocol
from tools.benchmark.common import Row, positive

HELP = "a folder of files against the plain IMSE"
FILES_PER_TURN = 10


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of this benchmark."""
    add = parser.add_argument
    add("--input_noisy_wavs_dir", type=Path, required=True, metavar="NOISY", help="files at 16 kHz")
    add("--checkpoint_file", type=Path, required=True, metavar="CKPT", help="published checkpoint of IMSE")
    add("--files", type=positive, default=40, metavar="N", help="the first N files; default: 40")
    add("--backend", choices=("torch", "onnxruntime"), default="torch", help="default: torch")
    add("--batch_size", type=positive, help="windows at a time; default: as inference.py")
    add("--bf16", action="store_true", help="compute in bfloat16")
    add("--compile", action="store_true", help="use torch.compile")
    add("--threads", type=positive, default=torch.get_num_threads(), help="default: all cores")
    add("--device", default="cpu", help="cpu or cuda; default: cpu")


def measure(options: Namespace) -> list[Row]:
    """Return seconds for all files, speed-up and the largest difference in 16-bit steps.

    Raises `UserError` if the checkpoint is not a published IMSE or a file cannot be enhanced.
    """
    tune_malloc()
    torch.set_num_threads(options.threads)
    plain = ReferenceIMSE().eval()
    try:
        plain.load_state_dict(torch.load(options.checkpoint_file, "cpu", weights_only=True)["generator"])
    except Exception as error:  # torch.load raises many types
        message = f"{options.checkpoint_file}: not a published checkpoint of IMSE, which the plain network needs"
        raise UserError(message) from error
    network, config = load_network(options.checkpoint_file, options.backend, options.threads)
    enhancer = fast_enhancer(
        network,
        config,
        options.device,
        "paper",
        options.batch_size,
        options.threads,
        bf16=options.bf16,
        compiled=options.compile,
    )
    seconds = {"plain": 0.0, "ours": 0.0}
    difference = 0.0
    with tempfile.TemporaryDirectory() as folder:
        jobs = plan_outputs(options.input_noisy_wavs_dir, Path(folder, "ours"))[: options.files]
        plain_jobs = plan_outputs(options.input_noisy_wavs_dir, Path(folder, "plain"))[: options.files]
        for start in tqdm(range(0, len(jobs), FILES_PER_TURN), leave=False):
            turn = slice(start, start + FILES_PER_TURN)
            before = perf_counter()
            failures = enhance_files(jobs[turn], enhancer, "paper")
            seconds["ours"] += perf_counter() - before
            if failures:
                raise UserError("\n".join(failures.values()), exit_code=1)
            before = perf_counter()
            with torch.inference_mode():
                for source, target in plain_jobs[turn]:
                    noisy, audio_format = read_audio(source)
                    channels = [plain_paper_protocol(plain, torch.from_numpy(channel.copy())) for channel in noisy.T]
                    write_audio(target, torch.stack(channels, dim=1).numpy(), audio_format)
            seconds["plain"] += perf_counter() - before
        for (_, ours), (_, other) in zip(jobs, plain_jobs, strict=True):
            difference = max(difference, float(np.abs(read_audio(ours)[0] - read_audio(other)[0]).max()))
    return [
        {
            "form": name,
            "files": len(jobs),
            "s": taken,
            "speed-up": seconds["plain"] / taken,
            "difference": round(2**15 * difference) if name == "ours" else 0,
        }
        for name, taken in seconds.items()
    ]
