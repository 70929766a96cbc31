"""inspect_model.py as a user runs it: which pictures there are for which network, and one line for what cannot be."""

from __future__ import annotations

import json
import struct
from argparse import Namespace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the extra report is not installed")
from matplotlib.image import imread

from config import load_config
from models import build
from models.checkpoint import save_checkpoint
from models.stft import Spectra
from tests.fixtures.commands import ROOT, run_module
from tests.fixtures.recordings import RATE, files_below, save
from tests.fixtures.signals import speech_like, with_noise
from tools.inspect import figures
from tools.inspect.__main__ import __main__ as inspect_model
from tools.inspect.figures import curves_figure, spectrogram_figure
from tools.inspect.inside import weigh
from tools.inspect.inspection import Pass, Place
from training.logger import TensorBoardLogger

CLEAN = speech_like(0.6, rate=44_100)
ALWAYS = {"spectrograms.png", "mask.png", "numbers.json"}


@pytest.fixture(autouse=True)
def _coarsely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures with fewer points, drawn sooner."""
    monkeypatch.setattr(figures, "DPI", 40)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a stereo recording at 44.1 kHz and its clean version."""
    monkeypatch.chdir(tmp_path)
    noisy = with_noise(CLEAN, 5)
    save(tmp_path / "noisy.wav", np.stack([noisy, 0.5 * noisy], axis=1), rate=44_100)
    save(tmp_path / "clean.wav", CLEAN, rate=44_100)
    return tmp_path


def inspect(*arguments: object) -> int:
    return inspect_model.main(["--input_noisy_wav", "noisy.wav", "--output_dir", "out", *map(str, arguments)])


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    return struct.unpack(">II", content[16:24])


def numbers() -> dict:
    return json.loads(Path("out/numbers.json").read_text())


def test_all_pictures_of_imse_and_the_numbers_behind_them(folder: Path, small_checkpoint: Path) -> None:
    options = ("--input_clean_wav", "clean.wav", "--checkpoint_file", small_checkpoint)
    assert inspect(*options, "--query", "0.3,500", "--query", "0.1,4000") == 0
    assert files_below(folder / "out") == ALWAYS | {"attention.png", "idconv.png"}
    for name in ("spectrograms", "mask", "attention", "idconv"):
        assert min(size_of(folder / f"out/{name}.png")) > 100
    check_mask(numbers()["mask"])
    check_attention(numbers()["attention"])
    check_idconv(numbers()["idconv"])


def check_mask(found: dict) -> None:
    percentiles = found["percentiles_5_25_50_75_95"]
    assert 0 < percentiles[0] < percentiles[2] < percentiles[4] < found["largest"] <= 2
    assert (found["share_above_1"] > 0.5) == (percentiles[2] > 1)


def check_attention(found: list[dict]) -> None:
    maps = {(each["query"], each["stage"], each["attention"]): each for each in found}
    assert len(maps) == len(found) == 2 * 3 * 2
    for query in "12":
        for stage in ("encoder_level1", "bottleneck", "mag_refinement"):
            mala, linear = (maps[query, stage, name] for name in ("MALA", "linear attention"))
            # MALA is linear attention, stretched by 1 + z away from an even share.
            stretch = mala["standard_deviation"] / linear["standard_deviation"]
            assert stretch > 1
            assert mala["sum"] - 1 == pytest.approx(stretch * (linear["sum"] - 1), rel=1e-3)
            assert mala["mean_near"] - 1 == pytest.approx(stretch * (linear["mean_near"] - 1), rel=1e-3, abs=1e-3)
            correlations = [each["correlation_with_enhanced_magnitude"] for each in (mala, linear)]
            assert correlations[0] == pytest.approx(correlations[1], abs=1e-3)
    assert maps["1", "bottleneck", "MALA"]["largest"] != maps["2", "bottleneck", "MALA"]["largest"]


def check_idconv(found: list[dict]) -> None:
    # A stage of width 8 has one band kernel of each direction, one of 24 three.
    assert len(found) == 2 * (1 + 3 + 1)
    # Frames are 6.25 ms apart, so that 80 Hz is the highest modulation; bins of the first level 63 Hz.
    highest = {"ms": 1000 / (2 * 2 * RATE / 510), "Hz": 80.0}
    for each in found:
        share = 4 if each["stage"] == "bottleneck" else 1
        assert 0 <= each["at"] <= highest[each["unit"]] / share * 1.0001
        assert each["largest_gain"] >= each["gain_at_0"]


def test_pictures_that_muse_does_not_have_are_left_out_and_old_ones_go(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_network(folder / "network.safetensors", "muse")
    Path("out").mkdir()
    Path("out/idconv.png").write_text("of another network")
    Path("out/notes.txt").write_text("mine")
    assert inspect("--checkpoint_file", "network.safetensors", "--seconds", 0.3) == 0
    assert capsys.readouterr().err == "idconv.png: left out: muse has no IDConv\n"
    assert files_below(folder / "out") == ALWAYS | {"attention.png", "notes.txt"}
    shown = [(each["query"], each["stage"]) for each in numbers()["attention"]]
    stages = ("encoder_level1", "bottleneck", "mag_refinement")
    assert shown == [(query, stage) for query in ("in speech", "in noise") for stage in stages]
    for each in numbers()["attention"]:
        assert each["sum"] == pytest.approx(1, abs=1e-4)


def save_network(path: Path, name: str) -> None:
    config = load_config(ROOT / f"configs/{name}.json")
    torch.manual_seed(0)
    save_checkpoint(path, build(config), config)


def test_stages_and_kernels_may_differ_in_an_ablation(folder: Path) -> None:
    settings = {"name": "imse_ablation", "channels": 8, "attention": "softmax_bottleneck", "local": "without_time"}
    config = load_config(ROOT / "configs/imse.json", [f"model.{key}={value}" for key, value in settings.items()])
    save_checkpoint(folder / "network.safetensors", build(config), config)
    assert inspect("--checkpoint_file", "network.safetensors", "--seconds", 0.3, "--query", "0.1,500") == 0
    shown = [(each["stage"], each["attention"]) for each in numbers()["attention"]]
    assert shown == [
        ("encoder_level1", "MALA"),
        ("encoder_level1", "linear attention"),
        ("bottleneck", "softmax attention"),
        ("mag_refinement", "MALA"),
        ("mag_refinement", "linear attention"),
    ]
    assert {each["direction"] for each in numbers()["idconv"]} == {"along frequency"}
    assert files_below(folder / "out") == ALWAYS | {"attention.png", "idconv.png"}


def test_the_curves_and_the_best_network_of_a_run(folder: Path) -> None:
    save_network(folder / "run/best.safetensors", "lite_rtse")
    journal = TensorBoardLogger(folder / "run/tensorboard", 0)
    for step in (10, 20):
        journal.scalars("training", {"loss": 1 / step, "learning_rate": 1e-3}, step)
    journal.scalars("validation", {"loss": 0.1, "pesq": 2.0}, 20)
    journal.close()
    options = ("--input_noisy_wav", "noisy.wav", "--run_dir", "run", "--output_dir", "out")
    done = run_module("tools.inspect.__main__", *options, cwd=folder)
    assert (done.returncode, done.stdout) == (0, "")
    assert [line.split(" has no ")[0] for line in done.stderr.splitlines()] == [
        f"{name}.png: left out: lite_rtse" for name in ("attention", "idconv")
    ]
    assert files_below(folder / "out") == ALWAYS | {"curves.png"}
    assert set(numbers()) == {"mask"}
    # A panel for the losses, and one for PESQ; none for STOI, of which nothing is known.
    assert size_of(folder / "out/curves.png") == (round(110 * (5.2 + 3.4)), round(110 * 3.6))


def test_learning_rates_and_norms_are_no_losses() -> None:
    curves = {"training/loss": [(10, 0.5), (20, 0.25)]}
    more = {"training/learning_rate": [(10, 1.0), (20, 0.1)]}
    assert curves_figure(curves | more) == curves_figure(curves)
    assert curves_figure(curves | {"training/phase": [(10, 1.0), (20, 0.1)]}) != curves_figure(curves)


def test_an_excerpt_is_the_mean_of_the_channels_at_the_network_s_rate(folder: Path) -> None:
    ramp = np.linspace(0, 0.5, 2 * RATE)
    save(folder / "ramp.wav", np.stack([ramp, 0 * ramp], axis=1), subtype="FLOAT")
    excerpt = inspect_model.read_excerpt(folder / "ramp.wav", RATE, Namespace(start=0.5, seconds=1.0), 510)
    np.testing.assert_allclose(excerpt, ramp[RATE // 2 :][:RATE] / 2, rtol=0, atol=1e-7)
    wanted = Namespace(start=0.0, seconds=10.0)
    assert len(inspect_model.read_excerpt(folder / "noisy.wav", RATE, wanted, 510)) == pytest.approx(0.6 * RATE, abs=2)


def flat_pass(noisy: torch.Tensor, enhanced: torch.Tensor) -> Pass:
    """Ten frames a second, bins 100 Hz apart; magnitudes `[F, T]`."""
    before, after = (Spectra(mag[None], torch.zeros_like(mag)[None]) for mag in (noisy, enhanced))
    return Pass(before, after, np.zeros(1), {}, (), frame_seconds=0.1, bin_hz=100.0)


def test_a_query_counts_its_time_from_the_start_of_the_file() -> None:
    pass_ = flat_pass(torch.ones(8, 20), torch.ones(8, 20))
    places = inspect_model.queries_of(Namespace(start=1.0, query=[(1.55, 320.0), (2.95, 0.0)]), pass_)
    assert places == {"1": Place(5, 3), "2": Place(19, 0)}
    for seconds in (0.95, 3.05):
        with pytest.raises(inspect_model.UserError, match=r"outside of the excerpt, 1 to 3\.00 s and 0 to 800 Hz"):
            inspect_model.queries_of(Namespace(start=1.0, query=[(seconds, 100.0)]), pass_)


def test_what_a_map_of_weights_comes_to_by_hand() -> None:
    weights = torch.zeros(20, 20)
    weights[9:12, 5:16] = 2.0  # 0.1 s and 500 Hz around the place at frame 10 and bin 10
    weights[0, 0] = -1.0
    found = weigh(weights, weights, Place(10, 10), flat_pass(torch.ones(20, 20), 3 - weights.T))
    assert found["mean_near"] == 2
    assert found["sum"] == pytest.approx((2 * 33 - 1) / 400)
    assert (found["smallest"], found["largest"]) == (-1, 2)
    assert found["share_negative"] == pytest.approx(1 / 400)
    assert found["correlation_with_enhanced_magnitude"] == pytest.approx(-1)


def pixels(content: bytes) -> np.ndarray:
    return imread(BytesIO(content), format="png")


def test_spectrograms_share_their_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DPI", 110)
    tone = 0.5 * np.sin(2 * np.pi * 4000 * np.arange(RATE // 2) / RATE).astype(np.float32)
    together = pixels(spectrogram_figure({"noisy": tone, "enhanced": 0.03 * tone}, RATE, 0))
    opaque = together[..., 3] == 1
    middle = together.shape[1] * 45 // 100  # before the colour bar
    left, right = (
        (together[:, part, :3].sum(axis=2) * opaque[:, part])[100:200].max()
        for part in (slice(100, middle - 20), slice(middle + 40, -180))
    )
    assert left > 2.5  # magma's end is a light yellow
    assert 0.5 < right < 2


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input_noisy_wav", "none.wav"], "none.wav: cannot be read: No such file"),
        (["--input_noisy_wav", "text.wav"], "text.wav: not an audio file"),
        (["--input_noisy_wav", "silent.wav"], "silent.wav: is silent"),
        (["--start", "0.59"], "noisy.wav: has 0.01 s of sound from 0.59"),
        (["--input_clean_wav", "long.wav"], "long.wav: not the clean version"),
        (["--checkpoint_file", "text.wav"], "text.wav: not a checkpoint"),
        (["--query", "9,500"], "--query 9,500: outside of the excerpt"),
        (["--query", "0.1,9000"], "--query 0.1,9000: outside of the excerpt"),
        (["--query", "0.1"], "expected SECONDS,HERTZ"),
        (["--query", "nan,500"], "--query nan,500: outside of the excerpt"),
        (["--query", "0.1,1"] * 5, "argument --query: at most 4 times"),
        (["--seconds", "0"], "argument --seconds: above 0"),
        (["--start", "-1"], "argument --start: 0 or more"),
        (["--output_dir", "text.wav"], "text.wav: cannot be written"),
        (["--run_dir", "."], "best.safetensors: the checkpoint cannot be read"),
        (["--run_dir", ".", "--checkpoint_file", "CHECKPOINT"], "tensorboard: holds no curves"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(
    folder: Path, small_checkpoint: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "text.wav").write_text("no sound at all")
    save(folder / "silent.wav", np.zeros(RATE))
    save(folder / "long.wav", speech_like(1.0))
    before = files_below(folder)
    given = [] if {"--run_dir", "--checkpoint_file"} & set(arguments) else ["--checkpoint_file", small_checkpoint]
    try:
        code = inspect(*given, *(str(small_checkpoint) if each == "CHECKPOINT" else each for each in arguments))
    except SystemExit as end:
        code = end.code
    assert code == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert words in told.err
    assert files_below(folder) == before


def test_pictures_that_cannot_be_written_are_one_line_too(
    folder: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out/mask.png").mkdir(parents=True)
    monkeypatch.setattr(inspect_model, "draw", lambda *_: {"mask.png": b"a picture"})
    assert inspect("--checkpoint_file", small_checkpoint) == 1
    assert capsys.readouterr().err == "out: cannot be written: Is a directory\n"
    assert files_below(folder / "out") == set()


def test_without_matplotlib_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspect_model, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as end:
        inspect()
    assert end.value.code == 2
    assert "needs matplotlib: pip install -e '.[report]'" in capsys.readouterr().err
    assert not (folder / "out").exists()
