"""The PESQ labels: the right numbers, from processes that last, whatever a crop does to its process.

Most scores here are stand-ins: a crop's first sample says what befalls its process, and is its label.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from metrics.pesq import wideband_pesq
from tests.fixtures.commands import ROOT
from tests.fixtures.signals import speech_like, with_noise
from tests.utils.test_processes import is_running, wait_until
from training.pesq_labels import PesqLabeler
from utils.processes import LostProcessError

DIE = 100.0
DIE_ONCE = 200.0
HANG = 300.0
BUG = 400.0


def score_of(label: float) -> float:
    return 1 + 3.5 * label


def eventful(clean: np.ndarray, enhanced: np.ndarray, folder: Path) -> float:
    label = float(clean[0])
    assert np.array_equal(enhanced, -clean)
    marker = folder / "died"
    if label == DIE or (label == DIE_ONCE and not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if label == HANG:
        (folder / "hung").write_text(str(os.getpid()), encoding="utf-8")
        time.sleep(120)
    if label == BUG:
        raise ValueError("a bug")
    return score_of(label)


def own_pid(*_: np.ndarray) -> float:
    time.sleep(0.05)  # so that no process takes all the crops
    return score_of(os.getpid())


def torch_is_loaded(*_: np.ndarray) -> float:
    return score_of("torch" in sys.modules)


def threads(*_: np.ndarray) -> float:
    return score_of(float(os.environ["OMP_NUM_THREADS"]))


def slowly_imported() -> Callable[[np.ndarray, np.ndarray], float]:
    time.sleep(2)
    return threads


class OnImport:
    """A score of which a process gets what a function gives it when it starts."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.reduced = function, arguments

    def __call__(self, clean: np.ndarray, enhanced: np.ndarray) -> float:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.reduced


def batch(*labels: float) -> tuple[np.ndarray, np.ndarray]:
    """Crops that are to get these labels, or to do what they say."""
    clean = np.repeat(np.array(labels, dtype=np.float32)[:, None], 8, axis=1)
    return clean, -clean


def speech(count: int) -> tuple[np.ndarray, np.ndarray]:
    clean = np.stack([speech_like(1, seed=seed) for seed in range(count)])
    return clean.astype(np.float32), np.stack([with_noise(crop, 10) for crop in clean]).astype(np.float32)


def test_labels_are_normalised_pesq_and_the_arrays_may_change() -> None:
    clean, enhanced = speech(3)
    expected = [np.float32((wideband_pesq(*pair) - 1) / 3.5) for pair in zip(clean, enhanced, strict=True)]
    with PesqLabeler(jobs=1) as labels:
        pending = labels.submit(clean, enhanced)
        clean[:], enhanced[:] = 0, 0
        result = labels.collect(pending)
    assert result.dtype == np.float32
    assert result.tolist() == expected
    assert len(set(expected)) == 3
    assert (labels.failed, labels.replaced) == (0, 0)


def test_a_crop_without_pesq_loses_its_own_label_alone() -> None:
    clean, enhanced = speech(4)
    clean[1] = 0
    enhanced[2, 5] = math.nan
    with PesqLabeler(jobs=2) as labels:
        result = labels.collect(labels.submit(clean, enhanced))
    assert np.isnan(result).tolist() == [False, True, True, False]
    assert (labels.failed, labels.replaced) == (2, 0)


def test_the_same_processes_serve_all_steps_and_leave_ctrl_c_to_the_parent() -> None:
    with PesqLabeler(jobs=2, score=own_pid) as labels:
        pids = set(labels.collect(labels.submit(*batch(*range(8)))))
        assert len(pids) == 2
        for pid in pids:
            os.kill(int(pid), signal.SIGINT)
        for _ in range(3):
            assert set(labels.collect(labels.submit(*batch(*range(8))))) <= pids
        assert labels.replaced == 0


def test_a_crop_whose_process_dies_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PesqLabeler(jobs=2, score=partial(eventful, folder=tmp_path)) as labels:
        wanted = [1, 2, DIE_ONCE, 3, 4, 5]
        assert labels.collect(labels.submit(*batch(*wanted))).tolist() == wanted
        assert (labels.failed, labels.replaced) == (0, 1)
    output = capsys.readouterr()
    assert output.err == "PESQ labels: a process died; its crop is tried again. A new one takes its place.\n"
    assert output.out == ""


def test_a_crop_whose_process_dies_twice_loses_its_own_label_alone(tmp_path: Path) -> None:
    with PesqLabeler(jobs=2, score=partial(eventful, folder=tmp_path)) as labels:
        result = labels.collect(labels.submit(*batch(1, DIE, 2, 3)))
        np.testing.assert_array_equal(result, [1, math.nan, 2, 3])
        assert (labels.failed, labels.replaced) == (1, 2)


def test_another_error_than_a_missing_score_is_told_and_costs_the_label(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with PesqLabeler(jobs=1, score=partial(eventful, folder=tmp_path)) as labels:
        np.testing.assert_array_equal(labels.collect(labels.submit(*batch(BUG, 1))), [math.nan, 1])
    assert "ValueError: a bug" in capfd.readouterr().err


def test_a_process_that_dies_between_steps_costs_nothing() -> None:
    with PesqLabeler(jobs=1, score=own_pid) as labels:
        (before,) = labels.collect(labels.submit(*batch(1)))
        os.kill(int(before), signal.SIGKILL)
        wait_until(lambda: not is_running(int(before)))
        (after,) = labels.collect(labels.submit(*batch(1)))
        assert not math.isnan(after)
        assert after != before
        assert (labels.failed, labels.replaced) == (0, 1)


def test_batches_under_way_when_a_process_dies_are_all_labelled(tmp_path: Path) -> None:
    with PesqLabeler(jobs=2, score=partial(eventful, folder=tmp_path)) as labels:
        wanted = [[DIE_ONCE, 1, 2], [3, 4, 5], [6, 7]]
        pending = [labels.submit(*batch(*each)) for each in wanted]
        assert [labels.collect(each).tolist() for each in reversed(pending)] == wanted[::-1]
        assert (labels.failed, labels.replaced) == (0, 1)


def test_a_crop_that_hangs_loses_its_own_label_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PesqLabeler(jobs=1, timeout=1.5, score=partial(eventful, folder=tmp_path)) as labels:
        first = labels.submit(*batch(1, HANG, 2))
        second = labels.submit(*batch(3, 4))
        start = time.monotonic()
        assert labels.collect(second).tolist() == [3, 4]
        np.testing.assert_array_equal(labels.collect(first), [1, math.nan, 2])
        assert time.monotonic() - start < 15
        assert (labels.failed, labels.replaced) == (1, 1)
        assert not is_running(int((tmp_path / "hung").read_text(encoding="utf-8")))
    expected = "PESQ labels: a process hung for 1.5 s; its crop has no label. A new one takes its place.\n"
    assert capsys.readouterr().err == expected


def test_a_slow_start_does_not_count_as_a_hang_and_arithmetic_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with PesqLabeler(jobs=1, timeout=1.5, score=OnImport(slowly_imported)) as labels:
        assert labels.collect(labels.submit(*batch(0, 0))).tolist() == [1, 1]
        assert (labels.failed, labels.replaced) == (0, 0)


def test_processes_that_cannot_start_are_an_error() -> None:
    with PesqLabeler(jobs=1, score=OnImport(os._exit, 1)) as labels:
        with pytest.raises(RuntimeError, match="did not start, 2 times in a row"):
            labels.collect(labels.submit(*batch(1)))
        assert labels.replaced == 2


def test_closing_does_not_wait_for_what_hangs(tmp_path: Path) -> None:
    labels = PesqLabeler(jobs=2, score=partial(eventful, folder=tmp_path))
    pending = labels.submit(*batch(HANG, HANG, 1, 2))
    wait_until((tmp_path / "hung").exists)
    start = time.monotonic()
    labels.close()
    assert time.monotonic() - start < 5
    assert multiprocessing.active_children() == []
    with pytest.raises((CancelledError, LostProcessError)):
        labels.collect(pending)
    with pytest.raises(RuntimeError):
        labels.submit(*batch(1))
    assert labels.replaced == 0
    labels.close()


def test_processes_end_with_a_program_that_is_killed(tmp_path: Path) -> None:
    code = (
        "from functools import partial\n"
        "from pathlib import Path\n"
        "from tests.training.test_pesq_labels import HANG, batch, eventful\n"
        "from training.pesq_labels import PesqLabeler\n"
        f"labels = PesqLabeler(1, score=partial(eventful, folder=Path({str(tmp_path)!r})))\n"
        "labels.collect(labels.submit(*batch(HANG)))\n"
    )
    file = tmp_path / "hung"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL) as parent:
        wait_until(lambda: file.exists() and file.read_text(encoding="utf-8") != "")
        parent.kill()
    wait_until(lambda: not is_running(int(file.read_text(encoding="utf-8"))))


def test_the_processes_of_a_script_with_pytorch_do_without(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "import torch\n"
        "from tests.training.test_pesq_labels import batch, torch_is_loaded\n"
        "from training.pesq_labels import PesqLabeler\n"
        "assert torch_is_loaded() == 4.5\n"
        "with PesqLabeler(1, score=torch_is_loaded) as labels:\n"
        "    print(labels.collect(labels.submit(*batch(1))))\n"
        "assert sys.modules['__main__'].batch is batch\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.check_output([sys.executable, script], env=environment, text=True, timeout=60)
    assert output == "[0.]\n"


@pytest.mark.parametrize("shapes", [((8,), (8,)), ((2, 8), (3, 8)), ((2, 8), (2, 9))])
def test_other_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with PesqLabeler(jobs=1) as labels, pytest.raises(ValueError, match="one shape"):
        labels.submit(*map(np.zeros, shapes))
