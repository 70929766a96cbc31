"""Enhance audio files. One thread reads ahead while the caller's thread computes and writes.

The network runs in the caller's thread because OpenMP keeps a pool of workers for each thread that has ever computed:
with more workers than cores they stop spinning, and a window takes half as long again.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from tqdm import tqdm

from data.audio import (
    UNKNOWN_FRAMES,
    AudioError,
    AudioFormat,
    AudioReader,
    AudioWriter,
    fit_length,
    resample_blocks,
)
from enhance.enhancer import Enhancer
from enhance.streaming import Stream, is_live
from enhance.windows import PROTOCOLS, Window, cut, join

READ_AHEAD = 8
"""Windows that are read ahead, in addition to a batch. Memory does not grow with the number or length of the files."""

T = TypeVar("T")


@dataclass(eq=False)
class _File:
    """A file being enhanced. `_read` fills the fields; a step that fails sets `error`, and the others skip the rest."""

    source: Path
    target: Path
    format: AudioFormat = field(init=False)
    frames: int = field(init=False)
    windows: list[Window] = field(init=False)
    gains: np.ndarray = field(init=False)
    """Gain of each channel to the network's level."""
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
    """Enhance (source, target) files, each in its own format; return {target: reason} of those that failed.

    A file that cannot be read, enhanced or written leaves its target as it was; with `report` it is named on standard
    error at once. `quiet` hides the progress bar.
    """
    failures: dict[Path, str] = {}
    live = protocol == "whole" and is_live(enhancer.network, enhancer.config)
    enhanced = _enhance_as_streams(jobs, enhancer) if live else _enhance_in_windows(jobs, enhancer, protocol)
    with closing(enhanced) as done, tqdm(total=len(jobs), unit="file", disable=quiet) as bar:
        for target, error in done:
            if error:
                failures[target] = str(error)
                if report:
                    tqdm.write(str(error), file=sys.stderr)
            bar.update()
    return failures


def _enhance_as_streams(
    jobs: Sequence[tuple[Path, Path]], enhancer: Enhancer
) -> Generator[tuple[Path, AudioError | None]]:
    """Enhance files of any length by a live network; yield each target and why it was not written."""

    def enhanced(reader: AudioReader) -> Iterator[np.ndarray]:
        streams = [Stream(enhancer.network, enhancer.config) for _ in range(reader.format.channels)]
        for block in _blocks(reader, enhancer.sampling_rate):
            yield np.stack([stream.process(channel) for stream, channel in zip(streams, block.T, strict=True)], axis=1)
        yield np.stack([stream.flush() for stream in streams], axis=1)

    for source, target in jobs:
        try:
            with AudioReader(source) as reader:  # all of it, to find out its length and whether it is damaged
                deque(reader.blocks(), maxlen=0)
            rate, channels = reader.format.rate, reader.format.channels
            with AudioReader(source) as again, AudioWriter(target, reader.format) as writer:
                blocks = resample_blocks(enhanced(again), enhancer.sampling_rate, rate, channels)
                for block in fit_length(blocks, reader.frames):
                    writer.write(block)
        except AudioError as error:
            yield target, error
        else:
            yield target, None


def _enhance_in_windows(
    jobs: Sequence[tuple[Path, Path]], enhancer: Enhancer, protocol: str
) -> Generator[tuple[Path, AudioError | None]]:
    """Enhance files window by window; yield each target and why it was not written."""
    with closing(_enhance(jobs, enhancer, protocol)) as enhanced:
        for file, items in groupby(enhanced, key=lambda item: item[0]):
            try:
                _write(file, items, enhancer.sampling_rate)
            except AudioError as error:
                file.error = error
            yield file.target, file.error


def is_done(source: Path, target: Path) -> bool:
    """Return whether `target` is a complete result of `source`: same format and length, and not older.

    It does not check which checkpoint or protocol made it.
    """
    try:
        with AudioReader(source) as noisy, AudioReader(target) as enhanced:
            same_length = noisy.frames == enhanced.frames or noisy.frames >= UNKNOWN_FRAMES
            alike = noisy.format == enhanced.format and same_length
        return alike and target.stat().st_mtime_ns >= source.stat().st_mtime_ns
    except (AudioError, OSError):
        return False


def _read(jobs: Sequence[tuple[Path, Path]], enhancer: Enhancer, protocol: str) -> Iterator[_Item]:
    """Read each file twice, in blocks: for its length and level, then for its windows."""
    for file in (_File(source, target) for source, target in jobs):
        try:
            with AudioReader(file.source) as reader:
                samples, energy = 0, np.zeros(reader.format.channels)
                for block in _blocks(reader, enhancer.sampling_rate):
                    samples += len(block)
                    energy += np.square(block, dtype=np.float64).sum(axis=0)
                file.format, file.frames = reader.format, reader.frames
            file.windows = PROTOCOLS[protocol](samples, enhancer.segment_size)
            file.gains = np.array([enhancer.level_gain(power) for power in energy / samples], np.float32)
            with AudioReader(file.source) as reader:
                blocks = (block * file.gains for block in _blocks(reader, enhancer.sampling_rate))
                for window in cut(blocks, file.windows):
                    yield file, window
                    if file.error:
                        break
        except (AudioError, MemoryError) as error:
            file.error = error if isinstance(error, AudioError) else _out_of_memory(file, protocol, error)
            yield file, None


def _blocks(reader: AudioReader, rate: int) -> Iterator[np.ndarray]:
    return resample_blocks(reader.blocks(), reader.format.rate, rate, reader.format.channels)


def _read_ahead(items: Iterator[T], count: int) -> Generator[T]:
    """Yield the items of an iterator that runs in another thread, up to `count` items ahead."""
    end = object()
    thread = ThreadPoolExecutor(1)
    ahead = deque(thread.submit(next, items, end) for _ in range(count))
    try:
        while (item := ahead.popleft().result()) is not end:
            ahead.append(thread.submit(next, items, end))
            yield item  # pyright: ignore[reportReturnType]
    finally:
        thread.shutdown(cancel_futures=True)


def _enhance(jobs: Sequence[tuple[Path, Path]], enhancer: Enhancer, protocol: str) -> Generator[_Item]:
    """Enhance the windows of all files in order."""
    read_ahead = READ_AHEAD + enhancer.batch_size
    with closing(_read_ahead(_read(jobs, enhancer, protocol), read_ahead)) as noisy:
        while batch := list(islice(noisy, enhancer.batch_size)):  # of several files, for the sake of a GPU
            try:
                yield from _enhance_batch(batch, enhancer)
                continue
            except MemoryError:
                pass  # the exception holds the tensors of the batch until the end of this block
            for file, window in batch:
                try:
                    yield from _enhance_batch([(file, window)], enhancer)
                except MemoryError as error:
                    file.error = _out_of_memory(file, protocol, error)
                    yield file, None


def _enhance_batch(batch: list[_Item], enhancer: Enhancer) -> list[_Item]:
    """Enhance the windows of a batch; raise `MemoryError` if there is not enough memory."""
    batch = [(file, None if file.error else window) for file, window in batch]
    try:
        enhanced = iter(enhancer.enhance_windows([window for _, window in batch if window is not None]))
    except RuntimeError as error:  # PyTorch has a class of its own for GPUs, and none for CPUs
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise MemoryError(str(error).partition("\n")[0]) from error
        raise
    return [(file, None if window is None else next(enhanced)) for file, window in batch]


def _out_of_memory(file: _File, protocol: str, error: MemoryError) -> AudioError:
    if protocol == "whole":
        return AudioError(f"{file.source}: too long for --protocol whole ({error}); use overlap")
    return AudioError(f"{file.source}: not enough memory ({error}); lower --batch_size, or give --device cpu")


def _write(file: _File, items: Iterator[_Item], rate: int) -> None:
    """Join the enhanced windows of a file and write it."""
    if file.error:
        raise file.error

    def windows() -> Iterator[np.ndarray]:
        for _, window in islice(items, len(file.windows)):  # stop here: the next item belongs to the next file
            if window is None:
                break
            yield window
        if file.error:
            raise file.error

    with AudioWriter(file.target, file.format) as writer:
        blocks = (block / file.gains for block in join(windows(), file.windows))
        for block in fit_length(resample_blocks(blocks, rate, file.format.rate, file.format.channels), file.frames):
            writer.write(block)
