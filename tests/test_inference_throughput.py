"""`inference.py` on many files: batches, threads, processes and interruptions change nothing about the results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from config import Config, load_config
from data.audio import AudioFormat, write_audio
from enhance.enhancer import Enhancer
from enhance.files import Item, Load, Mark, Row, enhance_file, enhance_files, in_batches, is_done
from enhance.onnx_runtime import OnnxNetwork
from enhance.runtimes import fast_enhancer, load_network
from enhance.windows import PROTOCOLS
from models import build
from models.checkpoint import save_checkpoint
from models.stft import Spectra
from tests.fixtures.commands import ROOT, run_script
from tests.fixtures.recordings import NOISY, RATE, files_below, load, save

FLOAT = "FLOAT"
TIMEOUT = 60  # seconds; for a machine that is busy with other things


@pytest.fixture(scope="module")
def quick_config(small_config: Config) -> Config:
    """Short segments, so that short files have many windows."""
    return replace(small_config, data=replace(small_config.data, segment_size=4000))


@pytest.fixture(scope="module")
def network(quick_config: Config) -> nn.Module:
    torch.manual_seed(0)
    return build(quick_config).eval()


@pytest.fixture(scope="module")
def enhancer(network: nn.Module, quick_config: Config) -> Enhancer:
    return Enhancer(network, quick_config)


def mixed_jobs(folder: Path, out: str) -> list[tuple[Path, Path]]:
    """Files of many rates, channel counts and lengths, in 32 bits so that the results can be compared exactly."""
    stereo = np.stack([NOISY, NOISY[::-1]], axis=1)
    recordings = {
        "a.wav": (NOISY[:14_000, None], RATE),
        "b.wav": (stereo[:9000], RATE),
        "c.wav": (NOISY[:700, None], RATE),
        "d.wav": (stereo[:20_000], 48_000),
        "e.wav": (NOISY[5000:5001, None], 8000),
        "f.wav": (NOISY[:8000, None], 8000),
        "g.wav": (0 * NOISY[:5000, None], RATE),
        "h.wav": (NOISY[100:700, None], RATE),
    }
    for name, (samples, rate) in recordings.items():
        write_audio(folder / "in" / name, samples, AudioFormat(rate, samples.shape[1], "WAV", FLOAT))
    return [(folder / "in" / name, folder / out / name) for name in recordings]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batches_give_what_single_files_give(tmp_path: Path, enhancer: Enhancer, protocol: str) -> None:
    for source, target in mixed_jobs(tmp_path, "alone"):
        enhance_file(source, target, enhancer, protocol)
    for number, pace in enumerate([Load(), Load(3), Load(16)]):
        jobs = mixed_jobs(tmp_path, str(number))
        assert enhance_files(jobs, enhancer, protocol, pace) == {}
        for _, target in jobs:
            alone, together = load(tmp_path / "alone" / target.name), load(target)
            assert alone.shape == together.shape
            assert np.abs(alone).max() > 1e-4 or target.name == "g.wav"
            exact = pace.batch_size == 1
            np.testing.assert_allclose(together, alone, rtol=0, atol=0 if exact else 1e-5, err_msg=f"{pace} {target}")


class Counting(nn.Module):
    """Changes nothing, and counts how large batches are, by their frames."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, int]] = []

    def forward(self, spectra: Spectra) -> Spectra:
        self.batches.append((len(spectra.mag), spectra.mag.shape[-1]))
        return spectra


def test_windows_of_several_files_share_a_batch(tmp_path: Path, quick_config: Config) -> None:
    for number in range(6):
        save(tmp_path / f"in/{number}.wav", NOISY[: 12_000 if number < 5 else 4000])
    jobs = [(path, tmp_path / "out" / path.name) for path in sorted((tmp_path / "in").iterdir())]
    counting = Counting()
    assert enhance_files(jobs, Enhancer(counting, quick_config), "paper", Load(5)) == {}
    # By hand: five files of three segments and one of one; 4000 samples are 41 frames.
    assert counting.batches == [(5, 41), (5, 41), (5, 41), (1, 41)]


def started_batches(lengths: list[int], batch_size: int, patience: int) -> list[tuple[int, list[int]]]:
    """How many items had passed at the start of each batch, and the numbers of its rows."""
    batches: list[tuple[int, list[int]]] = []
    rows = [Row(np.full(length, number, np.float32)) for number, length in enumerate(lengths)]
    passed = 0

    def start(batch: list[Row]) -> None:
        batches.append((passed, [int(row.samples[0]) for row in batch]))

    items: Iterator[Item] = iter([[row] for row in rows])
    for item in in_batches(items, batch_size, patience, start):
        assert item == [rows[passed]]
        passed += 1
    return batches


def test_who_waits_for_whom() -> None:
    assert started_batches([5, 5, 5, 5, 5], 2, 100) == [(1, [0, 1]), (3, [2, 3]), (5, [4])]
    # The 7 waits until three more have come.
    assert started_batches([7, 5, 5, 6, 7, 5], 2, 3) == [(2, [1, 2]), (3, [0]), (6, [3]), (6, [4]), (6, [5])]
    assert started_batches([1, 2, 3], 1, 4) == [(0, [0]), (1, [1]), (2, [2])]
    errors = list(in_batches(iter([Mark.END_OF_FILE]), 4, 1, lambda _: None))
    assert errors == [Mark.END_OF_FILE]


class FailsAt(nn.Module):
    """Has no memory for batches, nor for magnitudes beyond a limit."""

    def __init__(self, rows: int, frames: int) -> None:
        super().__init__()
        self.rows, self.frames = rows, frames

    def forward(self, spectra: Spectra) -> Spectra:
        if len(spectra.mag) > self.rows or spectra.mag.shape[-1] > self.frames:
            raise torch.OutOfMemoryError("needs 100 GB")
        return spectra


def test_a_bad_file_among_others_fails_alone(
    tmp_path: Path, quick_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{number}.wav" for number in range(40)]
    for name in names:
        save(tmp_path / "in" / name, NOISY[:9000], subtype=FLOAT)
    bad = {"3.wav": b"", "4.wav": b"no sound", **{f"{number}.wav": b"" for number in range(20, 39)}}
    for name, content in bad.items():
        (tmp_path / "in" / name).write_bytes(content)
    damaged = NOISY[:9000].copy()
    damaged[8990] = np.nan
    soundfile.write(tmp_path / "in/7.wav", damaged, RATE, subtype=FLOAT)
    (tmp_path / "out/9.wav").mkdir(parents=True)  # cannot be replaced by a file
    jobs = [(tmp_path / "in" / name, tmp_path / "out" / name) for name in names]
    failures = enhance_files(jobs, Enhancer(FailsAt(1, 1000), quick_config), "paper", Load(16))
    assert {target.name for target in failures} == {*bad, "7.wav", "9.wav"}
    # In the files' order, one line each.
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines
        == list(failures.values())
        == [failures[tmp_path / "out" / n] for n in names if n in bad or n in "7.wav 9.wav"]
    )
    done = {name for name in names if name not in bad and name not in ("7.wav", "9.wav")}
    assert files_below(tmp_path / "out") == done
    for name in done:
        np.testing.assert_allclose(load(tmp_path / "out" / name), load(tmp_path / "in" / name), rtol=0, atol=1e-4)


def test_one_window_without_memory_fails_its_file_only(tmp_path: Path, quick_config: Config) -> None:
    for name, samples in (("a.wav", 9000), ("b.wav", 30_000), ("c.wav", 9000)):
        save(tmp_path / "in" / name, NOISY[:samples])
    jobs = [(path, tmp_path / "out" / path.name) for path in sorted((tmp_path / "in").iterdir())]
    failures = enhance_files(jobs, Enhancer(FailsAt(1, 200), quick_config), "whole", Load())
    assert failures == {
        tmp_path / "out/b.wav": f"{tmp_path}/in/b.wav: too long for --protocol whole (needs 100 GB); use overlap"
    }
    assert files_below(tmp_path / "out") == {"a.wav", "c.wav"}


class Broken(nn.Module):
    """Has a fault."""

    def forward(self, _: Spectra) -> Spectra:
        raise ValueError("a fault")


def test_a_fault_in_the_network_ends_the_run_with_nothing_half_written(tmp_path: Path, quick_config: Config) -> None:
    jobs = mixed_jobs(tmp_path, "out")
    with pytest.raises(ValueError, match="a fault"):
        enhance_files(jobs, Enhancer(Broken(), quick_config), "overlap", Load(2))
    assert files_below(tmp_path / "out") == set()


def test_no_files(enhancer: Enhancer) -> None:
    assert enhance_files([], enhancer, "overlap") == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("cpu", "overlap", None, 2), Load(1, 2)),
        (("cpu", "overlap", 4, 1), Load(4, 1)),
        (("cpu", "whole", 4, 6), Load(1, 6)),
        (("cuda:1", "paper", None, 6), Load(16, 6)),
        (("cuda", "paper", 3, None), Load(3, torch.get_num_threads())),
    ],
)
def test_what_is_computed_at_a_time(arguments: tuple[str, str, int | None, int | None], expected: Load) -> None:
    assert Load.choose(*arguments) == expected


class Threads(nn.Module):
    """Changes nothing, and remembers how many threads it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def forward(self, spectra: Spectra) -> Spectra:
        self.seen.add(torch.get_num_threads())
        return spectra


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_of_torch(tmp_path: Path, quick_config: Config, threads: int) -> None:
    network, before = Threads(), torch.get_num_threads()
    assert enhance_files(mixed_jobs(tmp_path, "out"), Enhancer(network, quick_config), "paper", Load(1, threads)) == {}
    assert network.seen == {threads}
    assert torch.get_num_threads() == before


def test_is_done(tmp_path: Path) -> None:
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    save(source, NOISY[:500])
    assert not is_done(source, target)
    save(target, NOISY[:500])
    assert is_done(source, target)
    for samples, rate, subtype in ((499, RATE, "PCM_16"), (500, 8000, "PCM_16"), (500, RATE, "PCM_24")):
        save(target, NOISY[:samples], rate, subtype=subtype)
        assert not is_done(source, target)
    save(target, NOISY[:500])
    os.utime(target, (0, 0))
    assert not is_done(source, target)
    target.write_text("no sound")
    assert not is_done(source, target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path) -> Path:
    """`in` with files, and `out` with what one process makes of them."""
    folder = tmp_path_factory.mktemp("folder")
    for number in range(8):
        save(folder / f"in/{number % 2}/{number}.wav", NOISY[: 20_000 + 100 * number])
    result = run_script("inference.py", *arguments(small_checkpoint, "out"), cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    return folder


def arguments(checkpoint: Path, out: str, *more: object) -> list[object]:
    common = ["--input_noisy_wavs_dir", "in", "--output_dir", out, "--checkpoint_file", checkpoint]
    return [*common, "--device", "cpu", "--quiet", *more]


def results(folder: Path) -> dict[str, np.ndarray]:
    """Samples in steps of 16 bits, by file name; without the files that a killed process left half written."""
    names = (name for name in files_below(folder) if not name.endswith(".part"))
    return {name: soundfile.read(folder / name, dtype="int16")[0].astype(int) for name in names}


def assert_same_results(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, samples in found.items():
        # Rounding may fall either way where threads share the work differently.
        np.testing.assert_allclose(samples, expected[name], rtol=0, atol=1, err_msg=name)


def interrupt(folder: Path, command: list[object], out: str, number: int) -> tuple[int, str]:
    """Start, send a signal when the first results are there; exit code and standard error."""
    process = subprocess.Popen([sys.executable, *map(str, command)], cwd=folder, stderr=subprocess.PIPE, text=True)
    with process:
        deadline = time.monotonic() + TIMEOUT
        while len(list((folder / out).rglob("*.wav"))) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT)
    return process.returncode, errors


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGKILL, -9, ""), (signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "interrupted\n")],
)
def test_resumed_is_as_uninterrupted(folder: Path, small_checkpoint: Path, number: int, code: int, words: str) -> None:
    out = f"out_{number}"
    command = [ROOT / "inference.py", *arguments(small_checkpoint, out, "--num_threads", "1")]
    assert interrupt(folder, command, out, number) == (code, words)
    there, uninterrupted = results(folder / out), results(folder / "out")
    assert 2 <= len(there) < 8
    assert_same_results(there, {name: uninterrupted[name] for name in there})
    if number != signal.SIGKILL:
        assert files_below(folder / out) == set(there)  # nothing half written
    times = {name: (folder / out / name).stat().st_mtime_ns for name in there}
    result = run_script("inference.py", *arguments(small_checkpoint, out, "--resume"), cwd=folder)
    assert (result.returncode, result.stderr) == (0, f"{len(there)} of 8 files are done already\n")
    assert_same_results(results(folder / out), uninterrupted)
    assert times == {name: (folder / out / name).stat().st_mtime_ns for name in there}


def torchrun(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*launcher, str(ROOT / "inference.py"), *map(str, command)],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT,
        check=False,
    )


def test_two_processes_give_the_files_of_one(folder: Path, small_checkpoint: Path) -> None:
    (folder / "in/bad.wav").write_text("no sound")
    try:
        result = torchrun(folder, *arguments(small_checkpoint, "out_2", "--input_clean_wavs_dir", "in"))
    finally:
        (folder / "in/bad.wav").unlink()
    assert result.returncode == 1
    assert result.stderr.count("in/bad.wav: not an audio file that can be decoded") == 1
    # One table, of all files.
    assert result.stdout.startswith("9 files, 1 failed")
    assert result.stdout.count("pesq") + result.stdout.count("PESQ") == 1
    assert_same_results(results(folder / "out_2"), results(folder / "out"))


def test_onnxruntime_gives_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    config = load_config(ROOT / "configs" / "lite_rtse.json")
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "lite.safetensors", build(config), config)
    jobs = {backend: mixed_jobs(tmp_path, backend)[:3] for backend in ("torch", "onnxruntime")}
    for backend, own in jobs.items():
        network, config = load_network(tmp_path / "lite.safetensors", backend, threads=1)
        assert isinstance(network, OnnxNetwork) == (backend == "onnxruntime")
        assert enhance_files(own, Enhancer(network, config), "overlap") == {}
    for (_, one), (_, other) in zip(*jobs.values(), strict=True):
        np.testing.assert_allclose(
            load(other), load(one), rtol=0, atol=1e-4 * np.abs(load(one)).max(), err_msg=one.name
        )


@pytest.mark.slow
def test_compiled_results(tmp_path: Path, network: nn.Module, quick_config: Config, enhancer: Enhancer) -> None:
    pace = Load(1, 1)
    compiled = fast_enhancer(network, quick_config, "cpu", "overlap", pace, bf16=False, compiled=True)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    exact, ours = mixed_jobs(tmp_path, "exact"), mixed_jobs(tmp_path, "ours")
    assert enhance_files(exact, enhancer, "overlap", pace) == enhance_files(ours, compiled, "overlap", pace) == {}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before > 0  # nothing was compiled again
    for (_, one), (_, other) in zip(exact, ours, strict=True):
        np.testing.assert_allclose(load(other), load(one), rtol=0, atol=1e-4, err_msg=one.name)
