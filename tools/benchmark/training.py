"""What a training step costs: `python -m tools.benchmark.network train`.

IMSE and MUSE are timed beside a plain transcription of their published loop.

All forms train on the same crops from the same first weights, and take turns, so that a noisy machine slows all of
them alike; the medians' ratios are what counts. The data are the recordings in `samples/`, of 3 s each.

A turn is one step that does not count and then some that do; after it, PESQ labels that are on their way are waited
for. Were it a single step, the labels that a step with `metric_lag` 1 leaves to the next would be computed in another
form's time: it would seem never to wait for them, and the other would be slowed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from tqdm import tqdm

from config import Config
from data.dataset import AudioCache, PairedDataset, epoch_order, load_batches
from data.file_lists import Utterance, pair_folders
from models import build
from models.losses import TERMS
from models.published import translate_published
from tests.reference.muse import has_reference_network
from tests.reference.training import ReferenceTrainer, new_pool, plain_loader
from training.pesq_labels import PesqLabeler
from training.trainer import Trainer
from utils.distributed import Group
from utils.processes import available_cores

SAMPLES = Path(__file__).resolve().parents[1] / "samples"

TURN = 2
"""How many steps of a turn count."""


@dataclass
class Form:
    """A way to train: a step with the next batch, which gives the loss terms, and an end to what it left under way."""

    step: Callable[[], Mapping[str, Any]]
    settle: Callable[[], object] = lambda: None
    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    first_terms: dict[str, float] = field(default_factory=dict)

    def turn(self, device: torch.device, counted: int) -> None:
        """Take one step that does not count, then `counted` that do."""
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        for number in range(1 + counted):
            start = perf_counter()
            terms = self.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number > 0:
                self.seconds.append(perf_counter() - start)
            if not self.first_terms:
                self.first_terms = {name: float(value) for name, value in terms.items() if name in TERMS}
        self.settle()
        if device.type == "cuda":
            self.peak = max(self.peak, torch.cuda.max_memory_allocated(device) - before)


def our_configs(config: Config, bf16: bool, compiled: bool) -> dict[str, Config]:
    """The configurations of our forms, by the forms' names; there is no lag where there are no labels."""

    def variant(metric_lag: int, bf16: bool = False, compiled: bool = False) -> Config:
        return replace(config, train=replace(config.train, metric_lag=metric_lag, bf16=bf16, compile=compiled))

    has_labels = config.loss.metric > 0
    lag, fast = (1, "ours_lag_1") if has_labels else (0, "ours")
    forms = {"ours": variant(0), fast: variant(lag)}
    if bf16:
        forms[f"{fast}_bf16"] = variant(lag, bf16=True)
    if compiled:
        forms[f"{fast}_compiled"] = variant(lag, compiled=True)
    if bf16 and compiled:
        forms[f"{fast}_bf16_compiled"] = variant(lag, bf16=True, compiled=True)
    if has_labels:
        forms["ours_labels_off"] = replace(variant(0), loss=replace(config.loss, metric=0.0))
    return forms


def turn_lengths(steps: int) -> list[int]:
    """How many steps count in each turn: none in the first, which warms up, `steps` in all."""
    return [0, *(min(TURN, steps - done) for done in range(0, steps, TURN))]


def crops_in_memory(utterances: list[Utterance], config: Config, workers: int) -> PairedDataset:
    """The crops of pairs whose audio is decoded already."""
    recordings = AudioCache(config.data.sampling_rate, keep=True)
    recordings.load([path for pair in utterances for path in (pair.clean, pair.noisy)], workers, quiet=True)
    return PairedDataset(utterances, recordings, config.data, config.train.seed)


def measure_forms(
    config: Config, utterances: list[Utterance], device: torch.device, steps: int, bf16: bool, compiled: bool
) -> tuple[dict[str, Form], int]:
    """All forms after `steps` steps that count, and how many crops got no label."""
    batch_size, seed = config.train.batch_size, config.train.seed
    turns = turn_lengths(steps)
    taken = sum(1 + counted for counted in turns)
    # As in a corpus, an epoch is longer than the run: at its end the plain loop's worker would start anew.
    utterances = utterances * -(-taken * batch_size // len(utterances))
    order = epoch_order(seed, 0, len(utterances)).tolist()
    workers = min(4, available_cores())
    source = crops_in_memory(utterances, config, workers)
    forms: dict[str, Form] = {}

    def plain(trainer: ReferenceTrainer) -> Form:
        batches = iter(plain_loader(utterances, config, order, device))
        return Form(lambda: trainer.step(next(batches)))

    def ours(trainer: Trainer) -> Form:
        batches = load_batches(source, seed, 0, 0, batch_size=batch_size, rank=0, ranks=1, workers=workers)
        stack.enter_context(closing(batches))
        return Form(lambda: trainer.step(next(batches), 0), trainer.state_dict)  # which waits for labels

    with ExitStack() as stack:
        torch.manual_seed(seed)
        network = build(config)
        if has_reference_network(config) and config.loss.metric > 0:
            first = ReferenceTrainer(config, device)
            forms["plain"] = plain(first)
            forms["plain_pool_kept"] = plain(
                ReferenceTrainer(config, device, stack.enter_context(new_pool(batch_size)))
            )
            network.load_state_dict(translate_published(first.network.state_dict()))
        labels = stack.enter_context(PesqLabeler(max(1, min(available_cores(), batch_size))))
        for name, variant in our_configs(config, bf16, compiled).items():
            trainer = Trainer(variant, Group(0, 1, device), labels if variant.loss.metric > 0 else None)
            trainer.load_weights(network)
            forms[name] = ours(trainer)
        for counted in tqdm(turns, leave=False):
            for form in forms.values():
                form.turn(device, counted)
    return forms, labels.failed


def figures_of(forms: Mapping[str, Form], audio_seconds: float) -> dict[str, dict[str, float]]:
    """What is known of each form, by what it is and the form's name; `audio_seconds` are those of a step.

    Speed and losses are held against those of the first form.
    """
    seconds = {name: statistics.median(form.seconds) for name, form in forms.items()}
    first, *_ = forms
    reference = forms[first].first_terms
    return {
        "seconds": seconds,
        "steps_per_second": {name: 1 / time for name, time in seconds.items()},
        "audio_seconds_per_second": {name: audio_seconds / time for name, time in seconds.items()},
        "speedup": {name: seconds[first] / time for name, time in seconds.items()},
        "peak_megabytes_cuda": {name: form.peak / 2**20 for name, form in forms.items() if form.peak},
        "first_loss_difference": {
            name: max(abs(value / reference[term] - 1) for term, value in form.first_terms.items())
            for name, form in forms.items()
        },
    }


def measure_training(
    config: Config, threads: int, device: str, batch_sizes: list[int], steps: int, bf16: bool, compiled: bool
) -> dict[str, Any]:
    """All figures of a training step, for each batch size; times in seconds, memory in MB."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # as train.py has it, and for the plain form too
    seconds = config.data.segment_size / config.data.sampling_rate
    batches: list[dict[str, Any]] = []
    utterances = pair_folders(SAMPLES / "clean", SAMPLES / "noisy").pairs
    for size in batch_sizes:
        sized = replace(config, train=replace(config.train, batch_size=size))
        forms, unlabelled = measure_forms(sized, utterances, torch.device(device), steps, bf16, compiled)
        figures = figures_of(forms, size * seconds)
        batches.append({"batch_size": size, "crops_without_label": unlabelled, **figures})
    return {
        "network": config.model.name,
        "device": device,
        "threads": threads,
        "steps": steps,
        "crop_seconds": seconds,
        "batches": batches,
    }


def training_as_text(figures: dict[str, Any]) -> str:
    """The figures as a table for each batch size."""
    lines = [
        f"{figures['network']}, {figures['device']}, {figures['threads']} threads, median of {figures['steps']} steps"
    ]
    for batch in figures["batches"]:
        lines.append(f"batches of {batch['batch_size']} crops of {figures['crop_seconds']:.2f} s")
        lines.append(
            f"{'':26}{'ms a step':>10}{'steps/s':>9}{'audio s/s':>11}{'times as fast':>15}{'MB at peak':>12}"
            f"{'difference':>12}"
        )
        for name, seconds in batch["seconds"].items():
            memory = batch["peak_megabytes_cuda"].get(name)
            lines.append(
                f"{name:26}{1e3 * seconds:10.1f}{batch['steps_per_second'][name]:9.2f}"
                f"{batch['audio_seconds_per_second'][name]:11.2f}{batch['speedup'][name]:15.2f}"
                f"{f'{memory:.0f}' if memory else '-':>12}{batch['first_loss_difference'][name]:12.1e}"
            )
    return "\n".join(lines)
