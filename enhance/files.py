"""Many files through one network: the next are read, and the last is written, while the network computes.

One thread reads, resamples and cuts into windows; windows of one length, of one file or of several, form batches; the
caller's thread takes them through the network; another joins the windows and writes. All that is read passes in the
files' order through a queue of limited length, so that memory grows neither with the number of the files nor with
their length. Which windows share a batch depends on the files alone, not on time: a run can be repeated.

The caller's thread is the one that computes since OpenMP keeps threads for each thread that has ever computed. With
more of them than cores, they no longer wait for each other by spinning, and a window takes half as long again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import takewhile
from pathlib import Path
from queue import Queue
from threading import Event

import numpy as np
import torch
from tqdm import tqdm

from data.audio import AudioError, AudioFormat, AudioReader, AudioWriter, fit_length, resample_blocks
from enhance.enhancer import GPU_BATCH, LEVEL_BLOCK, Enhancer, LevelMeter, Plan

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
        """What suits the device, but for what the user has chosen; whole signals, of any length, one at a time.

        A CPU's caches hold one window of IMSE: four in a batch take it 1.5 to 2 times as long each.
        """
        suitable = GPU_BATCH if torch.device(device).type == "cuda" else 1
        return cls(1 if protocol == "whole" else batch_size or suitable, threads or torch.get_num_threads())


@dataclass
class Opened:
    """A file whose windows follow; who has no use for them any more says so by `abandoned`."""

    source: Path
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


def enhance_file(source: Path, target: Path, enhancer: Enhancer, protocol: str, load: Load | None = None) -> None:
    """Enhance one audio file; raises `AudioError`, and `target` is then as it was before."""
    take_through([source], enhancer, protocol, load or Load(), lambda items: write_next(items, target))


def enhance_files(
    jobs: Sequence[tuple[Path, Path]], enhancer: Enhancer, protocol: str, load: Load | None = None, quiet: bool = True
) -> dict[Path, str]:
    """Enhance each file; says at once which failed, and returns the reason for each result that is not there."""
    failures: dict[Path, str] = {}

    def write_all(items: Iterator[Item]) -> None:
        for _, target in tqdm(jobs, unit="file", disable=quiet):
            try:
                write_next(items, target)
            except AudioError as error:
                failures[target] = str(error)
                tqdm.write(str(error), file=sys.stderr)

    take_through([source for source, _ in jobs], enhancer, protocol, load or Load(), write_all)
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


def write_next(items: Iterator[Item], target: Path) -> None:
    """Write the result of the file whose items come next, and take all of them.

    Raises `AudioError` where it cannot be read, enhanced or written.
    """
    opened = next(items)
    if isinstance(opened, AudioError):
        raise opened
    assert isinstance(opened, Opened)
    pieces = _rest_of_file(items)
    kept, plan = opened.format, opened.plan
    try:
        with AudioWriter(target, kept) as writer:
            results = (np.stack([row.enhanced.result() for row in rows], axis=1) for rows in pieces)
            enhanced = resample_blocks(plan.join(results), plan.rate, kept.rate, kept.channels)
            for block in fit_length(enhanced, opened.frames):
                writer.write(block)
    except (AudioError, MemoryError, torch.OutOfMemoryError) as error:
        opened.abandoned = True
        with suppress(AudioError):  # the first one is the reason
            for _ in pieces:
                pass
        if isinstance(error, AudioError):
            raise
        raise _too_long(opened.source, plan.protocol, error) from error


def _rest_of_file(items: Iterator[Item]) -> Iterator[list[Row]]:
    for item in items:
        if isinstance(item, AudioError):
            raise item
        if item is Mark.END_OF_FILE:
            return
        assert isinstance(item, list)
        yield item


def _too_long(source: Path, protocol: str, error: Exception) -> AudioError:
    return AudioError(f"{source}: too long for --protocol {protocol} ({error}); use overlap")


@dataclass
class _Queues:
    """What the three threads of a run hand on: to the writer all `items`, to who computes `batches` of their rows.

    `stop` is set where one of them ends before its time, for the others to end too.
    """

    items: Queue[Item]
    batches: Queue[list[Row] | None] = field(default_factory=Queue)
    stop: Event = field(default_factory=Event)


def take_through(
    sources: Sequence[Path], enhancer: Enhancer, protocol: str, load: Load, write: Callable[[Iterator[Item]], None]
) -> None:
    """Read files, enhance their windows, and let `write` take all that comes, in order.

    `write` runs in a thread of its own; what it raises is raised here. All threads have ended when this returns.
    """
    # Longer than the patience: who waits for a window must not keep away those that it waits for.
    queues = _Queues(Queue(PATIENCE * load.batch_size + READ_AHEAD))
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(2) as others:
        reading = others.submit(_read_all, sources, enhancer, protocol, load.batch_size, queues)
        writing = others.submit(_write_all, write, queues)
        try:
            torch.set_num_threads(load.threads)
            _compute(queues.batches, enhancer, queues.stop)
        finally:
            torch.set_num_threads(threads)
    reading.result()  # raises what ended it, which is why the writer found no more
    writing.result()


def _read_all(sources: Sequence[Path], enhancer: Enhancer, protocol: str, batch_size: int, queues: _Queues) -> None:
    try:
        found = _read_files(sources, enhancer, protocol, queues.stop)
        for item in in_batches(found, batch_size, PATIENCE * batch_size, queues.batches.put):
            queues.items.put(item)
    finally:
        queues.items.put(Mark.END_OF_ALL)


def _write_all(write: Callable[[Iterator[Item]], None], queues: _Queues) -> None:
    items = iter(queues.items.get, Mark.END_OF_ALL)
    try:
        write(items)
    finally:
        queues.stop.set()
        for _ in items:  # room for what the reader may still put there
            pass
        queues.batches.put(None)


def _compute(batches: Queue[list[Row] | None], enhancer: Enhancer, stop: Event) -> None:
    """Take the batches through the network until None comes; where that is interrupted, cancel what still comes."""
    rows: list[Row] | None = []
    try:
        while (rows := batches.get()) is not None:
            if stop.is_set():
                break
            _enhance_batch(enhancer, rows)
    finally:
        stop.set()
        while rows is not None:
            for row in rows:
                row.enhanced.cancel()
            rows = batches.get()


def _enhance_batch(enhancer: Enhancer, rows: list[Row]) -> None:
    """Enhance rows of one length; one by one where memory is short for all at once."""
    try:
        enhanced = enhancer.enhance_rows(torch.from_numpy(np.stack([row.samples for row in rows])))
    except (MemoryError, torch.OutOfMemoryError) as error:
        if len(rows) == 1:
            rows[0].enhanced.set_exception(error)
            return
    else:
        for row, samples in zip(rows, enhanced.numpy(), strict=True):
            row.enhanced.set_result(samples)
        return
    for row in rows:
        _enhance_batch(enhancer, [row])


def _read_files(sources: Sequence[Path], enhancer: Enhancer, protocol: str, stop: Event) -> Iterator[Item]:
    for source in sources:
        if stop.is_set():
            return
        try:
            yield from _read_file(source, enhancer, protocol, stop)
            yield Mark.END_OF_FILE
        except AudioError as error:
            yield error
        except MemoryError as error:
            yield _too_long(source, protocol, error)


def _read_file(source: Path, enhancer: Enhancer, protocol: str, stop: Event) -> Iterator[Item]:
    """Read a file twice, block by block: for its level, then for its windows. Raises `AudioError`, `MemoryError`."""

    with AudioReader(source) as reader:
        blocks = takewhile(lambda _: not stop.is_set(), reader.blocks(LEVEL_BLOCK))
        level = LevelMeter().measure(_at_rate_of(enhancer, blocks, reader.format))
        opened = Opened(source, reader.format, reader.frames, enhancer.plan(level, protocol))
    yield opened
    with AudioReader(source) as reader:
        for piece in opened.plan.cut(_at_rate_of(enhancer, reader.blocks(), reader.format)):
            if opened.abandoned or stop.is_set():
                break
            yield [Row(channel) for channel in np.ascontiguousarray(piece.T)]


def _at_rate_of(enhancer: Enhancer, blocks: Iterator[np.ndarray], found: AudioFormat) -> Iterator[np.ndarray]:
    return resample_blocks(blocks, found.rate, enhancer.rate, found.channels)


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
