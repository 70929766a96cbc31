"""Worker processes that survive crashes and hangs: a failure costs one item, the others are computed.

Processes, not threads: PESQ keeps its state in C globals and crashes on some signals. loky starts each worker as a
fresh Python process that does not import the main script, so it needs no PyTorch and works beside a GPU.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Generic, TypeVar

import loky
from loky.process_executor import ShutdownExecutorError

Item = TypeVar("Item")
Result = TypeVar("Result")

START_SECONDS = 300
"""Limit for the start of a process: its imports can be slow on a network disk."""

ATTEMPTS = 2
"""Attempts at an item whose process dies, and at starting a process."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class LostProcessError(Exception):
    """The process that worked on an item died (killed, out of memory, crashed in a library) or hung."""


def available_cores() -> int:
    """Return the number of cores that this process may use, also by the limit of a container."""
    return loky.cpu_count()


def own_cores() -> int:
    """Return the number of cores for this process if those of the machine are divided among torchrun's processes."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class ProcessPool(Generic[Result]):
    """Persistent worker processes that call `function`, one item each at a time.

    Each worker is a loky executor of one process, driven by a thread of its own, so it is known which item a process
    died of. Workers start with their first item, use one arithmetic thread, ignore Ctrl-C, and end with this process.

    Parameters
    ----------
    function: must be picklable, as its arguments and results.
    workers: number of processes.
    timeout: seconds after which an item counts as hung; None for no limit.
    """

    def __init__(self, function: Callable[..., Result], workers: int, timeout: float | None = None) -> None:
        self._function, self._timeout = function, timeout
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="worker")
        self._own = threading.local()
        self._executors: set[loky.ProcessPoolExecutor] = set()
        self._lock = threading.Lock()
        self._closed = False

    def submit(self, *arguments: object) -> Future[Result]:
        """Schedule `function(*arguments)`. The future raises what the function raises.

        An item whose process dies is tried once more. If that process dies too, or if it hangs, the future raises
        `LostProcessError`; if no process can be started, `RuntimeError`.
        """
        return self._threads.submit(self._call, arguments)

    def close(self) -> None:
        """Kill the processes, busy or not; futures that are not done raise `CancelledError` or `LostProcessError`."""
        with self._lock:
            self._closed = True
            executors = list(self._executors)
        self._threads.shutdown(wait=False, cancel_futures=True)
        for executor in executors:
            self._kill(executor)
        self._threads.shutdown()

    def __enter__(self) -> ProcessPool[Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, arguments: tuple[object, ...]) -> Result:
        for _ in range(ATTEMPTS):
            executor = self._own.executor = getattr(self._own, "executor", None) or self._start()
            try:
                future = executor.submit(self._function, *arguments)
                finished = bool(wait([future], self._timeout).done)
                if finished and not self._closed and not isinstance(future.exception(), BrokenProcessPool):
                    return future.result()
            except BrokenProcessPool:  # it died while it was idle
                finished = True
            self._own.executor = None
            self._kill(executor)
            if self._closed:
                raise LostProcessError("the process pool was closed")
            if not finished:
                raise LostProcessError(f"the process that worked on it hung for {self._timeout:g} s")
        raise LostProcessError("the process that worked on it died")

    def _start(self) -> loky.ProcessPoolExecutor:
        cause: BaseException | None = None
        for _ in range(ATTEMPTS):
            with self._lock:
                if self._closed:
                    raise LostProcessError("the process pool was closed")
                executor = loky.ProcessPoolExecutor(1, env=dict.fromkeys(_THREAD_VARIABLES, "1"))
                self._executors.add(executor)
            try:
                executor.submit(_set_up, os.getpid(), self._function).result(START_SECONDS)
                return executor
            except (BrokenProcessPool, ShutdownExecutorError, TimeoutError) as error:
                self._kill(executor)
                cause = error
        raise RuntimeError(f"a worker process did not start, {ATTEMPTS} times in a row") from cause

    def _kill(self, executor: loky.ProcessPoolExecutor) -> None:
        executor.shutdown(kill_workers=True)
        self._executors.discard(executor)


def _set_up(parent: int, function: Callable[..., object]) -> None:  # noqa: ARG001 (unpickling it imports its module)
    """Prepare a new worker process: leave Ctrl-C to the parent and end with it, however it ends."""

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def run_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[int, Result | BaseException]]:
    """Yield `(index, function(items[index]))` in the order in which they finish, computed in `workers` processes.

    An exception takes the place of the result: that of the function, or `LostProcessError` if the process died twice.
    Items are read when a process is about to need them.
    """
    indices = iter(range(len(items)))
    running: dict[Future[Result], int] = {}
    with ProcessPool(function, max(1, min(workers, len(items)))) as pool:
        while True:
            for index in islice(indices, 2 * workers - len(running)):
                running[pool.submit(items[index])] = index
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.exception() or future.result()
