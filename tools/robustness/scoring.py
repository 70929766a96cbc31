"""Enhance and score the mixes of all conditions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from enhance.enhancer import Enhancer
from metrics.score import METRICS, score_signals
from metrics.signals import ScoreError
from tools.robustness.conditions import Condition
from tools.robustness.mixes import Mix
from utils.processes import run_in_processes


@dataclass(frozen=True)
class Scores:
    """Metrics of one utterance: of the noisy signal, and of the enhanced signal by checkpoint.

    reason: why some are NaN.
    """

    id: str
    noisy: Mapping[str, float]
    enhanced: Mapping[str, Mapping[str, float]]
    reason: str = ""


class Job(NamedTuple):
    """Signals `[N]` to score: the reference, and by name the noisy and enhanced ones."""

    id: str
    reference: np.ndarray
    signals: Mapping[str, np.ndarray]


def score(job: Job) -> Scores:
    """Compute all metrics of the signals of a job; the first one is the noisy signal."""
    values: list[dict[str, float]] = []
    reasons: list[str] = []
    for name, signal in job.signals.items():
        try:
            metrics, failures = score_signals(job.reference, signal, "published")
        except ScoreError as error:
            metrics, failures = dict.fromkeys(METRICS, math.nan), [str(error)]
        if np.array_equal(job.reference, signal):
            metrics["si_sdr"] = math.nan  # without distortion the ratio is infinite
        values.append(metrics)
        reasons += [f"{name}: {failure}" for failure in failures]
    noisy, *enhanced = values
    return Scores(job.id, noisy, dict(zip(list(job.signals)[1:], enhanced, strict=True)), "; ".join(reasons))


class Jobs(Sequence[Job]):
    """The jobs of places (condition, index), each made on access, so that few are in memory."""

    def __init__(
        self,
        places: Sequence[tuple[Condition, int]],
        make: Callable[[Condition, int], Mix],
        enhancers: Mapping[str, Enhancer],
    ) -> None:
        self.places, self.make, self.enhancers = places, make, enhancers

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Job:  # pyright: ignore[reportIncompatibleMethodOverride] (no slices)
        """Mix and enhance."""
        mix = self.make(*self.places[index])
        signals = {"noisy": mix.noisy}
        for name, enhancer in self.enhancers.items():
            signals[name] = enhancer.enhance_signal(mix.noisy).astype(np.float64)
        return Job(mix.id, mix.reference, signals)


def measure(
    conditions: Mapping[Condition, int],
    make: Callable[[Condition, int], Mix],
    enhancers: Mapping[str, Enhancer],
    workers: int,
    quiet: bool,
) -> dict[Condition, list[Scores]]:
    """Return the scores of each condition, which has the given number of utterances.

    This process mixes and enhances while `workers` processes score. Raises the exceptions of `make`.
    """
    places = [(condition, index) for condition, count in conditions.items() for index in range(count)]
    scores: dict[tuple[Condition, int], Scores] = {}
    with tqdm(total=len(places), unit="mix", disable=quiet) as bar:
        for number, result in run_in_processes(score, Jobs(places, make, enhancers), workers):
            if isinstance(result, BaseException):
                nothing = dict.fromkeys(METRICS, math.nan)
                reason = " ".join(str(result).split())
                result = Scores(make(*places[number]).id, nothing, dict.fromkeys(enhancers, nothing), reason)
            scores[places[number]] = result
            bar.update()
    return {condition: [scores[condition, index] for index in range(count)] for condition, count in conditions.items()}
