"""The configuration's reader: everything that is wrong is reported at once, by name."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cli import UserError
from config import Config, load_config, parse_config
from tests.fixtures.commands import ROOT


@pytest.fixture
def content(config: Config) -> dict[str, Any]:
    return copy.deepcopy(config.to_dict())


def problems_of(content: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse_config(content, "file.json")
    assert str(caught.value).splitlines() == [f"file.json: {problem}" for problem in caught.value.problems]
    return caught.value.problems


def test_the_papers_recipe(config: Config) -> None:
    """Every value of the released configuration, the loss weights and the length of the paper, and what both imply."""
    recipe = {
        "model": {"name": "imse", "channels": 16, "beta": 2.0},
        "stft": {"n_fft": 510, "hop_size": 100, "win_size": 510, "compress_factor": 0.3},
        "data": {"sampling_rate": 16_000, "segment_size": 30_700},
        "loss": {"metric": 0.05, "magnitude": 0.9, "phase": 0.3, "complex": 0.1},
        "optim": {"learning_rate": 5e-4, "adam_b1": 0.8, "adam_b2": 0.99, "lr_decay": 0.99},
        "train": {"epochs": 100, "batch_size": 2, "validation_interval": 1000, "seed": 1234},
    }
    content = config.to_dict()
    assert {name: {key: content[name][key] for key in section} for name, section in recipe.items()} == recipe
    assert (config.stft.bins, config.stft.window, config.data.normalize_level) == (256, "hann", True)
    assert (config.optim.weight_decay, config.train.metric_lag) == (0.01, 0)  # AdamW's own decay; labels at once


def test_a_configuration_survives_the_way_to_a_dictionary_and_back(config: Config) -> None:
    assert parse_config(json.loads(json.dumps(config.to_dict())), "again") == config


def test_all_problems_are_reported_together(content: dict[str, Any]) -> None:
    content["stft"]["hop_sise"] = content["stft"].pop("hop_size")
    content["loss"]["metric"] = "much"
    content["train"]["epochs"] = 1.5
    content["train"]["seed"] = True
    content["optim"]["lr_decay"] = float("nan")
    content["xyz"] = {}
    del content["data"]
    assert problems_of(content) == [
        "xyz: unknown section",
        "data: missing",
        "stft.hop_sise: unknown key (did you mean 'hop_size'?)",
        "stft.hop_size: missing",
        'loss.metric: expected float, found "much"',
        "optim.lr_decay: expected float, found NaN",
        "train.epochs: expected int, found 1.5",
        "train.seed: expected int, found true",
    ]


def test_clashes_between_keys(content: dict[str, Any]) -> None:
    content["model"]["channels"] = 20
    content["stft"].update(n_fft=512, hop_size=300, win_size=600)
    content["data"]["segment_size"] = 100
    content["loss"]["phase"] = -1
    content["train"]["seed"] = -1
    content["seed"] = 1
    assert problems_of(content) == [
        "seed: unknown section",
        "model.channels: must be a multiple of 8, from 8 to 1024",
        "stft.win_size: must be above 0 and at most n_fft",
        "loss.phase: must not be negative",
        "train.seed: must not be negative",
        "stft.n_fft: gives 257 bins; the network needs a multiple of 8, to halve them three times",
        "data.segment_size: must be at least stft.n_fft, 512",
    ]


@pytest.mark.parametrize("network", ["muse", "lite_rtse", "cnunet"])
def test_every_network_has_its_recipe(network: str) -> None:
    config = load_config(ROOT / f"configs/{network}.json")
    assert config.model.name == network
    assert parse_config(config.to_dict(), "again") == config


@pytest.mark.parametrize(
    ("network", "assignment", "problem"),
    [
        ("muse", "model.channels=12", "model.channels: must be a multiple of 8, from 8 to 1024"),
        ("muse", "stft.n_fft=512", "stft.n_fft: gives 257 bins; the network needs a multiple of 8, to halve them three times"),  # noqa: E501
        ("lite_rtse", "model.multi_order=twice", "model.multi_order: must be repeated or single"),
        ("lite_rtse", "stft.n_fft=16384", "stft.n_fft: gives 8193 bins; the network takes 4097 at most"),
        ("lite_rtse", "stft.window=kaiser", "stft.window: must be one of hann, hamming, sqrt_hann"),
        ("cnunet", "model.released_skips=1", "model.released_skips: expected bool, found 1"),
        ("cnunet", "stft.n_fft=510", "stft.n_fft: gives 256 bins; the network needs a multiple of 256 beside that at 0 Hz"),  # noqa: E501
        ("cnunet", "model.channels=16", "model.channels: unknown key"),
        ("ablation/idconv_band_7", "model.band_kernel=4", "model.band_kernel: must be odd, from 1 to 99"),
        ("ablation/depthwise_3x3", "model.local=7", "model.local: expected str, found 7"),
        ("ablation/width_8", "model.attention=mala", "model.attention: unknown key"),
        ("cnunet", "optim.weight_decay=-1", "optim.weight_decay: must not be negative"),
    ],
)  # fmt: skip
def test_settings_that_a_network_cannot_have(network: str, assignment: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(ROOT / f"configs/{network}.json", [assignment])
    assert caught.value.problems == [problem]


def test_an_unknown_network(content: dict[str, Any]) -> None:
    content["model"]["name"] = "imsee"
    known = "imse, imse_ablation, muse, lite_rtse, cnunet"
    assert problems_of(content) == [f'model.name: expected one of {known}, found "imsee"']


@pytest.mark.parametrize("section", ["model", "stft", "train"])
def test_a_section_that_is_null(content: dict[str, Any], section: str) -> None:
    content[section] = None
    assert problems_of(content) == [f"{section}: expected an object, found nothing"]


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan")])
def test_numbers_that_are_too_large(content: dict[str, Any], value: float) -> None:
    content["model"]["beta"] = value
    assert len(problems_of(content)) == 1


@pytest.mark.parametrize("name", ["a\nb", "a\u2028b", "\ud800", "\x1b[2J", "x" * 1000])
def test_a_name_that_would_break_the_line_is_shown_in_json(content: dict[str, Any], name: str) -> None:
    content["optim"][name] = content[name] = 1
    shown = json.dumps(name)[1:-1][:60]
    assert problems_of(content) == [f"{shown}: unknown section", f"optim.{shown}: unknown key"]


def nested(depth: int) -> list[Any]:
    content: list[Any] = []
    for _ in range(depth):
        content = [content]
    return content


def test_lists_in_lists_that_reading_takes_and_writing_does_not(content: dict[str, Any]) -> None:
    content["optim"] = content["train"]["seed"] = content["model"]["name"] = nested(5000)
    assert [problem.partition(": ")[0] for problem in problems_of(content)] == ["model.name", "optim", "train.seed"]


def test_lists_in_lists_are_refused_with_settings_too(tmp_path: Path, content: dict[str, Any]) -> None:
    content["speed"] = nested(800)
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path / "deep.json", content), ["train.epochs=" + "[" * 100_000])
    shown = f'expected int, found "{"[" * 59}'
    assert caught.value.problems == ["speed: unknown section", f"train.epochs: {shown}"]


@pytest.mark.parametrize("wrong", [[], "text", None, 3, {"model": 3}, {"model": {"name": []}}, {}])
def test_content_of_another_kind(wrong: Any) -> None:
    assert problems_of(wrong)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "not valid JSON"),
        ('{"model": {}, "model": {}}', "given twice"),
        ("[" * 100_000, "not valid JSON"),
        (r'{"a\nb": 1, "a\nb": 1}', r"the key 'a\\nb' is given twice$"),
    ],
)
def test_files_that_are_not_json(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        load_config(path)


@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("endless", "not a file; give a JSON file"),
        ("pipe", "not a file; give a JSON file"),  # which nobody writes to
        ("folder", "not a file; give a JSON file"),
        ("large", "no configuration: larger than 1000000 bytes"),
    ],
)
def test_what_is_no_file_or_too_large_is_not_read_to_its_end(
    tmp_path: Path, kind: str, problem: str, base: bool
) -> None:
    path = tmp_path / kind
    {
        "endless": lambda: path.symlink_to("/dev/zero"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "large": lambda: path.write_text("{}".ljust(1_000_001)),
    }[kind]()
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path / "delta.json", {"base": kind}) if base else path)
    assert str(caught.value) == f"{path}: {problem}"


def test_a_file_may_be_as_large_as_that(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "large.json"
    path.write_text(json.dumps(config.to_dict()).ljust(1_000_000))
    assert load_config(path) == config


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.json: cannot be read"):
        load_config(tmp_path / "nothing.json")


def test_what_the_paper_has_not_may_be_left_out_and_is_off(content: dict[str, Any]) -> None:
    for section, key in (("loss", "si_sdr"), ("optim", "ema_decay"), ("train", "bf16")):
        del content[section][key]
    config = parse_config(content, "file.json")
    assert (config.loss.si_sdr, config.optim.ema_decay, config.train.bf16) == (0.0, 0.0, False)
    assert config.mix is None
    del content["optim"]["learning_rate"]
    assert problems_of(content) == ["optim.learning_rate: missing"]


def test_a_mix_is_a_section_of_its_own() -> None:
    config = load_config(ROOT / "configs" / "imse_mix.json")
    assert config.mix is not None
    assert parse_config(config.to_dict(), "again") == config
    assert config.model == load_config(ROOT / "configs" / "imse.json").model
    content = config.to_dict()
    content["mix"] |= {"snr_low": 20, "snr_high": 10, "reverb_share": 1.5}
    assert problems_of(content) == [
        "mix.snr_low: must be at least -100 and at most snr_high",
        "mix.reverb_share: must be from 0 to 1",
    ]


def test_settings_of_the_command_line_replace_those_of_the_file(config: Config, content: dict[str, Any]) -> None:
    path = ROOT / "configs" / "imse.json"
    assignments = ["optim.learning_rate=1e-4", "train.bf16=true", "train.epochs = 3", "loss.time=1"]
    changed = load_config(path, assignments)
    assert (changed.optim.learning_rate, changed.train.bf16, changed.train.epochs) == (1e-4, True, 3)
    assert (changed.loss.time, changed.optim.adam_b1) == (1.0, config.optim.adam_b1)
    assert load_config(path).to_dict() == content


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("optim.learning_rat=1", "optim.learning_rat: unknown key (did you mean 'learning_rate'?)"),
        ("optim.learning_rate=fast", 'optim.learning_rate: expected float, found "fast"'),
        ("optim.learning_rate", "--set optim.learning_rate: expected section.key=value"),
        ("learning\nrate=1", r"--set learning\nrate=1: expected section.key=value"),
        ("learning_rate=1", "--set learning_rate=1: expected section.key=value"),
        ("speed.high=1", "speed: unknown section"),
        ("train.metric_lag=2", "train.metric_lag: must be 0 or 1"),
        ("loss.magnitude=-1", "loss.magnitude: must not be negative"),
    ],
)
def test_wrong_settings_of_the_command_line(assignment: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(ROOT / "configs" / "imse.json", [assignment])
    assert len(str(caught.value).splitlines()) == 1
    assert problem in str(caught.value)


def test_the_metric_cannot_be_the_only_loss(content: dict[str, Any]) -> None:
    content["loss"] = {"metric": 1.0, "magnitude": 0, "phase": 0, "complex": 0}
    assert problems_of(content) == ["loss.metric: cannot be the only loss; give another term a weight above 0"]


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_configuration_on_a_base_gives_only_what_differs(tmp_path: Path, content: dict[str, Any]) -> None:
    write(tmp_path / "first.json", content)
    write(tmp_path / "below/second.json", {"base": "../first.json", "optim": {"lr_decay": 0.5}, "train": {"seed": 7}})
    third = write(tmp_path / "third.json", {"base": "below/second.json", "train": {"seed": 8}})
    whole = load_config(third, ["train.epochs=3"])
    assert (whole.optim.lr_decay, whole.train.seed, whole.train.epochs) == (0.5, 8, 3)
    content["optim"]["lr_decay"], content["train"]["seed"], content["train"]["epochs"] = 0.5, 8, 3
    assert whole == parse_config(content, "by hand")


def test_a_section_that_the_base_lacks_is_new(tmp_path: Path, content: dict[str, Any]) -> None:
    write(tmp_path / "base.json", content)
    mix = json.loads((ROOT / "configs/imse_mix.json").read_text())["mix"]
    on_top = load_config(write(tmp_path / "mix.json", {"base": "base.json", "mix": mix}))
    assert on_top.mix is not None and on_top.mix.snr_low == -2.5


@pytest.mark.parametrize(
    ("delta", "problem"),
    [
        ({"base": "a\nb"}, r'delta.json: base: expected the path of a configuration, found "a\nb"'),
        ({"base": "\0"}, r'delta.json: base: expected the path of a configuration, found "\u0000"'),
        ({"base": 3}, "delta.json: base: expected the path of a configuration, found 3"),
        ({"base": "none.json"}, "none.json: cannot be read: No such file or directory"),
        ({"base": "delta.json"}, "delta.json: base: the 9th in a row; do they go in a circle?"),
        ({"base": "base.json", "optim": 3}, "delta.json: optim: expected an object, found 3"),
        ({"base": "base.json", "optim": {"lr_decai": 1}}, "delta.json: optim.lr_decai: unknown key (did you mean 'lr_decay'?)"),  # noqa: E501
        ({"base": "list.json"}, "delta.json: model: missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_base(tmp_path: Path, content: dict[str, Any], delta: object, problem: str) -> None:
    write(tmp_path / "base.json", content)
    write(tmp_path / "list.json", [])
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path / "delta.json", delta))
    assert str(caught.value).splitlines()[0] == f"{tmp_path}/{problem}"
