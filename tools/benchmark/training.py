"""Time of a training step, against the plain transcription of the published loop."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from cli import UserError
from config import Config, load_config
from data.dataset import AudioCache, PairedDataset, epoch_order, load_batches
from data.file_lists import pair_folders
from metrics.signals import RATE
from models import build
from models.losses import TERMS
from models.published import translate_published
from tests.reference.muse import has_reference_network
from tools.benchmark.inference import Row
from utils.distributed import Group
from utils.processes import available_cores

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
STEPS_PER_TURN = 2


@dataclass
class Form:
    """A training loop: `step` returns the loss terms, `settle` waits for pending labels."""

    step: Callable[[], Mapping[str, Any]]
    settle: Callable[[], object] = lambda: None
    seconds: list[float] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)
    peak_mb: float | None = None


def measure_training(options: Namespace) -> list[Row]:
    """Time a training step against the plain transcription of the published loop (IMSE and MUSE).

    All forms train on the same crops of `samples/` from the same initial weights. They take turns of a few steps: the
    PESQ labels of a form's last step are awaited at the end of its turn, and with `metric_lag` 1 a turn of a single
    step would always wait for them. The first step of each turn is not timed. Raises `UserError`.
    """
    torch.set_num_threads(options.num_threads)
    torch.backends.cudnn.allow_tf32 = False  # as in train.py; applies to the plain loop too
    rows: list[Row] = []
    for path in options.config:
        config = load_config(path)
        if config.loss.metric > 0 and config.data.sampling_rate != RATE:
            raise UserError(f"{path}: data.sampling_rate: PESQ needs {RATE} Hz")
        for size in options.batch_sizes:
            sized = replace(config, train=replace(config.train, batch_size=size))
            forms = train_forms(sized, options)
            reference = next(iter(forms.values()))
            audio = size * config.data.segment_size / config.data.sampling_rate
            for name, form in forms.items():
                seconds = statistics.median(form.seconds)
                row: Row = {"network": config.model.name, "form": name, "batch": size, "ms per step": 1e3 * seconds}
                row["audio s/s"] = audio / seconds
                row["speed-up"] = statistics.median(reference.seconds) / seconds
                row["loss difference"] = max(
                    abs(form.losses[term] / reference.losses[term] - 1) for term in form.losses
                )
                rows.append({**row, "GPU peak MB": form.peak_mb})
    return rows


def variants(config: Config, options: Namespace) -> dict[str, Config]:
    """Return the configurations of this project's forms by name; `--bf16` and `--compile` add one with both."""
    plain = replace(config, train=replace(config.train, metric_lag=0, bf16=False, compile=False))
    forms = {"ours": plain}
    labels = config.loss.metric > 0
    if labels:
        forms["ours, lag 1"] = replace(plain, train=replace(plain.train, metric_lag=1))
        forms["ours, no labels"] = replace(plain, loss=replace(config.loss, metric=0.0))
    if options.bf16 or options.compile:
        name = "ours" + ", bf16" * options.bf16 + ", compiled" * options.compile
        fast = replace(plain.train, metric_lag=int(labels), bf16=options.bf16, compile=options.compile)
        forms[name] = replace(plain, train=fast)
    return forms


def train_forms(config: Config, options: Namespace) -> dict[str, Form]:
    """Train all forms for `--steps` timed steps each; the first form is the reference for speed and losses."""
    # These need the extra "train", which the other benchmarks do not.
    from tests.reference.training import ReferenceTrainer, new_pool, plain_loader
    from training.pesq_labels import PesqLabeler
    from training.trainer import Trainer

    device = torch.device(options.device)
    batch_size, seed = config.train.batch_size, config.train.seed
    # The first turn only warms up.
    turns = [0, *(min(STEPS_PER_TURN, options.steps - done) for done in range(0, options.steps, STEPS_PER_TURN))]
    utterances = pair_folders(SAMPLES / "clean", SAMPLES / "noisy").pairs
    crops = sum(1 + timed for timed in turns) * batch_size
    utterances = utterances * -(-crops // len(utterances))  # one epoch, so that no loader restarts
    workers = min(4, available_cores())
    cache = AudioCache(config.data.sampling_rate, keep=True)
    cache.load([path for pair in utterances for path in (pair.clean, pair.noisy)], workers, quiet=True)
    dataset = PairedDataset(utterances, cache, config.data, seed)
    forms: dict[str, Form] = {}
    with ExitStack() as stack:
        torch.manual_seed(seed)
        network = build(config)
        if has_reference_network(config) and config.loss.metric > 0:
            order = epoch_order(seed, 0, len(utterances)).tolist()
            for name, pool in (("plain", None), ("plain, pool kept", stack.enter_context(new_pool(batch_size)))):
                reference = ReferenceTrainer(config, device, pool)
                network.load_state_dict(translate_published(reference.network.state_dict()))
                batches = iter(plain_loader(utterances, config, order, device))
                forms[name] = Form(lambda trainer=reference, batches=batches: trainer.step(next(batches)))
        labeler = stack.enter_context(PesqLabeler(max(1, min(available_cores(), batch_size))))
        for name, variant in variants(config, options).items():
            trainer = Trainer(variant, Group(0, 1, device), labeler if variant.loss.metric > 0 else None)
            trainer.load_weights(network)
            batches = load_batches(dataset, seed, 0, 0, batch_size=batch_size, rank=0, ranks=1, workers=workers)
            stack.enter_context(closing(batches))
            # state_dict() waits for pending labels.
            forms[name] = Form(
                lambda trainer=trainer, batches=batches: trainer.step(next(batches), 0), trainer.state_dict
            )
        on_gpu = device.type == "cuda"
        for timed in tqdm(turns, leave=False):
            for form in forms.values():
                before = torch.cuda.memory_allocated(device) if on_gpu else 0
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats(device)
                for number in range(1 + timed):
                    start = perf_counter()
                    logs = form.step()
                    if on_gpu:
                        torch.cuda.synchronize(device)
                    if number:
                        form.seconds.append(perf_counter() - start)
                    if not form.losses:
                        form.losses = {name: float(value) for name, value in logs.items() if name in TERMS}
                form.settle()
                if on_gpu:
                    peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20
                    form.peak_mb = max(peak, form.peak_mb or 0)
    return forms
