"""Compare this machine's GPU with its CPU, measure its speed, and write docs/GPU.md: `python -m tools.gpu_check`.

Compared are, in float32 and from the same weights: the output of each network, the loss terms and the gradient, three
training steps, and enhanced files. Measured are training steps, peak memory and inference over batch sizes and number
formats. A measurement that fails, for lack of memory for example, is noted. With `--small` it takes a minute on a CPU.
Exit codes: 0 all comparisons are within their limits, 1 one is not, 2 the command line is wrong.
"""

from __future__ import annotations

import copy
import platform
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from cli import DONE, SOME_FAILED, ArgumentParser, UserError, run
from config import Config, load_config
from data.audio import read_audio
from data.dataset import Batch
from data.file_lists import audio_by_id
from enhance.runtimes import fast_enhancer
from models import build
from models.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from models.losses import Speech, loss_terms, weighted_sum
from models.stft import Spectrogram
from tools.benchmark.__main__ import ALL_CONFIGS, CONFIGS, as_table
from tools.benchmark.training import measure_training
from training.trainer import Trainer
from utils.atomic import write_text_atomically
from utils.distributed import join_group

ROOT = Path(__file__).resolve().parents[1]

Row = dict[str, Any]

OUTPUT_LIMIT, GRADIENT_LIMIT, LOSS_LIMIT = 1e-3, 1e-2, 1e-3
"""Maximum differences, relative to the largest value (the norm of the gradient)."""

SAMPLE_LIMIT = 2.0
"""Maximum difference of enhanced samples, in steps of 16 bits."""

VOICEBANK_CROPS = 11_572
"""Crops in an epoch of VoiceBank+DEMAND."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = ArgumentParser(prog="python -m tools.gpu_check", description="Compare GPU and CPU, and measure the GPU.")
    add = parser.add_argument
    add("--device", default="cuda", help="cuda, or cpu to try this command; default: cuda")
    add("--noisy_wav_dir", type=Path, default=ROOT / "samples" / "noisy", help="files to enhance; default: samples")
    add("--checkpoint_file", type=Path, default=DEFAULT_CHECKPOINT, help="default: checkpoints/default.safetensors")
    add("--output", type=Path, default=ROOT / "docs" / "GPU.md", help="default: docs/GPU.md")
    add("--batch_sizes", type=int, nargs="+", default=[2, 8, 32, 64], help="of training; default: 2 8 32 64")
    add("--small", action="store_true", help="few and short measurements")
    options = parser.parse_args(argv)
    parser.check_device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # as in train.py and inference.py
    compared: list[Row] = []
    measured: list[Row] = []
    trained: list[Row] = []
    tables = ((compared, compare(options)), (measured, measure_inference(options)), (trained, measure_steps(options)))
    for table, rows in tables:
        for row in rows:  # written after each, because a later one may end the process
            table.append(row)
            write_text_atomically(options.output, page(options.device, compared, measured, trained))
    print(as_table(compared), as_table(measured), as_table(trained), sep="\n\n")
    return DONE if all(row["difference"] <= row["limit"] for row in compared) else SOME_FAILED


def page(device: str, compared: Sequence[Row], measured: Sequence[Row], trained: Sequence[Row]) -> str:
    """Return the text of docs/GPU.md."""
    name = torch.cuda.get_device_name() if device != "cpu" else platform.processor() or "CPU"
    return f"""# GPU

Written by `python -m tools.gpu_check` on: {name}, PyTorch {torch.__version__}.

## CPU and GPU compute the same

Float32, the same weights. Differences are relative to the largest value; of files, in steps of 16 bits.

{as_markdown(compared)}

## Inference

Recordings of 60 s from samples to samples, several at once.

{as_markdown(measured)}

## Training

A step of IMSE (`configs/imse.json`) on crops of 1.92 s, against the plain transcription of the published loop, and the
length of an epoch of {VOICEBANK_CROPS} crops.

{as_markdown(trained)}
"""


def compare(options: Namespace) -> Iterator[Row]:
    """Yield a row for each comparison of the device with the CPU."""
    for path in ALL_CONFIGS[:1] if options.small else ALL_CONFIGS:
        config = load_config(path)
        name = config.model.name
        on_cpu, on_device = (outputs(config, device) for device in ("cpu", options.device))
        for what, limit in (("magnitude", OUTPUT_LIMIT), ("losses", LOSS_LIMIT), ("gradient", GRADIENT_LIMIT)):
            yield {"of": f"{name}: {what}", "difference": difference(on_device[what], on_cpu[what]), "limit": limit}
    config = load_config(CONFIGS / "imse.json")
    steps = [np.array(train_losses(config, device)) for device in ("cpu", options.device)]
    relative = float(np.max(np.abs(steps[1] / steps[0] - 1)))
    yield {"of": "imse: losses of three training steps", "difference": relative, "limit": 10 * LOSS_LIMIT}
    network, config = load_checkpoint(options.checkpoint_file)
    worst = 0.0
    for path in list(audio_by_id(options.noisy_wav_dir).values())[: 1 if options.small else 20]:
        samples, read = read_audio(path, config.data.sampling_rate)
        enhanced = [
            fast_enhancer(copy.deepcopy(network), config, device)(samples[:, 0], read.rate)
            for device in (options.device, "cpu")
        ]
        worst = max(worst, float(np.max(np.abs(enhanced[0] - enhanced[1]))) * 2**15)
    yield {"of": "enhanced files", "difference": worst, "limit": SAMPLE_LIMIT}


def outputs(config: Config, device: str) -> dict[str, torch.Tensor]:
    """Return output, loss terms and gradient of a network with seeded weights on a seeded crop, on the CPU."""
    torch.manual_seed(0)
    network = build(config).eval()
    for part in network.modules():
        if isinstance(part, nn.RNNBase):
            part.train()  # without it, cuDNN's RNNs have no gradient
    clean, noise = 0.1 * torch.randn(2, 1, config.data.segment_size)
    spectrogram = Spectrogram(config.stft, config.model.complex_spectra).to(device)
    network.to(device)
    wav = clean.to(device)
    enhanced = network(spectrogram((clean + noise).to(device)))
    speech = Speech(spectrogram.inverse(enhanced, wav.shape[1]), enhanced)
    terms = loss_terms(config.loss, Speech(wav, spectrogram(wav)), speech, spectrogram)
    weighted_sum(config.loss, terms).backward()
    gradients = [weight.grad.flatten() for weight in network.parameters() if weight.grad is not None]
    found = {"magnitude": enhanced.mag, "losses": torch.stack(list(terms.values())), "gradient": torch.cat(gradients)}
    return {name: value.detach().cpu().double() for name, value in found.items()}


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference relative to the largest value; of vectors in parameter space, of the norms."""
    if found.dim() == 1 and len(found) > 100:
        return float((found - expected).norm() / expected.norm())
    return float((found - expected).abs().max() / expected.abs().max())


def train_losses(config: Config, device: str) -> list[float]:
    """Return the loss of three training steps without the metric discriminator."""
    config = replace(config, loss=replace(config.loss, metric=0.0))
    trainer = Trainer(config, join_group(device), None)
    rng = np.random.default_rng(0)
    losses: list[float] = []
    for _ in range(3):
        clean = rng.standard_normal((2, config.data.segment_size)).astype(np.float32)
        noise = rng.standard_normal(clean.shape).astype(np.float32)
        losses.append(float(trainer.step(Batch(np.arange(2), clean, clean + noise, np.ones(2, bool)), 0)["loss"]))
    return losses


@contextmanager
def failure_noted(row: Row) -> Iterator[None]:
    """Note in the row why it could not be measured: too little memory, or an error of torch.compile."""
    try:
        yield
    except (RuntimeError, UserError) as error:
        row["failed"] = "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error).partition("\n")[0]
    torch.cuda.empty_cache()  # after the exception, which holds tensors


def measure_inference(options: Namespace) -> Iterator[Row]:
    """Yield a row for each batch size and number format."""
    network, config = load_checkpoint(options.checkpoint_file)
    seconds, count = (4, 1) if options.small else (60, 16)
    rate = config.data.sampling_rate
    recordings = [np.random.default_rng(0).uniform(-0.1, 0.1, seconds * rate).astype(np.float32)] * count
    for bf16, compiled in [(False, False)] if options.small else [(False, False), (True, False), (False, True)]:
        for batch_size in [1] if options.small else [1, 4, 16, 64]:
            row: Row = {"form": format_form(bf16, compiled), "batch": batch_size}
            with failure_noted(row):
                enhancer = fast_enhancer(
                    copy.deepcopy(network), config, options.device, batch_size=batch_size, bf16=bf16, compiled=compiled
                )
                enhancer.enhance_signals(recordings[:1])  # warm up
                start = perf_counter()
                enhancer.enhance_signals(recordings)
                row["hours per hour"] = seconds * count / (perf_counter() - start)
            yield row


def measure_steps(options: Namespace) -> Iterator[Row]:
    """Yield the rows of `tools.benchmark train`, with the time of an epoch, for each number format and batch size."""
    for bf16, compiled in [(False, False)] if options.small else [(False, False), (True, False), (True, True)]:
        for batch_size in [1] if options.small else options.batch_sizes:
            given = Namespace(
                config=[CONFIGS / "imse.json"],
                batch_sizes=[batch_size],
                steps=1 if options.small else 8,
                compile=compiled,
                bf16=bf16,
                threads=torch.get_num_threads(),
                device=options.device,
            )
            rows: list[Row] = [{"network": "imse", "form": format_form(bf16, compiled), "batch": batch_size}]
            with failure_noted(rows[0]):
                rows = measure_training(given)
                for row in rows:
                    row["epoch, minutes"] = VOICEBANK_CROPS / batch_size * row["ms per step"] / 60_000
            yield from rows


def format_form(bf16: bool, compiled: bool) -> str:
    """Name a number format."""
    return ("bf16" if bf16 else "float32") + (", compiled" if compiled else "")


def as_markdown(rows: Sequence[Row]) -> str:
    """Format rows as a Markdown table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name) for name in columns] for row in rows]
    lines = [columns, ["---"] * len(columns)]
    for row in cells:
        lines.append(["" if each is None else f"{each:.4g}" if isinstance(each, float) else str(each) for each in row])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    run(main)
