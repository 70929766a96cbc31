"""The recordings of a training run: each decoded once and kept in memory, for it is asked for every epoch.

They are kept as 16-bit integers, half of what the samples would take as float32, and what most corpora hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.audio import AudioError, read_audio

_FULL_SCALE = 32_768
_PROBLEMS_SHOWN = 10


class Recordings:
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
