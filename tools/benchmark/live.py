"""Delay, drop-outs and computing time of `inference.py --stream`, fed in real time as by a microphone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any

import numpy as np

from cli import UserError
from data.audio import read_audio
from enhance.runtimes import load_network
from enhance.stdio import READ_BYTES
from enhance.streaming import Stream

ROOT = Path(__file__).resolve().parents[2]


def measure_live(options: Namespace) -> list[dict[str, Any]]:
    """Play a noisy file in real time through `inference.py --stream`: delay, drop-outs, computing time.

    The file is repeated for `--seconds` and written in pieces of 10 ms, each when a sound card would deliver it: at the
    time of its last sample. The delay of a sample is the time from when it was due until it came out; its maximum is at
    least the latency that the stream states. Silence goes first, and when it comes out, the start-up is over.

    Raises `UserError` if a network cannot stream or the stream ends early.
    """
    return [measure_checkpoint(path, options) for path in options.checkpoint_file]


def measure_checkpoint(path: Path, options: Namespace) -> dict[str, Any]:
    """Return the row of one checkpoint."""
    stream = Stream(*load_network(path))
    rate, latency = stream.sampling_rate, round(stream.latency * stream.sampling_rate)
    piece, warm_up, samples = rate // 100, rate // 2, options.seconds * rate
    noisy = read_audio(options.noisy_file, rate)[0][:, 0]
    noisy = np.resize(noisy, samples + latency + piece)  # what follows the samples lets the last of them out
    pcm = np.clip(np.rint(noisy * 32_768), -32_768, 32_767).astype("<i2")
    arguments = ["--stream", "--quiet", "--checkpoint_file", path, "--backend", options.backend]
    command = [sys.executable, ROOT / "inference.py", *arguments]
    late: list[float] = []
    counts: list[int] = []
    times: list[float] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin and process.stdout
        stdin, stdout = process.stdin, process.stdout

        def play() -> None:
            with suppress(BrokenPipeError):
                for end in range(piece, len(pcm) + 1, piece):
                    due = start + end / rate
                    time.sleep(max(0.0, due - perf_counter()))
                    late.append(perf_counter() - due)
                    stdin.write(pcm[end - piece : end].tobytes())

        def receive(total: int) -> None:
            """Read until `total` samples have come since the start."""
            while sum(counts) < total:
                data = stdout.read(READ_BYTES)
                if not data:
                    raise UserError(f"{path}: inference.py --stream ended early, with exit code {process.wait()}")
                counts.append(len(data) // 2)
                times.append(perf_counter())

        try:
            with suppress(BrokenPipeError):
                stdin.write(bytes(2 * (warm_up + latency)))
            receive(warm_up)
            cpu_before, start = cpu_seconds(process.pid), perf_counter()
            writer = Thread(target=play, daemon=True)
            writer.start()
            receive(warm_up + latency + samples)
            cpu = cpu_seconds(process.pid) - cpu_before
        finally:
            process.kill()
        writer.join()
    arrival = np.repeat(times, counts)[warm_up + latency :][:samples]
    delays = 1e3 * (arrival - start - np.arange(samples) / rate)
    return {
        "checkpoint": path.stem,
        "backend": options.backend,
        "samples": samples,
        "latency ms": 1e3 * stream.latency,
        "median ms": float(np.median(delays)),
        "99 % ms": float(np.percentile(delays, 99)),
        "max ms": float(delays.max()),
        "writer late ms": 1e3 * max(late),
        "buffer ms": options.buffer,
        "drop-outs": count_dropouts(arrival, rate, options.buffer / 1e3),
        "RTF": cpu / options.seconds,
    }


def count_dropouts(arrival: np.ndarray, rate: int, buffer: float) -> int:
    """Count how often a player runs empty that begins `buffer` seconds after the first sample, and after each drop-out.

    arrival: time of each sample in seconds, `[N]`, ascending; rate in Hz.
    """
    count, begin = 0, arrival[0] + buffer
    for index in np.flatnonzero(np.diff(arrival, prepend=-np.inf)):  # first samples of the pieces
        if arrival[index] > begin + index / rate:
            count, begin = count + 1, arrival[index] + buffer - index / rate
    return count


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far; NaN where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
