"""`python -m tools.inspect`: its figures and numbers per network, and errors."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the extra report is not installed")
pytest.importorskip("librosa", reason="the extra report is not installed")
from PIL import Image

from cli import UserError
from config import Config, load_config
from models.stft import Spectra
from tests.fixtures.commands import ROOT, Result, call_main
from tests.fixtures.networks import save_random
from tests.fixtures.recordings import RATE, files_below, save
from tests.fixtures.signals import speech_like, with_noise
from tools.inspect import __main__ as inspect
from tools.inspect import figures
from tools.inspect.figures import weight_statistics
from tools.inspect.trace import TFPoint, Trace

CLEAN = speech_like(0.6, rate=44_100)
ALWAYS = {"spectrograms.png", "mask.png", "numbers.json"}
STAGES = ("encoder_level1", "bottleneck", "mag_refinement")


@pytest.fixture(autouse=True)
def _low_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save time."""
    monkeypatch.setattr(figures, "DPI", 40)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a stereo recording at 44.1 kHz and its clean version."""
    monkeypatch.chdir(tmp_path)
    noisy = with_noise(CLEAN, 5)
    save(tmp_path / "noisy.wav", np.stack([noisy, 0.5 * noisy], axis=1), rate=44_100)
    save(tmp_path / "clean.wav", CLEAN, rate=44_100)
    return tmp_path


def run(*arguments: object) -> Result:
    return call_main(inspect.main, "--input_noisy_wav", "noisy.wav", "--output_dir", "out", *arguments)


def numbers() -> dict:
    return json.loads(Path("out/numbers.json").read_text())


def test_figures_and_numbers_of_imse(folder: Path, small_checkpoint: Path) -> None:
    options = ("--input_clean_wav", "clean.wav", "--checkpoint_file", small_checkpoint)
    assert run(*options, "--seconds", 0.4, "--query", "0.3,500") == (0, "", "")
    assert files_below(folder / "out") == ALWAYS | {"attention.png", "idconv.png"}
    for name in ("spectrograms", "mask", "attention", "idconv"):
        assert min(Image.open(f"out/{name}.png").size) > 100
    found = numbers()

    percentiles = found["mask"]["percentiles_5_25_50_75_95"]
    assert 0 < percentiles[0] < percentiles[2] < percentiles[4] < found["mask"]["largest"] <= 2
    assert (found["mask"]["share_above_1"] > 0.5) == (percentiles[2] > 1)

    maps = {(each["stage"], each["attention"]): each for each in found["attention"]}
    assert len(maps) == len(found["attention"]) == 3 * 2
    for stage in STAGES:
        mala, linear = (maps[stage, name] for name in ("MALA", "linear attention"))
        # MALA is linear attention, scaled by 1 + z around the uniform weight.
        stretch = mala["standard_deviation"] / linear["standard_deviation"]
        assert stretch > 1
        assert mala["sum"] - 1 == pytest.approx(stretch * (linear["sum"] - 1), rel=1e-3)
        assert mala["mean_near"] - 1 == pytest.approx(stretch * (linear["mean_near"] - 1), rel=1e-3, abs=1e-3)

    # A stage of width 8 has one band kernel per direction, one of width 24 has three.
    assert len(found["idconv"]) == 2 * (1 + 3 + 1)
    # Frames are 6.25 ms apart, so the highest modulation is 80 Hz; bins of the first level are 63 Hz apart.
    highest = {"ms": 1000 / (2 * 2 * RATE / 510), "Hz": 80.0}
    for each in found["idconv"]:
        share = 4 if each["stage"] == "bottleneck" else 1
        assert 0 <= each["at"] <= highest[each["unit"]] / share * 1.0001
        assert each["largest_gain"] >= each["gain_at_0"]


def test_muse_has_no_idconv_and_an_old_figure_is_removed(folder: Path) -> None:
    save_random(folder / "network.safetensors", load_config(ROOT / "configs/muse.json"))
    Path("out").mkdir()
    Path("out/idconv.png").write_text("of another network")
    Path("out/notes.txt").write_text("mine")
    done = run("--checkpoint_file", "network.safetensors", "--seconds", 0.3)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("idconv.png: left out: muse")
    assert files_below(folder / "out") == ALWAYS | {"attention.png", "notes.txt"}
    shown = [(each["query"], each["stage"]) for each in numbers()["attention"]]
    assert shown == [(query, stage) for query in ("in speech", "in noise") for stage in STAGES]
    for each in numbers()["attention"]:
        assert each["sum"] == pytest.approx(1, abs=1e-4)


def test_excerpt_is_the_mean_of_the_channels_at_the_rate_of_the_network(folder: Path, config: Config) -> None:
    ramp = np.linspace(0, 0.5, 2 * RATE)
    save(folder / "ramp.wav", np.stack([ramp, 0 * ramp], axis=1), subtype="FLOAT")
    excerpt = inspect.read_excerpt(folder / "ramp.wav", Namespace(start=0.5, seconds=1.0), config)
    np.testing.assert_allclose(excerpt, ramp[RATE // 2 :][:RATE] / 2, rtol=0, atol=1e-7)
    resampled = inspect.read_excerpt(folder / "noisy.wav", Namespace(start=0.0, seconds=10.0), config)
    assert len(resampled) == pytest.approx(0.6 * RATE, abs=2)


def flat_trace(frames: int, bins: int) -> Trace:
    """A trace with 10 frames per second, bins of 100 Hz and magnitudes of 1."""
    spectra = Spectra(torch.ones(1, bins, frames), torch.zeros(1, bins, frames))
    return Trace(np.zeros(1), np.zeros(1), spectra, spectra, {}, [], frame_seconds=0.1, bin_hz=100.0)


def test_times_of_queries_count_from_the_start_of_the_file() -> None:
    trace = flat_trace(frames=20, bins=8)
    points = inspect.query_points(Namespace(start=1.0, query=[(1.55, 320.0), (2.95, 0.0)]), trace)
    assert points == {"1": TFPoint(5, 3), "2": TFPoint(19, 0)}
    for seconds in (0.95, 3.05):
        with pytest.raises(UserError, match=r"--query .* 1 to 3\.00 s and 0 to 800 Hz"):
            inspect.query_points(Namespace(start=1.0, query=[(seconds, 100.0)]), trace)


def test_statistics_of_weights_by_hand() -> None:
    weights = torch.zeros(20, 20, dtype=torch.float64)
    weights[9:12, 5:16] = 2.0  # within 0.1 s and 500 Hz of frame 10 and bin 10
    weights[0, 0] = -1.0
    trace = replace(flat_trace(20, 20), enhanced=Spectra((3 - weights.T)[None], torch.zeros(1, 20, 20)))
    found = weight_statistics(weights, weights, TFPoint(10, 10), trace)
    assert found["mean_near"] == 2
    assert found["sum"] == pytest.approx((2 * 33 - 1) / 400)
    assert (found["smallest"], found["largest"]) == (-1, 2)
    assert found["share_negative"] == pytest.approx(1 / 400)
    assert found["correlation_with_enhanced_magnitude"] == pytest.approx(-1)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input_noisy_wav", "none.wav"], "none.wav"),
        (["--input_noisy_wav", "text.wav"], "text.wav: not an audio file"),
        (["--input_noisy_wav", "silent.wav"], "silent.wav: is silent"),
        (["--start", "0.59"], "noisy.wav: too short"),
        (["--input_clean_wav", "long.wav"], "long.wav: not the clean version"),
        (["--checkpoint_file", "text.wav"], "text.wav: not a checkpoint"),
        (["--query", "0.1,9000"], "--query 0.1,9000: outside"),
        (["--query", "0.1"], "--query: expected SECONDS,HERTZ"),
        (["--query", "nan,500"], "--query nan,500: outside"),
        (["--output_dir", "text.wav"], "text.wav"),
    ],
)
def test_invalid_command_lines_write_nothing(
    folder: Path, small_checkpoint: Path, arguments: list[str], words: str
) -> None:
    (folder / "text.wav").write_text("no sound at all")
    save(folder / "silent.wav", np.zeros(RATE))
    save(folder / "long.wav", speech_like(1.0))
    before = files_below(folder)
    done = run("--checkpoint_file", small_checkpoint, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr
    assert files_below(folder) == before


def test_figures_that_cannot_be_written_are_reported(folder: Path, lite_checkpoint: Path) -> None:
    (folder / "out/mask.png").mkdir(parents=True)
    done = run("--checkpoint_file", lite_checkpoint, "--seconds", 0.1)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("out: cannot be written")
