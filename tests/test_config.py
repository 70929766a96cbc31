"""The configuration's reader: everything that is wrong is reported at once, by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from config import Config, ConfigError, load_config, parse_config


@pytest.fixture
def content(config: Config) -> dict[str, Any]:
    return copy.deepcopy(config.to_dict())


def problems_of(content: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(content, "file.json")
    assert str(caught.value).splitlines() == [f"file.json: {problem}" for problem in caught.value.problems]
    return caught.value.problems


def test_the_papers_recipe(config: Config) -> None:
    assert (config.stft.bins, config.stft.hop_size, config.data.segment_size) == (256, 100, 30_700)
    assert (config.loss.magnitude, config.loss.phase, config.loss.complex, config.loss.metric) == (
        0.9,
        0.3,
        0.1,
        0.05,
    )
    assert (config.optim.learning_rate, config.optim.adam_b1, config.optim.lr_decay) == (5e-4, 0.8, 0.99)
    assert (config.train.epochs, config.train.batch_size) == (100, 2)


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


def test_an_unknown_network(content: dict[str, Any]) -> None:
    content["model"]["name"] = "imsee"
    assert problems_of(content) == ['model.name: expected one of imse, found "imsee"']


@pytest.mark.parametrize("section", ["model", "stft", "train"])
def test_a_section_that_is_null(content: dict[str, Any], section: str) -> None:
    content[section] = None
    assert problems_of(content) == [f"{section}: expected an object, found nothing"]


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan")])
def test_numbers_that_are_too_large(content: dict[str, Any], value: float) -> None:
    content["model"]["beta"] = value
    assert len(problems_of(content)) == 1


@pytest.mark.parametrize("wrong", [[], "text", None, 3, {"model": 3}, {"model": {"name": []}}, {}])
def test_content_of_another_kind(wrong: Any) -> None:
    assert problems_of(wrong)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "not valid JSON"),
        ('{"model": {}, "model": {}}', "given twice"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_files_that_are_not_json(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        load_config(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.json: cannot be read"):
        load_config(tmp_path / "nothing.json")
