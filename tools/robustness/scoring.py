"""Enhance and score the mixes of all conditions, keeping finished conditions on disk.

Each finished condition is a file in the folder `parts`, with a fingerprint of the settings, files and checkpoints it
was made with; an interrupted run continues with the others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from enhance.enhancer import Enhancer
from metrics.score import METRICS, score_signals
from metrics.signals import ScoreError
from tools.robustness.conditions import Condition
from tools.robustness.mixes import Mix
from utils.atomic import write_text_atomically
from utils.processes import run_in_processes

VERSION = 1
"""Increment when the same settings give other mixes or scores."""


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
    parts: Path,
    settings: object,
    workers: int,
    quiet: bool,
) -> dict[Condition, list[Scores]]:
    """Return the scores of each condition, which has the given number of utterances.

    `settings` (JSON) is all that the scores depend on besides the condition. This process mixes and enhances while
    `workers` processes score. Raises `OSError` if a part cannot be written, and the exceptions of `make`.
    """
    paths: dict[Condition, Path] = {}
    fingerprints: dict[Condition, str] = {}
    done: dict[Condition, list[Scores]] = {}
    for condition in conditions:
        content = json.dumps([VERSION, condition.key, settings], sort_keys=True)
        fingerprints[condition] = hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()
        paths[condition] = parts / f"{hashlib.sha256(condition.key.encode()).hexdigest()[:16]}.json"
        try:
            part = json.loads(paths[condition].read_text(encoding="utf-8"))
            if part["fingerprint"] == fingerprints[condition]:
                done[condition] = [Scores(**row) for row in part["rows"]]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # missing, cut short, or of another version

    places = [(condition, index) for condition in conditions if condition not in done
              for index in range(conditions[condition])]  # fmt: skip
    found: dict[Condition, dict[int, Scores]] = {condition: {} for condition in conditions}
    with tqdm(total=sum(conditions.values()), unit="mix", disable=quiet) as bar:
        bar.update(bar.total - len(places))
        for number, result in run_in_processes(score, Jobs(places, make, enhancers), workers):
            condition, index = places[number]
            if isinstance(result, BaseException):
                nothing = dict.fromkeys(METRICS, math.nan)
                reason = " ".join(str(result).split())
                result = Scores(make(condition, index).id, nothing, dict.fromkeys(enhancers, nothing), reason)
            found[condition][index] = result
            bar.update()
            if len(found[condition]) == conditions[condition]:
                done[condition] = [row for _, row in sorted(found[condition].items())]
                part = {"fingerprint": fingerprints[condition], "rows": [asdict(row) for row in done[condition]]}
                write_text_atomically(paths[condition], json.dumps(part) + "\n")
    return {condition: done[condition] for condition in conditions}
