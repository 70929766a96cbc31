"""The process pool: results, errors, processes that die, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fixtures.commands import ROOT
from utils.processes import LostProcessError, available_cores, run_in_processes


def work(item: str) -> str:
    """What the item says: die, die unless a file is there, fail, or give an answer."""
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if item.startswith("die once "):
        marker = Path(item.removeprefix("die once "))
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if item == "fail":
        raise ValueError("as told")
    return f"{item} done"


def threads(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def write_pid_and_wait(path: Path) -> None:
    path.write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(120)


def test_every_item_has_its_result_or_its_error() -> None:
    results = dict(run_in_processes(work, ["a", "fail", "b", "c"], jobs=2))
    assert {index: results[index] for index in (0, 2, 3)} == {0: "a done", 2: "b done", 3: "c done"}
    assert isinstance(results[1], ValueError)


def test_a_process_that_dies_costs_its_own_item_alone() -> None:
    results = dict(run_in_processes(work, ["a", "die", "b", "c", "die"], jobs=2))
    assert sorted(results) == list(range(5))
    assert [isinstance(results[index], LostProcessError) for index in range(5)] == [False, True, False, False, True]
    assert results[3] == "c done"
    assert str(results[1]) == "the process that worked on it died"


def test_an_item_whose_process_dies_once_is_tried_again(tmp_path: Path) -> None:
    items = ["a", f"die once {tmp_path / 'marker'}", "b"]
    assert dict(run_in_processes(work, items, jobs=2)) == {n: f"{item} done" for n, item in enumerate(items)}


def test_one_arithmetic_thread_a_process_and_the_parent_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    assert list(run_in_processes(threads, [0], jobs=3)) == [(0, "1")]
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in os.environ


def test_nothing_to_do() -> None:
    assert list(run_in_processes(work, [], jobs=2)) == []
    assert available_cores() >= 1


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "from pathlib import Path\n"
        "from utils.processes import run_in_processes\n"
        "from tests.utils.test_processes import write_pid_and_wait\n"
        f"list(run_in_processes(write_pid_and_wait, [Path({str(pid_file)!r})], jobs=1))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL) as parent:
        wait_until(lambda: pid_file.exists() and pid_file.read_text(encoding="utf-8") != "")
        parent.kill()
    child = int(pid_file.read_text(encoding="utf-8"))
    wait_until(lambda: not is_running(child))
    assert not is_running(child)


def wait_until(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds} s in vain")
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether the process is there and not just waiting to be collected."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z")
