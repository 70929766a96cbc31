"""The benchmark's figures: those that do not depend on the machine are checked, the others must be there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from config import Config
from scripts.benchmark import macs, noisy_segment, plain_form
from tests.fixtures.commands import run_script


def test_macs_are_those_known_and_those_counted_by_hand(config: Config) -> None:
    plain, ours = plain_form(config)
    noisy = noisy_segment(config, "cpu")
    seconds = config.data.segment_size / config.data.sampling_rate
    with torch.inference_mode():
        released = macs(lambda spectra: plain(spectra.mag, spectra.pha), noisy)
        assert released / seconds == pytest.approx(4.54e9, rel=0.02)
        counted = macs(ours, noisy)
    # Ours leaves out the unread half of two 1×1 convolutions and the fusions (a squeeze to 4, 4 and 6 channels and
    # back), and takes MALA's products for all heads at once.
    expected = released - 2 * (2 * 16 * 16) * 308 * 128
    for width, stages, positions, squeezed in ((16, 4, 308 * 128, 4), (32, 2, 154 * 64, 4), (48, 1, 77 * 32, 6)):
        expected -= stages * 2 * width * squeezed
        per_head, all_heads = (1 + 8 + 8) * width, 5 * width * width
        expected += 4 * stages * (positions * (all_heads - per_head) + 2 * width**3)
    assert counted == expected


def test_the_benchmark_prints_every_figure(tmp_path: Path, small_config: Config) -> None:
    sections = small_config.to_dict()
    sections["data"]["segment_size"] = 3100
    (tmp_path / "small.json").write_text(json.dumps(sections))
    options = ("--config", tmp_path / "small.json", "--rounds", 1, "--threads", 1, "--json", "figures.json")
    done = run_script("scripts/benchmark.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    assert figures["parameters"] < figures["parameters_plain"]
    assert set(figures["real_time_factor"]) == set(figures["peak_megabytes_cpu"]) == {"plain", "ours"}
    assert figures["speedup"]["plain"] == 1
    assert figures["largest_magnitude_difference"]["ours"] < 1e-4
    assert all(value > 0 for value in figures["real_time_factor"].values())
    assert all(value > 0 for value in figures["peak_megabytes_cpu"].values())


def test_a_wrong_config_gets_one_line(tmp_path: Path) -> None:
    done = run_script("scripts/benchmark.py", "--config", "nothing.json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "nothing.json: cannot be read: No such file or directory\n"
