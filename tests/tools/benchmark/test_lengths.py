"""The benchmark over lengths: its cases, the lengths that it leaves out, and that the command gives all others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tools.benchmark.lengths as benchmark
from config import Config, load_config
from enhance.enhancer import Enhancer
from enhance.runtimes import OneDnnPointwise
from models.stft import Spectra
from tests.fixtures.commands import run_module
from tools.benchmark.lengths import Case, Cost, Plain, as_text, cases_of, measure_case, noise_blocks
from tools.benchmark.network import CONFIGS


def test_the_command_measures_every_case(tmp_path: Path, small_config: Config) -> None:
    pytest.importorskip("matplotlib")
    sections = small_config.to_dict()
    sections["data"]["segment_size"] = 3100
    (tmp_path / "small.json").write_text(json.dumps(sections))
    options = ("--config", "small.json", "--forms", "plain", "eager", "--protocols", "overlap", "whole")
    files = ("--json", "figures.json", "--plot", "plots/lengths")
    done = run_module("tools.benchmark.lengths", *options, "--lengths", 0.5, 0.1, "--threads", 1, *files, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    figures = json.loads(last)
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    cases = [(each["form"], each["protocol"], each["length"]) for each in figures]
    names = [("plain", "whole"), ("eager", "overlap"), ("eager", "whole")]
    assert cases == [(*name, length) for name in names for length in (0.1, 0.5)]
    assert len(table) == 1 + len(cases)
    for each in figures:
        assert each["real_time_factor"] == pytest.approx(each["seconds"] / each["length"])
        assert 0 < each["first_output"] <= each["seconds"]
        assert 100 < each["peak_megabytes"] < 10_000
    assert (tmp_path / "plots/lengths.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "plots/lengths.svg").read_text()
    assert drawn.rstrip().endswith("</svg>")


def test_cases() -> None:
    imse, lite = (load_config(CONFIGS / f"{name}.json") for name in ("imse", "lite_rtse"))
    found = cases_of(imse, ["plain", "compiled"], ["paper", "whole"], [1, 2])
    expected = [("plain", "paper"), ("plain", "whole"), ("compiled", "paper")]
    assert found == [Case("imse", *names, threads) for names in expected for threads in (1, 2)]
    assert cases_of(lite, ["plain"], ["paper"], [1]) == []


@pytest.fixture
def seconds_of(monkeypatch: pytest.MonkeyPatch) -> dict[float, float]:
    """What each length takes, by a clock of ours; all that was timed, in order, under `asked`."""
    taken = {0.5: 1.0, 4.0: 6.0, 30.0: 60.0, 100.0: 100.0}
    monkeypatch.setattr(benchmark, "timed", lambda _, __, length: (taken[length] / 2, taken[length]))
    monkeypatch.setattr(
        benchmark, "enhancer_of", lambda *_: Enhancer(nn.Identity(), load_config(CONFIGS / "imse.json"))
    )
    monkeypatch.setattr(benchmark, "WARM_UP_SECONDS", 4.0)
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: None)
    return taken


@pytest.mark.parametrize(
    ("protocol", "limit", "lengths"),
    [
        ("overlap", 1000, [0.5, 4, 30, 100]),
        # By hand: 30 s at a real-time factor of 1.5 would take 45 s.
        ("overlap", 44, [0.5, 4]),
        ("overlap", 46, [0.5, 4, 30]),
    ],
)
def test_what_takes_too_long_is_left_out(
    config: Config, seconds_of: dict[float, float], protocol: str, limit: float, lengths: list[float]
) -> None:
    case = Case("imse", "eager", protocol, torch.get_num_threads())
    costs = measure_case(config, case, [100.0, 4.0, 30.0, 0.5], limit, None)
    assert [cost.length for cost in costs] == lengths
    for cost in costs:
        assert (cost.seconds, cost.first_output) == (seconds_of[cost.length], seconds_of[cost.length] / 2)
        assert cost.real_time_factor == seconds_of[cost.length] / cost.length


def test_one_pass_has_its_limit(config: Config, seconds_of: dict[float, float]) -> None:
    seconds_of[400.0] = 1.0
    case = Case("imse", "eager", "whole", torch.get_num_threads())
    costs = measure_case(config, case, [100.0, 400.0], 1000, None)
    assert [cost.length for cost in costs] == [100]  # 160 segments of 1.92 s are 307 s


class Doubled(nn.Module):
    """A plain network: two tensors in, two out, and no frame count but a multiple of four."""

    def forward(self, mag: torch.Tensor, pha: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert mag.shape[-1] % 4 == 0
        return 2 * mag, pha


@pytest.mark.parametrize("frames", [1, 4, 7])
def test_a_plain_network_takes_any_number_of_frames(frames: int) -> None:
    noisy = Spectra(torch.rand(1, 5, frames), torch.rand(1, 5, frames))
    enhanced = Plain(Doubled())(noisy)
    assert torch.equal(enhanced.mag, 2 * noisy.mag)
    assert torch.equal(enhanced.pha, noisy.pha)


def test_the_plain_network_is_left_as_it_is(config: Config) -> None:
    plain = benchmark.enhancer_of(config, Case("imse", "plain", "paper", 1), None)
    assert any(isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) for part in plain.modules())
    assert not any(isinstance(part, OneDnnPointwise) for part in plain.modules())


def test_noise_of_any_length() -> None:
    assert [len(block) for block in noise_blocks(2**20 + 5)] == [2**20, 5]
    assert np.abs(next(noise_blocks(1000))).max() == pytest.approx(0.1, abs=0.01)


def test_a_row_for_each_length() -> None:
    costs = [Cost(1, 0.25, 0.25, 0.2, 300), Cost(60, 6, 0.1, 0.3, 400)]
    rows = as_text([(Case("imse", "eager", "overlap", 2), costs)]).splitlines()[1:]
    assert [row.split() for row in rows] == [
        ["imse", "eager", "overlap", "2", "1", "0.250", "200", "300"],
        ["imse", "eager", "overlap", "2", "60", "0.100", "300", "400"],
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--threads", "0"], "--threads, --lengths, --limit: must be above 0"),
        (["--lengths", "nan"], "--threads, --lengths, --limit: must be above 0"),
        (["--forms", "fast"], "argument --forms: invalid choice"),
        (["--config", "nothing.json"], "nothing.json: cannot be read"),
    ],
)
def test_a_wrong_command_line_gets_one_line(tmp_path: Path, options: list[str], words: str) -> None:
    done = run_module("tools.benchmark.lengths", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
