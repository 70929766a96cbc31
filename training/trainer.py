"""One training step: enhance a batch, teach the discriminator the PESQ of the result, improve the generator.

    trainer = Trainer(config, group, labels)
    figures = trainer.step(batch, epoch)        # every loss term and gradient norm by name

The step computes; the loop in train.py decides when, and logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from config import Config, OptimConfig
from data.dataset import Batch
from models import build
from models.discriminator import MetricDiscriminator, dropout_factors
from models.losses import Speech, loss_terms, weighted_sum
from models.stft import Spectra, Spectrogram
from training.pesq_labels import Pending, PesqLabeler
from training.state import fitted, load_optimizer
from utils.distributed import Group

_DROPOUTS_A_STEP = 3
_COUNTS = ("global_step", "skipped", "skipped_in_a_row", "unlabelled")


@dataclass
class Labelled:
    """A batch on its way to its PESQ labels: the magnitudes that the discriminator will see, and the labels."""

    clean_mag: Tensor
    enhanced_mag: Tensor
    pending: Pending | None = None
    labels: Tensor | None = None


class Trainer:
    """Networks and optimisers of a run, and the step that changes them.

    Everything random in a step follows from the seed and the step's number, so that a resumed run needs no random
    states. `labels` may be None where the configuration gives the metric loss no weight.
    """

    def __init__(self, config: Config, group: Group, labels: PesqLabeler | None) -> None:
        self.config, self.group, self.labels = config, group, labels
        self.spectrogram = Spectrogram(config.stft).to(group.device)
        self.global_step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.unlabelled = 0
        with torch.random.fork_rng():
            torch.manual_seed(config.train.seed)
            self.network = build(config).to(group.device)
            self.discriminator = MetricDiscriminator().to(group.device) if labels else None
        self.optimizer = _optimizer(self.network, config.optim)
        self.discriminator_optimizer = _optimizer(self.discriminator, config.optim) if self.discriminator else None
        self.average: AveragedModel | None = None
        if config.optim.ema_decay > 0:
            self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(config.optim.ema_decay))
        # Crops have one shape; a graph for any shape would be slower.
        compiled = torch.compile(self.network, dynamic=False) if config.train.compile else self.network
        self._network = group.wrap(compiled)  # pyright: ignore[reportArgumentType]
        self._discriminator = group.wrap(self.discriminator) if self.discriminator else None
        self._waiting: Labelled | None = None

    @property
    def eval_model(self) -> nn.Module:
        """The network to validate and keep: its averaged weights where they are kept, else the last ones."""
        return self.average.module if self.average else self.network

    def load_weights(self, network: nn.Module) -> None:
        """Take over another network's weights; raises `RuntimeError` where they are of another shape."""
        self.network.load_state_dict(network.state_dict())
        if self.average:
            self.average.module.load_state_dict(network.state_dict())

    def step(self, batch: Batch, epoch: int) -> dict[str, float]:
        """Change the weights by one batch; returns each loss term, the gradient norms and the learning rate.

        A network whose gradient is not finite stays as it is; `skipped` and `skipped_in_a_row` count such steps.
        """
        rate = learning_rate(self.config.optim, epoch, self.global_step)
        figures: dict[str, Tensor] = {}
        clean, enhanced = self._enhance(batch)
        taught = self._teach_discriminator(batch, clean, enhanced, rate, figures) if self.labels else True
        terms = loss_terms(self.config.loss, clean, enhanced, self.spectrogram)
        if self.discriminator:
            self.discriminator.requires_grad_(False)
            opinion = self.discriminator(clean.spectra.mag, enhanced.spectra.mag, self._dropout(2, len(batch.indices)))
            terms["metric"] = functional.mse_loss(opinion, torch.ones_like(opinion))
            self.discriminator.requires_grad_(True)
        loss = weighted_sum(self.config.loss, terms)
        self.optimizer.zero_grad()
        loss.backward()
        norm, finite = _update(self.network, self.optimizer, rate, self.config.optim.grad_clip)
        if finite and self.average:
            self.average.update_parameters(self.network)
        finite = finite and taught
        self.skipped += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        self.global_step += 1
        figures |= {"loss": loss, **terms, "gradient_norm": norm}
        return self.group.mean(figures) | {"learning_rate": rate}

    def _enhance(self, batch: Batch) -> tuple[Speech, Speech]:
        device = self.group.device
        clean_wav, noisy_wav = (torch.from_numpy(wav).to(device) for wav in (batch.clean, batch.noisy))
        with torch.no_grad():
            clean, noisy = self.spectrogram(clean_wav), self.spectrogram(noisy_wav)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.train.bf16):
            enhanced = self._network(noisy)
        enhanced = Spectra(enhanced.mag.to(noisy.mag.dtype), enhanced.pha.to(noisy.pha.dtype))
        return Speech(clean_wav, clean), Speech(self.spectrogram.inverse(enhanced, clean_wav.shape[-1]), enhanced)

    def _teach_discriminator(
        self, batch: Batch, clean: Speech, enhanced: Speech, rate: float, figures: dict[str, Tensor]
    ) -> bool:
        """Minimise MSE(D(clean, clean), 1) + MSE(D(clean, enhanced), label); returns whether the gradient was finite.

        A crop without a label has no part in the second term.
        """
        assert self.labels and self._discriminator and self.discriminator_optimizer and self.discriminator
        current = Labelled(clean.spectra.mag, enhanced.spectra.mag.detach())
        current.pending = self.labels.submit(batch.clean, enhanced.wav.detach().cpu().numpy())
        judged, self._waiting = (current, None) if self.config.train.metric_lag == 0 else (self._waiting, current)
        rows = len(clean.wav)
        pairs = [(clean.spectra.mag, clean.spectra.mag)]
        dropout = [self._dropout(0, rows)]
        targets = [torch.ones(rows, device=self.group.device)]
        if judged:
            pairs.append((judged.clean_mag, judged.enhanced_mag))
            dropout.append(self._dropout(1, rows))
            targets.append(self._labels_of(judged))
        estimate = self._discriminator(
            torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]), torch.cat(dropout)
        )
        target = torch.cat(targets)
        # The mean is over all crops, with a label or without, so that it is the same in one process and in many.
        errors = (estimate - target.where(target.isfinite(), estimate.detach())).square()
        loss = errors.sum() / rows
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        norm, finite = _update(self.discriminator, self.discriminator_optimizer, rate, 0.0)
        figures |= {"discriminator": loss, "discriminator_gradient_norm": norm}
        return finite

    def _labels_of(self, batch: Labelled) -> Tensor:
        """Wait for the labels `[B]`, NaN where there is none."""
        if batch.labels is None:
            assert self.labels and batch.pending
            labels = torch.from_numpy(self.labels.collect(batch.pending))
            self.unlabelled += int(labels.isnan().sum())
            batch.labels = labels.to(self.group.device)
        return batch.labels

    def _dropout(self, use: int, rows: int) -> Tensor:
        """Dropout for one of the discriminator's uses in this step: this process' rows of those for all."""
        seed = np.random.SeedSequence([self.config.train.seed, self.global_step * _DROPOUTS_A_STEP + use])
        factors = dropout_factors(rows * self.group.ranks, int(seed.generate_state(1, np.uint64)[0] >> 1))
        return factors[self.group.rank * rows : (self.group.rank + 1) * rows].to(self.group.device)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on; waits for labels that are on their way."""
        waiting = None
        if self._waiting:
            labels = self._labels_of(self._waiting)
            waiting = {
                "clean_mag": self._waiting.clean_mag.cpu(),
                "enhanced_mag": self._waiting.enhanced_mag.cpu(),
                "labels": labels.cpu(),
            }
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        for name, part in self._parts().items():
            if isinstance(part, Optimizer):
                del parts[name]["param_groups"]  # the configuration's, with each step's learning rate
        counts = {name: getattr(self, name) for name in _COUNTS}
        return parts | counts | {"waiting": self.group.gather(waiting)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; raises `KeyError` or `ValueError` at another's, and at anything else."""
        for name, part in self._parts().items():
            if isinstance(part, Optimizer):
                load_optimizer(part, state[name], name)
            else:
                part.load_state_dict(fitted(state[name], part.state_dict(), name))
        for name in _COUNTS:
            setattr(self, name, fitted(state[name], 0, name))
        waiting = state["waiting"]
        if type(waiting) is not list or len(waiting) != self.group.ranks:
            raise ValueError("waiting: of another number of processes")
        if waiting[self.group.rank] is not None:
            train, segment = self.config.train, self.config.data.segment_size
            mag = self.spectrogram(torch.zeros(train.batch_size, segment, device=self.group.device)).mag
            expected = {"clean_mag": mag, "enhanced_mag": mag, "labels": torch.zeros(train.batch_size)}
            own = fitted(waiting[self.group.rank], expected, "waiting")
            self._waiting = Labelled(**{name: tensor.to(self.group.device) for name, tensor in own.items()})

    def _parts(self) -> dict[str, Any]:
        parts = {
            "network": self.network,
            "optimizer": self.optimizer,
            "discriminator": self.discriminator,
            "discriminator_optimizer": self.discriminator_optimizer,
            "average": self.average,
        }
        return {name: part for name, part in parts.items() if part is not None}


def learning_rate(optim: OptimConfig, epoch: int, step: int) -> float:
    """Exponential decay by epochs, after a linear rise over the first `warmup_steps` steps."""
    warmup = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
    return optim.learning_rate * optim.lr_decay**epoch * warmup


def _optimizer(network: nn.Module, optim: OptimConfig) -> AdamW:
    betas = optim.adam_b1, optim.adam_b2
    return AdamW(network.parameters(), lr=optim.learning_rate, betas=betas, weight_decay=optim.weight_decay)


def _update(network: nn.Module, optimizer: AdamW, rate: float, clip: float) -> tuple[Tensor, bool]:
    """Step the optimiser unless a gradient is not finite; returns the gradient's norm, and whether it did."""
    norm = nn.utils.clip_grad_norm_(network.parameters(), clip or float("inf"))
    finite = bool(norm.isfinite())
    if finite:
        for parameters in optimizer.param_groups:
            parameters["lr"] = rate
        optimizer.step()
    return norm, finite
