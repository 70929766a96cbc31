"""The training step of MetricGAN-style speech enhancement: a generator and a discriminator that predicts PESQ.

IMSE paper, section on training; the same loop as CMGAN's and MP-SENet's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW

from config import Config, OptimConfig
from data.dataset import Batch
from data.levels import SILENT_POWER
from enhance.enhancer import Enhancer
from enhance.runtimes import has_fast_bfloat16
from models import build
from models.discriminator import MetricDiscriminator, dropout_factors
from models.losses import Speech, loss_terms, weighted_sum
from models.stft import AnySpectra, Spectrogram
from training.pesq_labels import PesqLabeler
from utils.distributed import Group

# Indices of the discriminator's three passes over a part of a batch, each of which has its own dropout.
_CLEAN, _LABELED, _METRIC = range(3)


@dataclass
class PesqBatch:
    """A batch for the discriminator: compressed magnitudes `[B, F, T]` and labels `[B]`, NaN where there is none.

    `labels` is a future until the labels are collected.
    """

    clean_mag: Tensor
    enhanced_mag: Tensor
    labels: Tensor | Future[list[Future[float]]]


class Trainer:
    """Networks and optimizers of a run, and the training step.

    All random numbers of a step follow from the seed and the step number, so no random states have to be saved.

    Parameters
    ----------
    config: the configuration of the run.
    group: the processes of the run.
    labeler: computes the PESQ labels; None if the metric loss has no weight, then there is no discriminator.
    teacher: its output is the target of dry crops by a share of `train.distillation`; None if that is 0.

    Attributes
    ----------
    network, discriminator: the modules; `ddp_network` and `ddp_discriminator` average gradients over the processes.
    ema_model: moving average of the network's weights, None without `optim.ema_decay`.
    bf16: whether the network runs under bfloat16 autocast.
    skipped_steps, skipped_in_a_row: numbers of steps with a non-finite gradient; tensors on the device.
    unlabeled_crops: number of crops of this process without a PESQ label.
    """

    def __init__(
        self, config: Config, group: Group, labeler: PesqLabeler | None, teacher: Enhancer | None = None
    ) -> None:
        self.config, self.group, self.labeler = config, group, labeler
        self.teacher = teacher.to(group.device).eval().requires_grad_(False) if teacher else None
        self.spectrogram = Spectrogram(config.stft, config.model.complex_spectra).to(group.device)
        self.bf16 = config.train.bf16 and has_fast_bfloat16(group.device.type)
        with torch.random.fork_rng(devices=[]):  # the networks are built on the CPU
            torch.manual_seed(config.train.seed)
            self.network = build(config).to(group.device)
            self.discriminator = MetricDiscriminator().to(group.device) if labeler else None
        # All crops have the same shape, for which a static graph is faster.
        compiled = torch.compile(self.network, dynamic=False) if config.train.compile else self.network
        self.ddp_network = group.wrap(compiled)  # pyright: ignore[reportArgumentType]
        self.statistics = _saved_buffers(self.network)  # of batch norms
        self.optimizer = _adamw(self.network, config.optim)
        self.ddp_discriminator = group.wrap(self.discriminator) if self.discriminator else None
        self.discriminator_optimizer = _adamw(self.discriminator, config.optim) if self.discriminator else None
        self.ema_model = copy.deepcopy(self.network).requires_grad_(False) if config.optim.ema_decay > 0 else None
        self.ema_statistics = _saved_buffers(self.ema_model) if self.ema_model else []
        self.ema_updates = torch.zeros((), dtype=torch.int64, device=group.device)
        self.global_step = 0
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=group.device)
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=group.device)
        self.unlabeled_crops = 0
        self.pending_batch: PesqBatch | None = None

    @property
    def eval_model(self) -> nn.Module:
        """Return the EMA network if enabled, else the current one."""
        return self.ema_model or self.network

    def load_weights(self, network: nn.Module) -> None:
        """Copy the weights of another network; raises `RuntimeError` if the shapes differ."""
        for copied in (self.network, self.ema_model):
            if copied:
                copied.load_state_dict(network.state_dict())

    def step(self, batch: Batch, epoch: int, last_step: int = 0) -> dict[str, Tensor]:
        """Train discriminator and generator on one batch; `last_step` is the length of the run in steps.

        A network whose gradient is not finite keeps its weights, the statistics of its batch norms and its optimizer
        state; this is decided on the device. With `train.metric_lag` 1 the discriminator learns the labels of the
        previous batch, or of the previous part by `train.accumulation`, and waits only if these are not ready.

        Returns scalar tensors of this process, means over the parts: each loss term (unweighted), `loss` (the weighted
        sum without the metric term and the network's own terms, as in validation), `metric`, `discriminator`, the
        gradient norms and the learning rate.
        """
        optim = self.config.optim
        lr = learning_rate(optim, epoch, self.global_step, last_step)
        statistics = [buffer.clone() for buffer in self.statistics]
        finite = torch.ones((), dtype=torch.bool, device=self.group.device)
        self.optimizer.zero_grad()
        parts: list[dict[str, Tensor]] = []
        for index, part in enumerate(batch.split(self.config.train.accumulation)):
            logs, discriminator_finite = self._learn(part, index, epoch, lr)
            parts.append(logs)
            finite = finite & discriminator_finite
        logs = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        norm, updated = _update(self.network, self.optimizer, lr, optim.grad_clip)
        for buffer, before in zip(self.statistics, statistics, strict=True):
            buffer.copy_(buffer.where(updated, before))
        if self.ema_model:
            # The first update copies the weights; a skipped step leaves the average as it is.
            weight = torch.where(self.ema_updates == 0, 1.0, 1 - optim.ema_decay) * updated
            for average, parameter in zip(self.ema_model.parameters(), self.network.parameters(), strict=True):
                average.lerp_(parameter.detach(), weight.to(average.dtype))
            # As in `torch.optim.swa_utils.AveragedModel`, buffers are those of the network, not averages.
            for average, buffer in zip(self.ema_statistics, self.statistics, strict=True):
                average.copy_(buffer)
            self.ema_updates += updated

        finite = finite & updated
        self.skipped_steps += ~finite
        self.skipped_in_a_row = torch.where(finite, 0, self.skipped_in_a_row + 1)
        self.global_step += 1
        return logs | {"gradient_norm": norm, "learning_rate": torch.tensor(lr)}

    def _learn(self, batch: Batch, part: int, epoch: int, lr: float) -> tuple[dict[str, Tensor], Tensor]:
        """Train the discriminator on a part of a batch, and add the generator's gradient to that of the other parts.

        Returns the logs of `step`, and whether the discriminator's gradient is finite (bool tensor).
        """
        batch_size = len(batch.indices)
        accumulation = self.config.train.accumulation

        clean_wav, noisy_wav = self._to_device(batch.clean), self._to_device(batch.noisy)
        with torch.no_grad():
            clean = Speech(clean_wav, self.spectrogram(clean_wav))
            noisy_spectra = self.spectrogram(noisy_wav)
        enhanced, own_terms = self._enhance(self.ddp_network, noisy_spectra, clean_wav, epoch)
        judged = self.spectrogram(enhanced.wav) if self.config.train.metric_reanalysed else enhanced.spectra

        logs: dict[str, Tensor] = {}
        finite = torch.ones((), dtype=torch.bool, device=self.group.device)
        with_metric = self.discriminator is not None and self.global_step >= self.config.train.metric_start
        if with_metric:
            # Discriminator: D(clean, clean) → 1, D(clean, enhanced) → (PESQ − 1) / 3.5
            assert self.labeler and self.discriminator and self.ddp_discriminator and self.discriminator_optimizer
            futures = self.labeler.submit(batch.clean, enhanced.wav.detach())
            labeled = PesqBatch(clean.spectra.mag, judged.mag.detach(), futures)
            if self.config.train.metric_lag == 1:
                labeled, self.pending_batch = self.pending_batch, labeled
            clean_mags, mags = [clean.spectra.mag], [clean.spectra.mag]
            dropout = [self.dropout(_CLEAN, batch_size, part)]
            targets = [torch.ones(batch_size, device=self.group.device)]
            if labeled:  # with metric_lag 1 there is no previous batch in the first step
                clean_mags.append(labeled.clean_mag)
                mags.append(labeled.enhanced_mag)
                dropout.append(self.dropout(_LABELED, batch_size, part))
                targets.append(self._labels(labeled))
            d_score = self.ddp_discriminator(torch.cat(clean_mags), torch.cat(mags), torch.cat(dropout))
            target = torch.cat(targets)
            # A crop without a label has no error but counts in the mean, which is then the same in any number of
            # processes.
            target = target.where(target.isfinite(), d_score.detach())
            d_loss = (d_score - target).square().sum() / batch_size
            self.discriminator_optimizer.zero_grad()
            d_loss.backward()
            d_norm, finite = _update(self.discriminator, self.discriminator_optimizer, lr)
            logs |= {"discriminator": d_loss.detach(), "discriminator_gradient_norm": d_norm}

        # Generator
        target = clean
        if self.teacher and batch.dry.any():
            share = self.config.train.distillation * self._to_device(batch.dry)[:, None].to(clean_wav.dtype)
            target_wav = torch.lerp(clean_wav, self._teach(self.teacher, noisy_wav), share)
            target = Speech(target_wav, self.spectrogram(target_wav))
        terms = loss_terms(self.config.loss, target, enhanced, self.spectrogram)
        loss = weighted_sum(self.config.loss, terms)
        logs |= {name: term.detach() for name, term in (terms | own_terms).items()} | {"loss": loss.detach()}
        if own_terms:
            loss = loss + weighted_sum(self.config.loss, own_terms)
        if with_metric:
            assert self.discriminator
            self.discriminator.requires_grad_(False)
            d_score = self.discriminator(clean.spectra.mag, judged.mag, self.dropout(_METRIC, batch_size, part))
            self.discriminator.requires_grad_(True)
            metric = functional.mse_loss(d_score, torch.ones_like(d_score))
            loss = loss + self.config.loss.metric * metric
            logs["metric"] = metric.detach()
        (loss / accumulation).backward()
        return logs, finite

    def _enhance(
        self, network: nn.Module, noisy: AnySpectra, clean_wav: Tensor, epoch: int | None = None
    ) -> tuple[Speech, dict[str, Tensor]]:
        """Enhance spectra; the waveforms `[B, N]` have the shape and the data type of the clean ones.

        With an epoch, also return the loss terms that the network computes itself.
        """
        own_terms: dict[str, Tensor] = {}
        with self._autocast():
            if self.config.model.own_terms and epoch is not None:
                enhanced, own_terms = network(noisy, clean_wav, epoch)
            else:
                enhanced = network(noisy)
        spectra = type(noisy)(*(part.to(clean_wav.dtype) for part in enhanced))
        return Speech(self.spectrogram.inverse(spectra, clean_wav.shape[-1]), spectra), own_terms

    def _teach(self, teacher: Enhancer, noisy_wav: Tensor) -> Tensor:
        """Return the teacher's output for waveforms `[B, N]`, at the level it expects and back."""
        gain = noisy_wav.new_ones(1)
        if teacher.normalize_level:
            gain = torch.rsqrt(noisy_wav.square().mean(dim=1, keepdim=True) + SILENT_POWER)
        with torch.no_grad(), self._autocast():
            return teacher.enhance_batch(noisy_wav * gain).to(noisy_wav.dtype) / gain

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.group.device.type, torch.bfloat16, enabled=self.bf16)

    def dropout(self, use: int, batch_size: int, part: int = 0) -> Tensor:
        """Return this process's rows `[batch_size, HIDDEN]` of the dropout factors of all processes."""
        parts = self.global_step * self.config.train.accumulation + part
        seed = np.random.SeedSequence([self.config.train.seed, 3 * parts + use])
        factors = dropout_factors(batch_size * self.group.ranks, int(seed.generate_state(1, np.uint64)[0] >> 1))
        return self._to_device(factors[self.group.rank * batch_size : (self.group.rank + 1) * batch_size])

    def _labels(self, batch: PesqBatch) -> Tensor:
        """Wait for the labels of a batch, if they have not been collected yet."""
        if not isinstance(batch.labels, Tensor):
            assert self.labeler
            labels = self.labeler.collect(batch.labels)
            self.unlabeled_crops += int(np.isnan(labels).sum())
            batch.labels = self._to_device(labels)
        return batch.labels

    def _to_device(self, values: np.ndarray | Tensor) -> Tensor:
        """Copy to the device without waiting for it."""
        tensor = torch.as_tensor(values)
        if self.group.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.group.device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, in the same form in all processes; waits for labels."""
        pending = None
        if self.pending_batch:
            pending = {
                "clean_mag": self.pending_batch.clean_mag.cpu(),
                "enhanced_mag": self.pending_batch.enhanced_mag.cpu(),
                "labels": self._labels(self.pending_batch).cpu(),
            }
        return {name: part.state_dict() for name, part in self._parts().items()} | {
            "global_step": self.global_step,
            "ema_updates": self.ema_updates,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "unlabeled_crops": self.unlabeled_crops,
            "pending": self.group.gather(pending),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; raises `KeyError`, `RuntimeError` or `ValueError` if it does not fit."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.global_step, self.unlabeled_crops = state["global_step"], state["unlabeled_crops"]
        for name in ("ema_updates", "skipped_steps", "skipped_in_a_row"):
            setattr(self, name, state[name].to(self.group.device))
        if len(state["pending"]) != self.group.ranks:
            raise ValueError(f"it is from {len(state['pending'])} processes, not {self.group.ranks}")
        if pending := state["pending"][self.group.rank]:
            self.pending_batch = PesqBatch(**{name: values.to(self.group.device) for name, values in pending.items()})

    def _parts(self) -> dict[str, Any]:
        parts = {
            "network": self.network,
            "optimizer": self.optimizer,
            "discriminator": self.discriminator,
            "discriminator_optimizer": self.discriminator_optimizer,
            "ema_model": self.ema_model,
        }
        return {name: part for name, part in parts.items() if part is not None}


def _saved_buffers(network: nn.Module) -> list[Tensor]:
    """Return the buffers that change in training: those in the state dict, not constant tables."""
    saved = network.state_dict()
    return [buffer for name, buffer in network.named_buffers() if name in saved]


def learning_rate(optim: OptimConfig, epoch: int, step: int, last_step: int) -> float:
    """Return the learning rate by `optim.schedule`, after linear warmup over `warmup_steps` steps."""
    warmup = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
    if optim.schedule == "exponential":
        return optim.learning_rate * optim.lr_decay**epoch * warmup
    done = max(step - optim.warmup_steps, 0) / max(last_step - optim.warmup_steps, 1)
    left = max(1 - done, 0.0)
    return optim.learning_rate * warmup * (left if optim.schedule == "linear" else math.sin(left * math.pi / 2) ** 2)


def _adamw(network: nn.Module, optim: OptimConfig) -> AdamW:
    betas = optim.adam_b1, optim.adam_b2
    # Only the fused form can skip a step on the device, see `_update`.
    return AdamW(network.parameters(), optim.learning_rate, betas, weight_decay=optim.weight_decay, fused=True)


def _update(network: nn.Module, optimizer: AdamW, lr: float, grad_clip: float = 0.0) -> tuple[Tensor, Tensor]:
    """Take an optimizer step; return the gradient norm before clipping, and whether it is finite (bool tensor).

    If not, weights, moments and step counts stay as they are, through `found_inf`, by which `torch.amp.GradScaler`
    makes fused optimizers skip a step without waiting for the device.
    """
    norm = nn.utils.get_total_norm([weight.grad for weight in network.parameters() if weight.grad is not None])
    finite = norm.isfinite()
    if grad_clip > 0:
        nn.utils.clip_grads_with_norm_(network.parameters(), grad_clip, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.found_inf = (~finite).float()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    return norm, finite
