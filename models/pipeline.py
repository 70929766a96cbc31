"""Many files through one network: the next are read, and the last is written, while the network computes.

One thread reads, resamples and cuts into windows; windows of one length, of one file or of several, form batches;
another thread takes them through the network; the caller's joins the windows and writes. All that is read passes in
the files' order through a queue of limited length, so that memory grows neither with the number of the files nor with
their length. Which windows share a batch depends on the files alone, not on time: a run can be repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from itertools import takewhile
from pathlib import Path
from queue import Empty, Queue
from threading import Event

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.audio import AudioError, AudioFormat, AudioReader, AudioWriter, fit_length, resample_blocks
from models.enhancer import GPU_BATCH, LEVEL_BLOCK, Enhancer, LevelMeter, Plan

PATIENCE = 4
"""A window waits for others of its length until so many times the batch size have been read behind it."""

READ_AHEAD = 8
"""How much more is read ahead, in windows and in marks of where files begin and end."""


@dataclass(frozen=True)
class Load:
    """How much is computed at a time: windows in a batch, and torch threads for it, by default those of the process."""

    batch_size: int = 1
    threads: int = field(default_factory=torch.get_num_threads)

    @classmethod
    def choose(cls, device: str, protocol: str, batch_size: int | None, threads: int | None) -> Load:
        """What suits a device, but for what the user has chosen; one at a time of windows that have no limit.

        A CPU's caches hold one window of IMSE: four in a batch take it 1.5 to 2 times as long each.
        """
        suitable = GPU_BATCH if torch.device(device).type == "cuda" else 1
        return cls(1 if protocol == "whole" else batch_size or suitable, threads or torch.get_num_threads())


@dataclass
class Opened:
    """A file whose windows follow; who has no use for them any more says so by `abandoned`."""

    name: str
    format: AudioFormat
    frames: int
    plan: Plan
    abandoned: bool = False


@dataclass
class Row:
    """One channel of a window, `[length]` at the network's level, and what will have become of it."""

    samples: np.ndarray
    enhanced: Future[np.ndarray] = field(default_factory=Future)


class Mark(Enum):
    """What stands among the items at an end."""

    END_OF_FILE = auto()
    END_OF_ALL = auto()


Item = Opened | list[Row] | AudioError | Mark
"""What is read: for each file `Opened`, the rows of each window, and a mark; or, at any place, the error."""


def enhance_file(
    source: Path, target: Path, enhancer: Enhancer, protocol: str, load: Load | None = None, name: str = ""
) -> None:
    """Enhance one audio file.

    `name` is what messages call the source. Raises `AudioError`, and `target` is then as it was before.
    """
    with read_ahead([(source, name)], enhancer, protocol, load or Load()) as items:
        write_next(items, target, enhancer.rate, protocol)


def enhance_files(
    jobs: Sequence[tuple[Path, Path]], enhancer: Enhancer, protocol: str, load: Load | None = None, quiet: bool = True
) -> dict[Path, str]:
    """Enhance each file; says at once which failed, and returns the reason for each result that is not there."""
    failures: dict[Path, str] = {}
    with read_ahead([(source, "") for source, _ in jobs], enhancer, protocol, load or Load()) as items:
        for _, target in tqdm(jobs, unit="file", disable=quiet):
            try:
                write_next(items, target, enhancer.rate, protocol)
            except AudioError as error:
                failures[target] = str(error)
                tqdm.write(str(error), file=sys.stderr)
    return failures


def is_done(source: Path, target: Path) -> bool:
    """Whether `target` is a whole result of `source`: of its format and length, and not older.

    What made it, this checkpoint and protocol or others, is not known.
    """
    try:
        with AudioReader(source) as noisy, AudioReader(target) as enhanced:
            alike = noisy.format == enhanced.format and noisy.frames == enhanced.frames
        return alike and target.stat().st_mtime_ns >= source.stat().st_mtime_ns
    except (AudioError, OSError):
        return False


def without_done(jobs: Sequence[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """The files whose results are not there already; says on standard error how many are."""
    left = [job for job in jobs if not is_done(*job)]
    print(f"{len(jobs) - len(left)} of {len(jobs)} files are done already", file=sys.stderr)
    return left


def write_next(items: Iterator[Item], target: Path, rate: int, protocol: str) -> None:
    """Write the result, from windows at `rate` Hz, of the file whose items come next, and take all of them.

    Raises `AudioError` where it cannot be read, enhanced or written.
    """
    opened = next(items)
    if isinstance(opened, AudioError):
        raise opened
    assert isinstance(opened, Opened)
    pieces = _rest_of_file(items)
    kept = opened.format
    try:
        with AudioWriter(target, kept) as writer:
            results = (np.stack([row.enhanced.result() for row in rows], axis=1) for rows in pieces)
            enhanced = resample_blocks(opened.plan.join(results), rate, kept.rate, kept.channels)
            for block in fit_length(enhanced, opened.frames):
                writer.write(block)
    except (AudioError, MemoryError, torch.OutOfMemoryError) as error:
        opened.abandoned = True
        with suppress(AudioError):  # the first one is the reason
            for _ in pieces:
                pass
        if isinstance(error, AudioError):
            raise
        raise _too_long(opened.name, protocol, error) from error


def _rest_of_file(items: Iterator[Item]) -> Iterator[list[Row]]:
    for item in items:
        if isinstance(item, AudioError):
            raise item
        if item is Mark.END_OF_FILE:
            return
        assert isinstance(item, list)
        yield item


def _too_long(name: str, protocol: str, error: Exception) -> AudioError:
    return AudioError(f"{name}: too long for --protocol {protocol} ({error}); use overlap")


@contextmanager
def read_ahead(
    sources: Sequence[tuple[Path, str]], enhancer: Enhancer, protocol: str, load: Load
) -> Iterator[Iterator[Item]]:
    """The items of files, given by path and name, in order; read and enhanced in threads that end with the block."""
    patience = PATIENCE * load.batch_size
    # Longer than the patience: who waits for a window must not keep away those that it waits for.
    queue: Queue[Item] = Queue(patience + READ_AHEAD)
    stop = Event()
    computer = ThreadPoolExecutor(1, initializer=_set_threads, initargs=(load.threads,))

    def start(rows: list[Row]) -> None:
        computer.submit(_enhance_batch, enhancer, rows).add_done_callback(partial(_hand_out, rows))

    def read() -> None:
        try:
            for item in in_batches(_read_files(sources, enhancer, protocol, stop), load.batch_size, patience, start):
                queue.put(item)
                if stop.is_set():
                    break
        finally:
            queue.put(Mark.END_OF_ALL)

    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read)
        try:
            yield _until_end(queue, reading)
        finally:
            stop.set()
            with suppress(Empty):  # room for what the reader may still put there
                while True:
                    queue.get_nowait()
            computer.shutdown(cancel_futures=True)


def _until_end(queue: Queue[Item], reading: Future[None]) -> Iterator[Item]:
    while (item := queue.get()) is not Mark.END_OF_ALL:
        yield item
    reading.result()  # raises what ended it


def _read_files(sources: Sequence[tuple[Path, str]], enhancer: Enhancer, protocol: str, stop: Event) -> Iterator[Item]:
    for source, name in sources:
        try:
            yield from _read_file(source, name, enhancer, protocol, stop)
            yield Mark.END_OF_FILE
        except AudioError as error:
            yield error
        except MemoryError as error:
            yield _too_long(name or str(source), protocol, error)


def _read_file(source: Path, name: str, enhancer: Enhancer, protocol: str, stop: Event) -> Iterator[Item]:
    """Read a file twice, block by block: for its level, then for its windows. Raises `AudioError`, `MemoryError`."""

    def blocks(reader: AudioReader, *size: int) -> Iterator[np.ndarray]:
        kept = reader.format
        wanted = takewhile(lambda _: not stop.is_set(), reader.blocks(*size))
        return resample_blocks(wanted, kept.rate, enhancer.rate, kept.channels)

    with AudioReader(source, name) as reader:
        level = LevelMeter().measure(blocks(reader, LEVEL_BLOCK))
        opened = Opened(reader.name, reader.format, reader.frames, enhancer.plan(level, protocol))
    yield opened
    with AudioReader(source, name) as reader:
        for piece in opened.plan.cut(blocks(reader)):
            if opened.abandoned:
                break
            yield [Row(channel) for channel in np.ascontiguousarray(piece.T)]


def in_batches(
    items: Iterator[Item], batch_size: int, patience: int, start: Callable[[list[Row]], None]
) -> Iterator[Item]:
    """Pass on the items; call `start` with rows of one length as soon as `batch_size` of them have come.

    Those that are fewer are started `patience` items after the first of them, or at the end.
    """
    waiting: dict[int, tuple[int, list[Row]]] = {}  # by length: when the first came, and all; the oldest first
    for number, item in enumerate(items):
        for row in item if isinstance(item, list) else []:
            _, rows = waiting.setdefault(len(row.samples), (number, []))
            rows.append(row)
            if len(rows) == batch_size:
                del waiting[len(row.samples)]
                start(rows)
        for length, (first, rows) in list(waiting.items()):
            if number - first >= patience:
                del waiting[length]
                start(rows)
        yield item
    for _, rows in waiting.values():
        start(rows)


def _set_threads(threads: int) -> None:
    """Let this thread compute with so many torch threads."""
    torch.get_num_threads()  # first, since torch sets a new thread's number at its first use
    torch.set_num_threads(threads)


def _enhance_batch(enhancer: Enhancer, rows: list[Row]) -> Tensor:
    """Rows of one length → enhanced, `[B, length]`; one by one where memory is short for all at once."""
    batch = torch.from_numpy(np.stack([row.samples for row in rows]))
    try:
        return enhancer.enhance_rows(batch)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    return torch.cat([enhancer.enhance_rows(row) for row in batch.split(1)])


def _hand_out(rows: list[Row], batch: Future[Tensor]) -> None:
    """Give the rows of a batch that is done their results, or the error in place of them."""
    if batch.cancelled():
        return
    error = batch.exception()
    for index, row in enumerate(rows):
        if error is not None:
            row.enhanced.set_exception(error)
        else:
            row.enhanced.set_result(batch.result()[index].numpy())
