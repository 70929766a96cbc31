"""PESQ labels of training crops, computed in other processes while the device works.

A discriminator that learns to predict PESQ needs the true PESQ of every crop it sees. That is work for the
CPU, so a step's crops are spread over processes, which live as long as the run:

    with PesqLabeler(jobs=8) as labels:
        pending = labels.submit(clean, enhanced)  # [B, N] each; returns at once
        ...                                       # the step's work on the device
        target = labels.collect(pending)          # [B], NaN where a crop has no label

P.862 crashes on some signals. Each process has a thread of this program that hands it crops and waits for it,
so that it is known which crop a process died of or hangs at, and no other crop suffers.
"""

from __future__ import annotations

import math
import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import ModuleType, TracebackType

import numpy as np
from tqdm import tqdm

from metrics.pesq import wideband_pesq
from metrics.signals import ScoreError
from utils.processes import LostProcessError, one_thread_each, set_up_process

Score = Callable[[np.ndarray, np.ndarray], float]

START_SECONDS = 300
"""How long a process may take to start: it imports NumPy and more, slowly from a network disk."""

_TRIES = 2
"""How often a crop is tried, and a process started, before it is given up."""


@dataclass(frozen=True)
class Pending:
    """The labels of one batch that are being computed, for `PesqLabeler.collect`."""

    crops: tuple[Future[float], ...]


class PesqLabeler:
    """PESQ of training crops, computed by a persistent pool of processes while the device works.

    `jobs` is the number of processes, and `timeout` how many seconds one may take for a crop before it counts
    as hung. `score` gives the PESQ of a clean and an enhanced crop `[N]`, or raises `ScoreError`; it is
    imported in the processes, so it must stand in a module, not in the script that runs.

    `failed` counts the crops that got no label so far, and `replaced` the processes that died or hung.
    """

    # One for all pools: it also guards what a start of a process changes for the whole program.
    _lock = threading.Lock()

    def __init__(self, jobs: int, timeout: float = 60.0, score: Score = wideband_pesq) -> None:
        self.failed = 0
        self.replaced = 0
        self._timeout = timeout
        self._closed = False
        self._threads = ThreadPoolExecutor(jobs, thread_name_prefix="pesq")
        with self._lock:
            self._workers = [_Worker(score) for _ in range(jobs)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def submit(self, clean: np.ndarray, enhanced: np.ndarray) -> Pending:
        """Start on the labels of `enhanced` `[B, N]` against `clean` `[B, N]`, both at 16 kHz; return at once.

        The crops are copied, so that the arrays may change meanwhile. Raises `ValueError` for other shapes and
        `RuntimeError` after `close`.
        """
        if clean.ndim != 2 or clean.shape != enhanced.shape:
            raise ValueError(f"not two batches [B, N] of one shape: {clean.shape} and {enhanced.shape}")
        pairs = zip(clean.copy(), enhanced.copy(), strict=True)
        return Pending(tuple(self._threads.submit(self._label, *pair) for pair in pairs))

    def collect(self, pending: Pending) -> np.ndarray:
        """Wait for a batch and return its labels `[B]`, float32: (PESQ − 1) / 3.5, NaN where there is none.

        A crop has none where PESQ has no score for it, where it takes over `timeout`, and where its process
        dies, two times over. Raises `RuntimeError` where processes die before they get to work, and
        `CancelledError` or `LostProcessError` for what `close` has interrupted.
        """
        return np.array([crop.result() for crop in pending.crops], dtype=np.float32)

    def close(self) -> None:
        """End the processes now, at work or not."""
        with self._lock:
            self._closed = True
            for worker in self._workers:
                worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.end()

    def __enter__(self) -> PesqLabeler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _label(self, clean: np.ndarray, enhanced: np.ndarray) -> float:
        """The label of one crop `[N]`, or NaN; runs in a thread of which there are as many as workers."""
        worker = self._idle.get()
        try:
            label = (self._try(worker, clean, enhanced) - 1) / 3.5
        finally:
            self._idle.put(worker)
        if math.isnan(label):
            with self._lock:
                self.failed += 1
        return label

    def _try(self, worker: _Worker, clean: np.ndarray, enhanced: np.ndarray) -> float:
        """The PESQ of one crop `[N]`, tried again where the process dies; NaN where there is none."""
        for attempt in range(1, _TRIES + 1):
            self._wait_until_started(worker)
            try:
                return worker.score(clean, enhanced, self._timeout)
            except TimeoutError:
                self._replace(worker, f"hung for {self._timeout:g} s; its crop has no label")
                break
            except LostProcessError:
                fate = "is tried again" if attempt < _TRIES else "has no label"
                self._replace(worker, f"died; its crop {fate}")
        return math.nan

    def _wait_until_started(self, worker: _Worker) -> None:
        """Wait until the process can take a crop, so that its start does not count against the crop's time."""
        for _ in range(_TRIES):
            if worker.wait_until_started():
                return
            self._replace(worker, "did not start")
        raise RuntimeError(f"a process for PESQ labels did not start, {_TRIES} times in a row")

    def _replace(self, worker: _Worker, reason: str) -> None:
        with self._lock:
            if self._closed:
                raise LostProcessError("the labels were closed while it was at work")
            worker.end()
            worker.start()
            self.replaced += 1
        tqdm.write(f"PESQ labels: a process {reason}. A new one takes its place.", file=sys.stderr)


class _Worker:
    """A process that scores one crop at a time, and can be started again."""

    def __init__(self, score: Score) -> None:
        self._function = score
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        # A daemon does not keep a program alive that ends without `close`.
        process = context.Process(target=_serve, args=(theirs, self._function), daemon=True)
        with one_thread_each(), _without_script():
            process.start()
        theirs.close()  # the process alone holds it now: its death ends the connection
        self._process, self._connection, self._started = process, ours, False

    def wait_until_started(self) -> bool:
        """Whether the process has come up; waits `START_SECONDS` for it."""
        if not self._started:
            with suppress(LostProcessError, TimeoutError):
                self._receive(START_SECONDS)
                self._started = True
        return self._started

    def score(self, clean: np.ndarray, enhanced: np.ndarray, timeout: float) -> float:
        """The score of a crop `[N]`, NaN for none; raises `LostProcessError` or `TimeoutError`."""
        try:
            self._connection.send((clean, enhanced))
        except OSError as error:
            raise LostProcessError("the process died") from error
        return self._receive(timeout)

    def _receive(self, timeout: float) -> float:
        try:
            if self._connection.poll(timeout):
                return self._connection.recv()
        except (EOFError, OSError) as error:
            raise LostProcessError("the process died") from error
        raise TimeoutError

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """Kill the process and leave nothing of it."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, score: Score) -> None:
    """The work of a process: a word when it has come up, then a score for every crop it gets."""
    set_up_process()
    connection.send(math.nan)
    with suppress(EOFError):  # the parent is gone
        while True:
            clean, enhanced = connection.recv()
            try:
                result = score(clean, enhanced)
            except ScoreError:
                result = math.nan
            connection.send(result)


@contextmanager
def _without_script() -> Iterator[None]:
    """Processes started meanwhile do not import the script that runs, nor what it imports.

    They need nothing of it, and with PyTorch each would take seconds more to start and some 300 MB more.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
