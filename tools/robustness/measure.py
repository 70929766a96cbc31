"""Trials through networks and metrics: enhanced here, scored in other processes, kept condition by condition.

A condition that is done is a file in the folder `parts` of the output; a run that was killed goes on behind it. The
file says what it was made of, so that other settings, files or checkpoints make it anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from enhance.enhancer import Enhancer
from metrics.score import METRICS, score_signals
from metrics.signals import ScoreError
from tools.robustness.mixes import Trial
from tools.robustness.plan import Condition
from utils.atomic import write_text_atomically
from utils.processes import run_in_processes

_VERSION = 1
"""Goes up when the same settings make other mixes or scores."""

_NOTHING: dict[str, float] = {**dict.fromkeys(METRICS, math.nan)}

Make = Callable[[Condition, int], Trial]


@dataclass(frozen=True)
class TrialScores:
    """The scores of one utterance: noisy, and by checkpoint; why some are NaN, in `reason`."""

    id: str
    noisy: Mapping[str, float]
    enhanced: Mapping[str, Mapping[str, float]]
    reason: str = ""


class Job(NamedTuple):
    """What a process scores: signals `[N]`, those that come out by checkpoint."""

    id: str
    reference: np.ndarray
    noisy: np.ndarray
    enhanced: Mapping[str, np.ndarray]


def enhance(enhancer: Enhancer, noisy: np.ndarray) -> np.ndarray:
    """Samples `[N]` as inference.py enhances them by default, in float64."""
    return enhancer.enhance_signal(noisy).astype(np.float64)


def score(job: Job) -> TrialScores:
    """All metrics of noisy and enhanced against the reference."""
    reasons: list[str] = []
    noisy = _score("noisy", job.reference, job.noisy, reasons)
    enhanced = {name: _score(name, job.reference, signal, reasons) for name, signal in job.enhanced.items()}
    return TrialScores(job.id, noisy, enhanced, "; ".join(reasons))


def _score(name: str, reference: np.ndarray, signal: np.ndarray, reasons: list[str]) -> dict[str, float]:
    try:
        values, failures = score_signals(reference, signal, "published")
    except ScoreError as error:
        values, failures = _NOTHING.copy(), [str(error)]
    reasons += [f"{name}: {failure}" for failure in failures]
    if np.array_equal(reference, signal):
        values["si_sdr"] = math.nan  # no distortion, no ratio: 156 dB would drown all other files
    return values


class _Jobs(Sequence[Job]):
    """Mixed and enhanced when they are asked for, while the processes score those before."""

    def __init__(self, places: Sequence[tuple[Condition, int]], make: Make, enhancers: Mapping[str, Enhancer]) -> None:
        self._places = places
        self._make = make
        self._enhancers = enhancers

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Job:  # pyright: ignore[reportIncompatibleMethodOverride] (no slices)
        trial = self._make(*self._places[index])
        enhanced = {name: enhance(enhancer, trial.noisy) for name, enhancer in self._enhancers.items()}
        return Job(trial.id, trial.reference, trial.noisy, enhanced)


def measure(
    conditions: Mapping[Condition, int],
    make: Make,
    enhancers: Mapping[str, Enhancer],
    parts: Path,
    settings: object,
    jobs: int,
    quiet: bool,
) -> dict[Condition, list[TrialScores]]:
    """The scores of each condition, which has so many utterances; `settings` (JSON) is all that decides on them.

    Raises what `make` raises, and `OSError` where a part cannot be written.
    """
    files = {condition: _Part(parts, condition, settings) for condition in conditions}
    done = {condition: scores for condition, part in files.items() if (scores := part.read()) is not None}
    places = [
        (condition, index)
        for condition in conditions
        if condition not in done
        for index in range(conditions[condition])
    ]
    found: dict[Condition, dict[int, TrialScores]] = {}
    results = _score_all(places, make, enhancers, jobs)
    with tqdm(total=sum(conditions.values()), unit="mix", disable=quiet) as bar:
        bar.update(bar.total - len(places))
        for condition, index, scored in results:
            scores = found.setdefault(condition, {})
            scores[index] = scored
            bar.update()
            if len(scores) == conditions[condition]:
                done[condition] = [scores[place] for place in sorted(scores)]
                files[condition].write(done[condition])
    return {condition: done[condition] for condition in conditions}


def _score_all(
    places: Sequence[tuple[Condition, int]], make: Make, enhancers: Mapping[str, Enhancer], jobs: int
) -> Iterator[tuple[Condition, int, TrialScores]]:
    for place, result in run_in_processes(score, _Jobs(places, make, enhancers), jobs):
        if isinstance(result, BaseException):
            id_ = make(*places[place]).id
            result = TrialScores(id_, _NOTHING, dict.fromkeys(enhancers, _NOTHING), " ".join(str(result).split()))
        yield *places[place], result


class _Part:
    """The file of one condition's scores."""

    def __init__(self, folder: Path, condition: Condition, settings: object) -> None:
        content = json.dumps([_VERSION, condition.key, settings], sort_keys=True)
        self._fingerprint = hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()
        self._path = folder / f"{hashlib.sha256(condition.key.encode()).hexdigest()[:16]}.json"

    def read(self) -> list[TrialScores] | None:
        """The scores, or None where they are not there or of something else."""
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            if content["fingerprint"] != self._fingerprint:
                return None
            return [TrialScores(**each) for each in content["rows"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, scores: Sequence[TrialScores]) -> None:
        """Keep the scores; raises `OSError`."""
        content = {"fingerprint": self._fingerprint, "rows": [each.__dict__ for each in scores]}
        write_text_atomically(self._path, json.dumps(content) + "\n")
