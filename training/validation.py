"""Validation: whole held-out utterances, enhanced as a user would, scored with PESQ, STOI and every loss term."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from config import Config
from data.dataset import EvalPair
from enhance.enhancer import Enhancer, LevelMeter
from metrics.pesq import wideband_pesq
from metrics.signals import ScoreError, check_pair
from metrics.stoi import stoi
from models.losses import Speech, loss_terms, weighted_sum
from utils.distributed import Group
from utils.processes import available_cores, run_in_processes

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Validated:
    """The mean of each score over the utterances that have it, how many have no PESQ, and this process' results."""

    scores: Mapping[str, float]
    unscored: int
    enhanced: Sequence[np.ndarray]


class Validation:
    """The held-out utterances, divided over the processes of a run.

    examples: noisy and clean utterances at the configuration's rate; protocol: one of `enhance.windows.PROTOCOLS`.
    """

    def __init__(self, examples: Sequence[EvalPair], config: Config, protocol: str, group: Group) -> None:
        self.own = range(group.rank, len(examples), group.ranks)
        self.examples, self.config, self.protocol, self.group = examples, config, protocol, group

    @torch.inference_mode()
    def run(self, network: nn.Module) -> Validated:
        """Enhance and score all utterances; every process gets the same scores."""
        training = network.training
        enhancer = Enhancer(network.eval(), self.config).to(self.group.device)
        examples = [self.examples[index] for index in self.own]
        results = [self._enhance(enhancer, example) for example in examples]
        network.train(training)
        pairs = [(example.clean, wav) for example, (wav, _) in zip(examples, results, strict=True)]
        scores = score_all(pairs)
        rows = [terms | score for (_, terms), score in zip(results, scores, strict=True)]
        rows = [row for part in self.group.gather(rows) for row in part]
        columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        means = {name: _mean(values) for name, values in columns.items()}
        return Validated(means, int(np.isnan(columns["pesq"]).sum()), [wav for wav, _ in results])

    def _enhance(self, enhancer: Enhancer, example: EvalPair) -> tuple[np.ndarray, dict[str, float]]:
        """The enhanced utterance `[N]`, and its loss terms at the network's level, from the waveform's spectra."""
        enhanced = enhancer.enhance_signal(example.noisy, self.protocol)
        (factor,) = enhancer.factors(LevelMeter().measure([example.noisy[:, None]]))
        clean_speech, speech = (
            Speech(wav, enhancer.spectrogram(wav))
            for signal in (example.clean, enhanced)
            for wav in [torch.from_numpy(signal * factor)[None].to(self.group.device)]
        )
        terms = loss_terms(self.config.loss, clean_speech, speech, enhancer.spectrogram)
        terms["loss"] = weighted_sum(self.config.loss, terms)
        return enhanced, {name: float(term) for name, term in terms.items()}


def score_all(pairs: Sequence[Pair]) -> list[dict[str, float]]:
    """PESQ and STOI of pairs (clean, enhanced) `[N]` at 16 kHz, on all cores; NaN where there is none.

    A process that fails or dies costs its pair the scores, and says so, but does not end the run.
    """
    scores: list[dict[str, float]] = [{"pesq": math.nan, "stoi": math.nan} for _ in pairs]
    for index, result in run_in_processes(_score, pairs, available_cores()):
        if isinstance(result, dict):
            scores[index] = result
        else:
            tqdm.write(f"validation: utterance {index} could not be scored: {result}", file=sys.stderr)
    return scores


def _score(pair: Pair) -> dict[str, float]:
    scores = {"pesq": math.nan, "stoi": math.nan}
    for name, measure in (("pesq", wideband_pesq), ("stoi", stoi)):
        try:
            scores[name] = measure(*check_pair(*pair))
        except ScoreError:
            continue
    return scores


def _mean(values: np.ndarray) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else math.nan
