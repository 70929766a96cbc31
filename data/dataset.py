"""Training crops and validation utterances from pairs of recordings, and the batches of an epoch.

All random choices follow from seed, epoch and index. Batches therefore depend neither on the number of threads or
processes nor on the step at which a run is resumed.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from cli import UserError
from config import DataConfig
from data.audio import UNKNOWN_FRAMES, AudioError, AudioReader, read_audio, read_part
from data.file_lists import Utterance
from data.levels import mean_power, unit_power_gain
from data.seeds import Stream, generator

_FULL_SCALE = 32_768
_PROBLEMS_SHOWN = 10
_BATCHES_AHEAD = 2


LONGEST_PART = 40.0
"""Longer recordings are read in parts of equal length, up to this number of seconds, for which there is a PESQ."""


class Sound(NamedTuple):
    """A file, or a part of it: `frames` samples of the file from sample `start` on; the whole file if `frames` is 0."""

    path: Path
    start: int = 0
    frames: int = 0


def split_long(paths: Iterable[Path]) -> list[list[Sound]]:
    """Return the parts of each file, by the length in its header, so that a crop of a long recording is read fast.

    A file of unknown length, or that cannot be read, is one part.
    """
    files: list[list[Sound]] = []
    for path in paths:
        files.append([Sound(path)])
        with suppress(AudioError), AudioReader(path) as reader:
            count = math.ceil(reader.frames / reader.format.rate / LONGEST_PART)
            if count > 1 and reader.frames < UNKNOWN_FRAMES:
                ends = [index * reader.frames // count for index in range(count + 1)]
                files[-1] = [Sound(path, start, end - start) for start, end in pairwise(ends)]
    return files


MEMORY_SHARE = 0.5
"""Fraction of the machine's or the container's memory that the decoded recordings of all processes may take."""

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""File with the memory limit of a Linux container in bytes, or "max"."""


def memory_for_audio() -> int:
    """Return the number of bytes that this process may keep of decoded recordings."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if CONTAINER_LIMIT.exists() and (limit := CONTAINER_LIMIT.read_text().strip()).isdecimal():
        memory = min(memory, int(limit))
    return int(MEMORY_SHARE * memory) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


class AudioCache:
    """Recordings as mono signals at `rate` Hz, rounded to 16 bits and clipped to full scale.

    With `keep`, decoded recordings stay in memory as int16, up to `memory_for_audio`; the others are decoded again at
    each access, with the same result. Thread-safe; two threads that need a file at the same time may both decode it.
    """

    def __init__(self, rate: int, keep: bool) -> None:
        self._rate = rate
        self._limit = memory_for_audio() if keep else 0
        self._kept: dict[Sound, np.ndarray] = {}
        self.bytes_kept = 0

    def samples(self, source: Path | Sound) -> np.ndarray:
        """Return a recording as float32 `[N]` in ±1, averaged over channels; raises `AudioError`."""
        sound = Sound(source) if isinstance(source, Path) else source
        samples = self._kept.get(sound)
        if samples is None:
            channels = read_part(*sound, self._rate) if sound.frames else read_audio(sound.path, self._rate)[0]
            scaled = np.rint(channels.mean(axis=1) * _FULL_SCALE)
            samples = np.clip(scaled, -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
            if self.bytes_kept + samples.nbytes <= self._limit:
                self._kept[sound] = samples
                self.bytes_kept += samples.nbytes
        return samples.astype(np.float32) / _FULL_SCALE

    def load(self, sources: Iterable[Path | Sound], workers: int, quiet: bool) -> None:
        """Decode all recordings to keep in `workers` threads, with a progress bar unless `quiet`.

        If the memory does not hold all, stop with a line on standard error. Raises `AudioError` with the number of
        unusable recordings and the first ten of them.
        """
        if not self._limit:
            return
        full = False

        def problem_of(source: Path | Sound) -> str:
            nonlocal full
            try:
                full |= 2 * len(self.samples(source)) > self._limit - self.bytes_kept
            except AudioError as error:
                return str(error)
            return ""

        unique = list(dict.fromkeys(sources))
        problems: list[str] = []
        pool = ThreadPoolExecutor(workers)
        try:
            for problem in tqdm(pool.map(problem_of, unique), total=len(unique), unit="file", disable=quiet):
                problems += [problem] * bool(problem)
                if full:
                    break
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the remaining files
        if problems:
            raise AudioError(_summary(f"{len(problems)} of {len(unique)} files cannot be used", problems))
        if full and len(self._kept) < len(unique):
            print(
                f"{self.bytes_kept / 2**30:.1f} GiB of memory hold {len(self._kept)} of {len(unique)} recordings; the "
                "others are read when needed (all with --no_cache)",
                file=sys.stderr,
            )


def _summary(heading: str, problems: Sequence[str]) -> str:
    return "\n  ".join([f"{heading}:", *problems[:_PROBLEMS_SHOWN]])


class Crop(NamedTuple):
    """A segment of clean speech and the same segment with noise, with the same gain: float32 `[segment]` each.

    `dry` is True if noise is the only degradation.
    """

    clean: np.ndarray
    noisy: np.ndarray
    dry: bool = True


class CropDataset(Protocol):
    """Source of the crops of `load_batches`."""

    def __len__(self) -> int:
        """Return the number of crops per epoch."""
        ...

    def crop(self, epoch: int, index: int) -> Crop:
        """Return a crop that depends on the arguments only; raises `AudioError` if a file cannot be read."""
        ...


class EvalPair(NamedTuple):
    """A whole utterance for validation: float32 `[N]` each, at the level of the recording."""

    id: str
    clean: np.ndarray
    noisy: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Crops of one step: their indices `[B]`, float32 `[B, segment]` clean and noisy, and bool `[B]` dry."""

    indices: np.ndarray
    clean: np.ndarray
    noisy: np.ndarray
    dry: np.ndarray

    def split(self, parts: int) -> list[Batch]:
        """Split into `parts` consecutive batches of one size; raises `ValueError` if B is no multiple of it."""
        arrays = (np.split(array, parts) for array in (self.indices, self.clean, self.noisy, self.dry))
        return [Batch(*part) for part in zip(*arrays, strict=True)]


class PairedDataset:
    """Random crops of `data.segment_size` samples from pairs of recordings, one per pair and epoch (IMSE paper).

    With `data.normalize_level` both signals are scaled by the gain that brings the whole noisy utterance to a mean
    power of 1. Shorter utterances are padded with zeros.
    """

    def __init__(self, utterances: Sequence[Utterance], cache: AudioCache, data: DataConfig, seed: int) -> None:
        self._utterances = utterances
        self._cache = cache
        self._data = data
        self._seed = seed

    def __len__(self) -> int:
        return len(self._utterances)

    def crop(self, epoch: int, index: int) -> Crop:
        """Return a random crop of pair `index`; raises `AudioError`."""
        rng = generator(Stream.CROP, self._seed, epoch, index)
        _, clean, noisy = _read_pair(self._utterances[index], self._cache)
        gain = np.float32(unit_power_gain(mean_power(noisy)) if self._data.normalize_level else 1)
        segment = self._data.segment_size
        start = random_start(rng, len(noisy), segment)
        return Crop(fit_segment(clean[start:], segment) * gain, fit_segment(noisy[start:], segment) * gain)


class PairedUtterances(Sequence[EvalPair]):
    """Whole pairs of recordings, read on access; raises `AudioError` then."""

    def __init__(self, utterances: Sequence[Utterance], cache: AudioCache) -> None:
        self._utterances = utterances
        self._cache = cache

    def __len__(self) -> int:
        return len(self._utterances)

    def __getitem__(self, index: int) -> EvalPair:  # pyright: ignore[reportIncompatibleMethodOverride] (no slices)
        return _read_pair(self._utterances[index], self._cache)


def _read_pair(utterance: Utterance, cache: AudioCache) -> EvalPair:
    clean, noisy = cache.samples(utterance.clean), cache.samples(utterance.noisy)
    if len(clean) != len(noisy):  # possible after `check_pairs` if a header is wrong
        raise AudioError(f"{utterance.id}: clean and noisy differ in length: {len(clean)} and {len(noisy)} samples")
    return EvalPair(utterance.id, clean, noisy)


def random_start(rng: np.random.Generator, samples: int, segment: int) -> int:
    """Return a random start of a crop of `segment` samples in a signal of `samples`; 0 if the signal is shorter."""
    return int(rng.integers(max(samples - segment, 0) + 1))


def fit_segment(signal: np.ndarray, segment: int) -> np.ndarray:
    """Cut samples `[N]` to `segment`, or pad them with zeros."""
    return np.pad(signal[:segment], (0, max(segment - len(signal), 0)))


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of the crops in an epoch: a random permutation of `count` indices."""
    return generator(Stream.ORDER, seed, epoch).permutation(count)


def steps_per_epoch(crops: int, total_batch: int) -> int:
    """Return the number of whole batches (over all processes) in an epoch; remaining crops are skipped."""
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
    """Yield the batches of an epoch from step `first_step` on, prefetched by `workers` threads.

    A step uses the next `batch_size * ranks` crops of `epoch_order`; process `rank` gets its consecutive part of them.
    Exceptions of `source.crop` are raised here. Closing the generator ends the threads.
    """
    order = epoch_order(seed, epoch, len(source))
    total = batch_size * ranks
    pool = ThreadPoolExecutor(workers)

    def submit(step: int) -> tuple[np.ndarray, list[Future[Crop]]]:
        indices = order[step * total + rank * batch_size :][:batch_size]
        return indices, [pool.submit(source.crop, epoch, int(index)) for index in indices]

    try:
        submitted = map(submit, range(first_step, steps_per_epoch(len(source), total)))
        # Small batches need more of them ahead to keep all threads busy.
        pending = deque(islice(submitted, 1 + _BATCHES_AHEAD + workers // batch_size))
        while pending:
            indices, futures = pending.popleft()
            crops = [future.result() for future in futures]
            clean, noisy = np.stack([crop.clean for crop in crops]), np.stack([crop.noisy for crop in crops])
            yield Batch(indices, clean, noisy, np.array([crop.dry for crop in crops]))
            pending.extend(islice(submitted, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def check_pairs(utterances: Sequence[Utterance]) -> None:
    """Check that all files exist, and by their headers that each pair has one rate and one length, if it is known.

    Raises `UserError` with the number of missing files, or else of unusable pairs, and the first ten of them.
    """
    files = list(dict.fromkeys(path for utterance in utterances for path in (utterance.clean, utterance.noisy)))
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise UserError(_summary(f"{len(missing)} of {len(files)} files are missing", missing))
    problems: list[str] = []
    for utterance in utterances:
        try:
            with AudioReader(utterance.clean) as clean, AudioReader(utterance.noisy) as noisy:
                differ = f"{utterance.id}: clean and noisy differ in"
                if clean.format.rate != noisy.format.rate:
                    problems.append(f"{differ} rate: {clean.format.rate} and {noisy.format.rate} Hz")
                elif clean.frames != noisy.frames and max(clean.frames, noisy.frames) < UNKNOWN_FRAMES:
                    problems.append(f"{differ} length: {clean.frames} and {noisy.frames} samples")
        except AudioError as error:
            problems.append(str(error))
    if problems:
        raise UserError(_summary(f"{len(problems)} of {len(utterances)} pairs cannot be used", problems))
