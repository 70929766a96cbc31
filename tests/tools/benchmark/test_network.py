"""The benchmark's figures: those that do not depend on the machine are checked, the others must be there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from config import Config, load_config
from tests.fixtures.commands import run_module
from tools.benchmark.network import ALL_NETWORKS, CONFIGS, forms_of, macs, noisy_segment


def test_macs_are_those_known_and_those_counted_by_hand(config: Config) -> None:
    forms, noisy = forms_of(config, "cpu"), noisy_segment(config, "cpu")
    seconds = config.data.segment_size / config.data.sampling_rate
    with torch.inference_mode():
        released = macs(forms["plain"], noisy)
        assert released / seconds == pytest.approx(4.54e9, rel=0.02)
        counted = macs(forms["ours"], noisy)
    # Ours leaves out the unread half of two 1×1 convolutions and the fusions (a squeeze to 4, 4 and 6 channels and
    # back), and takes MALA's products for all heads at once.
    expected = released - 2 * (2 * 16 * 16) * 308 * 128
    for width, stages, positions, squeezed in ((16, 4, 308 * 128, 4), (32, 2, 154 * 64, 4), (48, 1, 77 * 32, 6)):
        expected -= stages * 2 * width * squeezed
        per_head, all_heads = (1 + 8 + 8) * width, 5 * width * width
        expected += 4 * stages * (positions * (all_heads - per_head) + 2 * width**3)
    assert counted == expected


@pytest.mark.parametrize(
    ("name", "form", "samples", "known"),
    [
        ("muse", "plain", 30_700, 9.98e9),
        ("lite_rtse", "ours", 62 * 256, 0.642e9),
        ("cnunet", "ours", 162 * 100, 7.576e9),
    ],
)
def test_macs_of_the_other_networks_are_those_known(name: str, form: str, samples: int, known: float) -> None:
    """One segment of MUSE, 63 frames of Lite-RTSE, 163 of CNUNet without its STFT."""
    config = load_config(CONFIGS / f"{name}.json", [f"data.segment_size={samples}"])
    with torch.inference_mode():
        counted = macs(forms_of(config, "cpu")[form], noisy_segment(config, "cpu"))
    assert counted == pytest.approx(known, rel=0.02)


def test_the_benchmark_compares_networks_in_one_run(tmp_path: Path, small_config: Config) -> None:
    sections = small_config.to_dict()
    sections["data"]["segment_size"] = 3100
    paths = [tmp_path / "small.json", tmp_path / "lite.json"]
    paths[0].write_text(json.dumps(sections))
    lite = load_config(CONFIGS / "lite_rtse.json", ["data.segment_size=8000"])
    paths[1].write_text(json.dumps(lite.to_dict()))
    options = ("--config", *paths, "--rounds", 1, "--threads", 1, "--json", "figures.json")
    done = run_module("tools.benchmark.network", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == json.loads((tmp_path / "figures.json").read_text())
    imse, lite_rtse = figures["networks"]
    assert (imse["network"], lite_rtse["network"]) == ("imse", "lite_rtse")
    assert imse["parameters"]["ours"] < imse["parameters"]["plain"]
    assert lite_rtse["parameters"] == {"ours": 1_559_245}
    assert set(imse["real_time_factor"]) == set(imse["peak_megabytes_cpu"]) == {"plain", "ours"}
    assert imse["speedup"]["plain"] == 1
    assert imse["largest_magnitude_difference"]["ours"] < 1e-4
    for network in figures["networks"]:
        for name in ("real_time_factor", "peak_megabytes_cpu", "gmacs_per_second"):
            assert all(value > 0 for value in network[name].values())
    assert [line.split()[:2] for line in done.stdout.splitlines()[2:5]] == [
        ["imse", "plain"], ["imse", "ours"], ["lite_rtse", "ours"]
    ]  # fmt: skip


def test_all_networks_are_compared_where_none_is_named() -> None:
    assert [load_config(path).model.name for path in ALL_NETWORKS] == ["imse", "muse", "lite_rtse", "cnunet"]


def test_the_stream_is_timed_hop_by_hop(tmp_path: Path) -> None:
    done = run_module("tools.benchmark.network", "stream", "--rounds", 5, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["hops"], figures["threads"], figures["hop_seconds"]) == (5, 1, 0.016)
    assert figures["latency_seconds"] == 0.032
    for name, seconds in figures["seconds"].items():
        assert figures["real_time_factor"][name] == pytest.approx(seconds / 0.016)
    assert 0 < figures["seconds"]["median"] <= figures["seconds"]["percentile_99"]


def test_a_network_that_cannot_stream_gets_one_line(tmp_path: Path) -> None:
    done = run_module("tools.benchmark.network", "stream", "--config", CONFIGS / "imse.json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("IMSE cannot stream")
    assert done.stderr.count("\n") == 1


def test_a_wrong_config_gets_one_line(tmp_path: Path) -> None:
    done = run_module("tools.benchmark.network", "--config", "nothing.json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "nothing.json: cannot be read: No such file or directory\n"
