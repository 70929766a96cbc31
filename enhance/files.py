"""Enhance audio files: one thread reads ahead, the caller's thread computes, one thread writes.

The threads are connected by bounded pipes, so memory grows neither with the number of files nor with their length.
The network runs in the caller's thread because OpenMP keeps a pool of workers for each thread that has ever computed:
with more workers than cores they stop spinning, and a window takes half as long again.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from threading import Condition
from typing import Generic, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from data.audio import AudioError, AudioFormat, AudioReader, AudioWriter, fit_length, resample_blocks
from enhance.enhancer import Enhancer
from enhance.windows import PROTOCOLS, Window, cut, join

READ_AHEAD = 8
"""Windows that wait in a pipe, in addition to a batch."""

T = TypeVar("T")


class _ClosedError(Exception):
    """The pipe was closed by its other end."""


class _Pipe(Generic[T]):
    """A bounded queue between two threads that either of them can close."""

    def __init__(self, size: int) -> None:
        self.closed = False
        self._size = size
        self._items: deque[T] = deque()
        self._changed = Condition()

    def put(self, item: T) -> None:
        """Append an item, when there is room; raises `_ClosedError`."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or len(self._items) < self._size)
            if self.closed:
                raise _ClosedError
            self._items.append(item)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Take items, until the pipe is closed and empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.closed or self._items)
                if not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def close(self) -> None:
        """Let no more items in."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()


@dataclass(eq=False)
class _File:
    """A file on its way through the threads. If it fails in one of them, that sets `error` and all skip the rest."""

    source: Path
    target: Path
    format: AudioFormat = field(init=False)
    frames: int = field(init=False)
    windows: list[Window] = field(init=False)
    gains: np.ndarray = field(init=False)
    """Of each channel, to the network's level."""
    error: AudioError | None = None


_Item = tuple[_File, np.ndarray | None]
"""A window `[length, channels]` of a file at the network's level; None if the file has an `error`."""


def enhance_file(source: Path, target: Path, enhancer: Enhancer, protocol: str) -> None:
    """Enhance one audio file. Raises `AudioError`; `target` is then as it was before."""
    for reason in enhance_files([(source, target)], enhancer, protocol, report=False).values():
        raise AudioError(reason)


def enhance_files(
    jobs: Sequence[tuple[Path, Path]], enhancer: Enhancer, protocol: str, quiet: bool = True, report: bool = True
) -> dict[Path, str]:
    """Enhance (source, target) files, each in its own format; returns {target: reason} of those that failed.

    A file that cannot be read, enhanced or written leaves its target as it was; with `report` it is named on standard
    error at once. `quiet` hides the progress bar.
    """
    # Batches span files, for the sake of a GPU. Whole files differ in length and would only fill the memory.
    batch_size = 1 if protocol == "whole" else enhancer.batch_size
    noisy: _Pipe[_Item] = _Pipe(READ_AHEAD + batch_size)
    enhanced: _Pipe[_Item] = _Pipe(READ_AHEAD + batch_size)
    with tqdm(total=len(jobs), unit="file", disable=quiet) as bar, ThreadPoolExecutor(2) as threads:
        # After Ctrl-C or an error in the network, both threads find their pipe closed, and end.
        with closing(noisy), closing(enhanced):
            reading = threads.submit(_read, jobs, enhancer, protocol, noisy)
            writing = threads.submit(_write, enhanced, enhancer.sampling_rate, bar, report)
            items = iter(noisy)
            with suppress(_ClosedError):
                while batch := list(islice(items, batch_size)):
                    for item in _enhance(batch, enhancer, protocol):
                        enhanced.put(item)
        reading.result()
        return writing.result()


def is_done(source: Path, target: Path) -> bool:
    """Return whether `target` is a complete result of `source`: same format and length, and not older.

    The checkpoint and protocol that made it are not known.
    """
    try:
        with AudioReader(source) as noisy, AudioReader(target) as enhanced:
            alike = noisy.format == enhanced.format and noisy.frames == enhanced.frames
        return alike and target.stat().st_mtime_ns >= source.stat().st_mtime_ns
    except (AudioError, OSError):
        return False


def _read(jobs: Sequence[tuple[Path, Path]], enhancer: Enhancer, protocol: str, noisy: _Pipe[_Item]) -> None:
    """Read each file twice, in blocks: for its length and level, then for its windows."""
    with closing(noisy), suppress(_ClosedError):
        for file in (_File(source, target) for source, target in jobs):
            try:
                with AudioReader(file.source) as reader:
                    samples, energy = 0, np.zeros(reader.format.channels)
                    for block in _blocks(reader, enhancer.sampling_rate):
                        if noisy.closed:
                            return
                        samples += len(block)
                        energy += np.square(block, dtype=np.float64).sum(axis=0)
                    file.format, file.frames = reader.format, reader.frames
                file.windows = PROTOCOLS[protocol](samples, enhancer.segment_size)
                file.gains = np.array([enhancer.level_gain(power) for power in energy / samples], np.float32)
                with AudioReader(file.source) as reader:
                    blocks = (block * file.gains for block in _blocks(reader, enhancer.sampling_rate))
                    for window in cut(blocks, file.windows):
                        noisy.put((file, window))
                        if file.error:
                            break
            except (AudioError, MemoryError) as error:
                file.error = error if isinstance(error, AudioError) else _too_long(file, protocol, error)
                noisy.put((file, None))


def _blocks(reader: AudioReader, rate: int) -> Iterator[np.ndarray]:
    return resample_blocks(reader.blocks(), reader.format.rate, rate, reader.format.channels)


def _enhance(batch: list[_Item], enhancer: Enhancer, protocol: str) -> list[_Item]:
    """Enhance windows of one or several files together; one at a time if memory is too short for that."""
    batch = [(file, None if file.error else window) for file, window in batch]
    try:
        enhanced = iter(enhancer.enhance_windows([window for _, window in batch if window is not None]))
    except (MemoryError, torch.OutOfMemoryError) as error:
        if len(batch) > 1:
            return [result for item in batch for result in _enhance([item], enhancer, protocol)]
        file, _ = batch[0]
        file.error = _too_long(file, protocol, error)
        return [(file, None)]
    return [(file, None if window is None else next(enhanced)) for file, window in batch]


def _too_long(file: _File, protocol: str, error: BaseException) -> AudioError:
    return AudioError(f"{file.source}: too long for --protocol {protocol} ({error}); use overlap")


def _write(enhanced: _Pipe[_Item], rate: int, bar: tqdm, report: bool) -> dict[Path, str]:
    """Join the windows of each file and write it; returns {target: reason} of the files that failed."""
    failures: dict[Path, str] = {}
    with closing(enhanced):
        for file, items in groupby(enhanced, key=lambda item: item[0]):
            try:
                _write_file(file, items, rate)
            except AudioError as error:
                file.error = error
                failures[file.target] = str(error)
                if report:
                    tqdm.write(str(error), file=sys.stderr)
            bar.update()
    return failures


def _write_file(file: _File, items: Iterator[_Item], rate: int) -> None:
    if file.error:
        raise file.error
    with AudioWriter(file.target, file.format) as writer:
        blocks = (block / file.gains for block in join(_windows(file, items), file.windows))
        for block in fit_length(resample_blocks(blocks, rate, file.format.rate, file.format.channels), file.frames):
            writer.write(block)


def _windows(file: _File, items: Iterator[_Item]) -> Iterator[np.ndarray]:
    for _, window in islice(items, len(file.windows)):  # does not wait for the next file to begin
        if window is None:
            break
        yield window
    if file.error:
        raise file.error
