"""Worker processes: results, errors, crashes, hangs, and nothing left behind."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from tests.fixtures.commands import ROOT, run_python
from utils.processes import LostProcessError, ProcessPool, available_cores, own_cores, run_in_processes


def work(item: str) -> str:
    """Do what the item says: die, die once, fail, hang, or return an answer."""
    action, _, path = item.partition(" ")
    marker = Path(path)
    if action == "die" or (action == "die_once" and not marker.exists()):
        if path:
            marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "fail":
        raise ValueError("as told")
    if action == "hang":
        marker.write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(120)
    return f"{item} done"


def environment(_: object) -> tuple[str | None, bool]:
    return os.environ.get("OMP_NUM_THREADS"), "torch" in sys.modules


def own_pid(_: object) -> int:
    time.sleep(0.05)  # so that no process takes all of the items
    return os.getpid()


class UnpickledAs:
    """A function that the worker process gets from calling another one, when it starts."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = function, arguments

    def __call__(self, item: object) -> object:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.reduced


@functools.cache
def import_slowly() -> Callable[[object], object]:
    time.sleep(1.5)
    return environment


def test_every_item_has_its_result_or_its_error() -> None:
    results = dict(run_in_processes(work, ["a", "fail", "b", "c"], 2))
    assert {index: results[index] for index in (0, 2, 3)} == {0: "a done", 2: "b done", 3: "c done"}
    assert isinstance(results[1], ValueError)
    assert list(run_in_processes(work, [], 2)) == []
    assert available_cores() >= 1


def test_processes_of_torchrun_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.processes.available_cores", lambda: 9)
    for processes, cores in (("1", 9), ("4", 2), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert own_cores() == cores


def test_items_are_read_when_they_are_needed() -> None:
    read: list[int] = []

    class Items(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    results = run_in_processes(work, Items(["a"] * 20), 1)
    next(results)
    assert len(read) < 5
    assert len(list(results)) == 19


def test_a_crash_costs_one_item(tmp_path: Path) -> None:
    items = ["a", "die", "b", f"die_once {tmp_path / 'marker'}", "die"]
    results = dict(run_in_processes(work, items, 2))
    assert [isinstance(results[index], LostProcessError) for index in range(5)] == [False, True, False, False, True]
    assert (tmp_path / "marker").exists() and results[3] == f"{items[3]} done"
    assert "died" in str(results[1])


def test_a_hang_costs_one_item(tmp_path: Path) -> None:
    with ProcessPool(work, 1, timeout=1.5) as pool:
        futures = [pool.submit(item) for item in ("a", f"hang {tmp_path / 'pid'}", "b")]
        assert (futures[0].result(), futures[2].result()) == ("a done", "b done")
        with pytest.raises(LostProcessError, match="hung"):
            futures[1].result()
        assert not is_running(int((tmp_path / "pid").read_text()))


def test_workers_persist_ignore_ctrl_c_and_are_replaced_when_they_die() -> None:
    with ProcessPool(own_pid, 2) as pool:
        pids = {future.result() for future in [pool.submit(index) for index in range(8)]}
        assert len(pids) == 2
        for pid in pids:
            os.kill(pid, signal.SIGINT)
        assert {future.result() for future in [pool.submit(index) for index in range(8)]} <= pids
        killed = pids.pop()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: not is_running(killed))
        after = {future.result() for future in [pool.submit(index) for index in range(8)]}
        assert killed not in after and pids <= after


def test_workers_have_one_thread_and_no_pytorch_and_their_start_may_take_long(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, torch\n"
        "from tests.utils.test_processes import UnpickledAs, import_slowly\n"
        "from utils.processes import ProcessPool\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPool(UnpickledAs(import_slowly), 1, timeout=1) as pool:\n"
        "        print(pool.submit(0).result(), os.environ['OMP_NUM_THREADS'], 'torch' in sys.modules)\n"
    )
    done = run_python(script, cwd=ROOT, environment={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "5"}, minutes=1)
    assert (done.stdout, done.stderr) == ("('1', False) 5 True\n", "")


def test_processes_that_cannot_start_are_an_error() -> None:
    with ProcessPool(UnpickledAs(os._exit, 1), 1) as pool, pytest.raises(RuntimeError, match="did not start"):
        pool.submit(0).result()


def test_close_does_not_wait_for_a_hang(tmp_path: Path) -> None:
    pool = ProcessPool(work, 1)
    futures = [pool.submit(f"hang {tmp_path / 'pid'}"), pool.submit("a")]
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 10
    assert not is_running(int((tmp_path / "pid").read_text()))
    for future in futures:
        with pytest.raises((CancelledError, LostProcessError)):
            future.result()
    with pytest.raises(RuntimeError):
        pool.submit("a")
    pool.close()


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = (
        "from utils.processes import run_in_processes\n"
        "from tests.utils.test_processes import work\n"
        f"list(run_in_processes(work, ['hang {file}'], 1))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL) as parent:
        wait_until(lambda: file.exists() and file.read_text() != "")
        parent.kill()
    wait_until(lambda: not is_running(int(file.read_text())))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds} s in vain")
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z")
