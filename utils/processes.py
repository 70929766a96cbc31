"""Run a task on many items in processes that may die: one file that crashes a library must not end the run.

Processes, not threads: PESQ keeps its state in C globals and crashes on some signals. They are started
afresh (`spawn`), so this works on every system and beside a GPU; scripts that use it keep their work under
`if __name__ == "__main__":`, since each process imports the script.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class LostProcessError(Exception):
    """The process that worked on an item died: killed, out of memory, or crashed in a library."""


def available_cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def run_in_processes(
    task: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[tuple[int, Result | BaseException]]:
    """Yield `(index, task(items[index]))` as they finish, in `jobs` processes of one arithmetic thread.

    What a task raises is yielded in place of its result. When a process dies, every item that was under way
    is tried once more, one at a time; one whose process dies again yields a `LostProcessError`. `task`, the
    items and the results must be picklable.
    """
    queue = deque(range(len(items)))
    with one_thread_each():
        while queue:
            jobs = min(jobs, len(queue))
            suspects = deque((yield from _run_until_death(task, items, queue, jobs, 2 * jobs)))
            while suspects:
                for index in (yield from _run_until_death(task, items, suspects, 1, 1)):
                    yield index, LostProcessError("the process that worked on it died")


def _run_until_death(
    task: Callable[[Item], Result], items: Sequence[Item], queue: deque[int], jobs: int, under_way: int
) -> Generator[tuple[int, Result | BaseException], None, list[int]]:
    """Work the queue off, until it is empty or a process dies; return the indices that were under way then.

    At most `under_way` items are handed out at a time: more than one a process keeps all busy, one alone says
    which item a process died of.
    """
    lost: list[int] = []
    running: dict[Future[Result], int] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=set_up_process) as pool:
        while running or (queue and not lost):
            while queue and len(running) < under_way and not lost:
                index = queue.popleft()
                try:
                    running[pool.submit(task, items[index])] = index
                except BrokenProcessPool:
                    lost.append(index)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    lost.append(index)
                else:
                    yield index, error or future.result()
    return sorted(lost)


def set_up_process() -> None:
    """Leave Ctrl-C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started meanwhile use one thread for arithmetic: libraries read these when they load."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
