"""The recordings of a training run: each decoded once and kept in memory, for it is asked for every epoch.

They are kept as 16-bit integers, half of what the samples would take as float32, and what most corpora hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from cli import UserError
from config import DataConfig
from data.audio import AudioError, AudioReader, read_audio
from data.file_lists import Utterance
from data.levels import mean_power, unit_power_gain

_FULL_SCALE = 32_768
_PROBLEMS_SHOWN = 10


class AudioCache:
    """Audio files as mono signals at `rate` Hz, rounded to 16 bits; what is beyond full scale is clipped.

    With `keep` a decoded file stays in memory, else it is read anew each time: the samples are the same. Several
    threads may use one object; two that ask for a file at the same time may both decode it.
    """

    def __init__(self, rate: int, keep: bool) -> None:
        self._rate = rate
        self._keep = keep
        self._kept: dict[Path, np.ndarray] = {}

    @property
    def bytes_kept(self) -> int:
        """Memory that the kept files take."""
        return sum(samples.nbytes for samples in list(self._kept.values()))

    def samples(self, path: Path) -> np.ndarray:
        """The file as float32 `[N]` in ±1, its channels averaged; raises `AudioError`."""
        steps = self._kept.get(path)
        if steps is None:
            steps = self._decode(path)
            if self._keep:
                self._kept[path] = steps
        return steps.astype(np.float32) / _FULL_SCALE

    def load(self, paths: Iterable[Path], workers: int, quiet: bool) -> None:
        """Decode all files that will be kept, in `workers` threads, with a progress bar unless `quiet`.

        Raises `AudioError` with the number of files that cannot be used, and the first ten of them.
        """
        if not self._keep:
            return
        unique = list(dict.fromkeys(paths))
        pool = ThreadPoolExecutor(workers)
        try:
            results = tqdm(pool.map(self._problem, unique), total=len(unique), unit="file", disable=quiet)
            problems = [problem for problem in results if problem]
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the files that are left
        if problems:
            raise AudioError(list_problems(f"{len(problems)} of {len(unique)} files cannot be used", problems))

    def _problem(self, path: Path) -> str:
        """Keep a file; returns what is wrong with it, or nothing."""
        try:
            self.samples(path)
        except AudioError as error:
            return str(error)
        return ""

    def _decode(self, path: Path) -> np.ndarray:
        """The file's steps of 16 bits, int16 `[N]`."""
        samples, _ = read_audio(path, self._rate)
        steps = np.rint(samples.mean(axis=1) * _FULL_SCALE)
        return np.clip(steps, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def list_problems(summary: str, problems: Sequence[str]) -> str:
    """A message of one line that sums up, and a line for each of the first ten problems."""
    return "\n  ".join([f"{summary}:", *problems[:_PROBLEMS_SHOWN]])


_BATCHES_AHEAD = 2

# Sets these random numbers apart from all others drawn from the same seed.
_ORDER_STREAM = 1


class Crop(NamedTuple):
    """A piece of clean speech and the same piece with noise, at one level: float32 `[segment]` each."""

    clean: np.ndarray
    noisy: np.ndarray


class CropDataset(Protocol):
    """What batches are made of."""

    def __len__(self) -> int:
        """Crops an epoch."""
        ...

    def crop(self, epoch: int, index: int) -> Crop:
        """The same crop for the same numbers; raises `AudioError` where a file cannot be read."""
        ...


class EvalPair(NamedTuple):
    """A whole utterance for validation: float32 `[N]` each, at the level of the recording."""

    id: str
    clean: np.ndarray
    noisy: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Crops of one step: their indices `[B]`, and float32 `[B, segment]` clean and noisy."""

    indices: np.ndarray
    clean: np.ndarray
    noisy: np.ndarray


class PairedDataset:
    """Crops of `segment` samples from pairs of recordings, each pair once an epoch (IMSE paper's recipe).

    With `data.normalize_level` the whole noisy utterance is brought to a mean power of 1. Shorter utterances are
    followed by zeros.
    """

    def __init__(self, utterances: Sequence[Utterance], recordings: AudioCache, data: DataConfig, seed: int) -> None:
        self._utterances = utterances
        self._recordings = recordings
        self._data = data
        self._seed = seed

    def __len__(self) -> int:
        return len(self._utterances)

    def crop(self, epoch: int, index: int) -> Crop:
        """A random crop of the pair `index`; raises `AudioError`."""
        random = np.random.default_rng([self._seed, epoch, index])
        _, clean, noisy = _read_pair(self._utterances[index], self._recordings)
        factor = unit_power_gain(mean_power(noisy)) if self._data.normalize_level else np.float32(1)
        segment = self._data.segment_size
        start = random_start(random, len(noisy), segment)
        return Crop(*(fit_segment(signal[start:], segment) * factor for signal in (clean, noisy)))


class PairedUtterances(Sequence[EvalPair]):
    """Whole pairs of recordings, read when they are asked for; raises `AudioError` then."""

    def __init__(self, utterances: Sequence[Utterance], recordings: AudioCache) -> None:
        self._utterances = utterances
        self._recordings = recordings

    def __len__(self) -> int:
        return len(self._utterances)

    def __getitem__(self, index: int) -> EvalPair:  # pyright: ignore[reportIncompatibleMethodOverride] (no slices)
        return _read_pair(self._utterances[index], self._recordings)


def random_start(random: np.random.Generator, samples: int, segment: int) -> int:
    """Where a crop of `segment` samples begins in a signal of `samples`: anywhere that it fits, 0 if nowhere."""
    return int(random.integers(max(samples - segment, 0) + 1))


def fit_segment(signal: np.ndarray, segment: int) -> np.ndarray:
    """The first `segment` of samples `[N]`, followed by zeros where there are fewer."""
    return np.pad(signal[:segment], (0, max(segment - len(signal), 0)))


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch's crops: a permutation of `count` indices, another one each epoch."""
    return np.random.default_rng([seed, epoch, 0, _ORDER_STREAM]).permutation(count)


def steps_per_epoch(crops: int, total_batch: int) -> int:
    """Whole batches, over all processes, in an epoch; the crops that are left over wait for another order."""
    return crops // total_batch


def load_batches(
    source: CropDataset,
    seed: int,
    epoch: int,
    first_step: int,
    *,
    batch_size: int,
    rank: int,
    ranks: int,
    workers: int,
) -> Generator[Batch, None, None]:
    """The batches of an epoch from `first_step` on, built ahead in `workers` threads.

    A step takes the next `batch_size * ranks` crops of the epoch's order, of which process `rank` gets its
    consecutive part. Raises what a crop raises; closing the generator ends its threads.
    """
    order = epoch_order(seed, epoch, len(source))
    total = batch_size * ranks
    waiting: deque[tuple[np.ndarray, list[Future[Crop]]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for step in range(first_step, steps_per_epoch(len(source), total)):
            indices = order[step * total + rank * batch_size :][:batch_size]
            waiting.append((indices, [pool.submit(source.crop, epoch, int(index)) for index in indices]))
            # Small batches need more of them ahead to keep all threads busy.
            if len(waiting) > _BATCHES_AHEAD + workers // batch_size:
                yield _collect(*waiting.popleft())
        while waiting:
            yield _collect(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _collect(indices: np.ndarray, crops: Sequence[Future[Crop]]) -> Batch:
    clean, noisy = zip(*(crop.result() for crop in crops), strict=True)
    return Batch(indices, np.stack(clean), np.stack(noisy))


def check_pairs(utterances: Sequence[Utterance]) -> None:
    """Look at all files' headers before any work is done on them.

    Raises `UserError` with the number and the first ten of the files that are missing, or else of the pairs that
    cannot be decoded or differ in rate or length.
    """
    files = list(dict.fromkeys(path for utterance in utterances for path in (utterance.clean, utterance.noisy)))
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise UserError(list_problems(f"{len(missing)} of {len(files)} files are missing", missing))
    problems = [problem for utterance in utterances if (problem := _pair_problem(utterance))]
    if problems:
        summary = f"{len(problems)} of {len(utterances)} pairs cannot be used"
        raise UserError(list_problems(summary, problems))


def check_sound(utterances: Sequence[Utterance], recordings: AudioCache) -> None:
    """Raises `UserError` where all clean files are silent; reads no further than the first that is not."""
    if not any(recordings.samples(utterance.clean).any() for utterance in utterances):
        raise UserError(f"every crop is silent: the {len(utterances)} clean files hold nothing but zeros")


def _pair_problem(utterance: Utterance) -> str:
    """What the headers of a pair say against it, or nothing."""
    try:
        with AudioReader(utterance.clean) as clean, AudioReader(utterance.noisy) as noisy:
            rates = clean.format.rate, noisy.format.rate
            lengths = clean.frames, noisy.frames
    except AudioError as error:
        return str(error)
    if rates[0] != rates[1]:
        return f"{utterance.id}: clean and noisy differ in rate: {rates[0]} and {rates[1]} Hz"
    return _length_problem(utterance.id, *lengths)


def _length_problem(name: str, clean: int, noisy: int) -> str:
    return f"{name}: clean and noisy differ in length: {clean} and {noisy} samples" if clean != noisy else ""


def _read_pair(utterance: Utterance, recordings: AudioCache) -> EvalPair:
    """Both recordings; raises `AudioError`, also where a header promised the wrong length."""
    clean, noisy = recordings.samples(utterance.clean), recordings.samples(utterance.noisy)
    if problem := _length_problem(utterance.id, len(clean), len(noisy)):
        raise AudioError(problem)
    return EvalPair(utterance.id, clean, noisy)
