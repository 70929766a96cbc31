"""Validation: enhance whole utterances and score them with PESQ, STOI and the training losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from config import Config
from data.dataset import EvalPair, fit_segment
from data.levels import mean_power, unit_power_gain
from enhance.enhancer import Enhancer
from models.losses import Speech, loss_terms, weighted_sum
from models.stft import Spectrogram
from training.scores import score_all
from utils.distributed import Group


@dataclass(frozen=True)
class Validated:
    """Result of a validation.

    scores: mean of each score over the utterances that have it, in all processes.
    unscored: number of utterances without PESQ.
    enhanced: enhanced signals `[N]` of this process.
    """

    scores: Mapping[str, float]
    unscored: int
    enhanced: Sequence[np.ndarray]


class Validation:
    """Validation utterances, divided over the processes of a run.

    PESQ and STOI are those of whole utterances, enhanced with `protocol`, or the network's default one (`Enhancer`).
    The losses are comparable with the training losses of the same name: they are computed from the network's own output
    spectra of one crop of `data.segment_size` samples per utterance, from its middle, at the level of a training crop;
    `loss` is the weighted sum without the metric term.
    """

    def __init__(self, pairs: Sequence[EvalPair], config: Config, protocol: str | None, group: Group) -> None:
        self.pairs, self.config, self.protocol, self.group = pairs, config, protocol, group
        self.own = range(group.rank, len(pairs), group.ranks)

    @torch.inference_mode()
    def run(self, network: nn.Module) -> Validated:
        """Enhance and score all utterances; returns the same scores in every process."""
        self.group.share_buffers(network)  # only rank 0 saves the network
        was_training = network.training
        enhancer = Enhancer(network.eval(), self.config).to(self.group.device)
        pairs = [self.pairs[index] for index in self.own]
        enhanced: list[np.ndarray] = []
        for first in range(0, len(pairs), enhancer.batch_size):
            noisy = [pair.noisy for pair in pairs[first : first + enhancer.batch_size]]
            enhanced += enhancer.enhance_signals(noisy, self.protocol)
        losses = [self._losses(network, enhancer.spectrogram, pair) for pair in pairs]
        network.train(was_training)

        scores = score_all([(pair.clean, wav) for pair, wav in zip(pairs, enhanced, strict=True)])
        rows = [terms | score for terms, score in zip(losses, scores, strict=True)]
        rows = [row for part in self.group.gather(rows) for row in part]
        means: dict[str, float] = {}
        for name in rows[0]:
            values = [row[name] for row in rows if not math.isnan(row[name])]
            means[name] = float(np.mean(values)) if values else math.nan
        return Validated(means, sum(math.isnan(row["pesq"]) for row in rows), enhanced)

    def _losses(self, network: nn.Module, spectrogram: Spectrogram, pair: EvalPair) -> dict[str, float]:
        segment = self.config.data.segment_size
        start = max(len(pair.noisy) - segment, 0) // 2
        gain = unit_power_gain(mean_power(pair.noisy)) if self.config.data.normalize_level else 1.0
        if mix := self.config.mix:
            gain *= 10 ** ((mix.gain_low + mix.gain_high) / 40)  # the mean of the training gains in dB

        def crop(signal: np.ndarray) -> Tensor:
            return torch.from_numpy(fit_segment(signal[start:], segment) * np.float32(gain))[None].to(self.group.device)

        clean_wav = crop(pair.clean)
        clean = Speech(clean_wav, spectrogram(clean_wav))
        spectra = network(spectrogram(crop(pair.noisy)))
        enhanced = Speech(spectrogram.inverse(spectra, segment), spectra)
        terms = loss_terms(self.config.loss, clean, enhanced, spectrogram)
        terms["loss"] = weighted_sum(self.config.loss, terms)
        return {name: float(term) for name, term in terms.items()}
