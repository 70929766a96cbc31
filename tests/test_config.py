"""The configuration: values of the recipes, overrides, bases, and errors, which are reported all at once by name."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from cli import UserError
from config import Config, MixConfig, load_config, parse_config, parse_saved_config
from tests.fixtures.commands import ROOT, error_line

CONFIGS = ROOT / "configs"


@pytest.fixture
def content(config: Config) -> dict[str, Any]:
    return copy.deepcopy(config.to_dict())


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def problems_of(content: Any) -> dict[str, str]:
    """Return the problems of a configuration by the key that they name."""
    with pytest.raises(UserError) as caught:
        parse_config(content, "file.json")
    assert caught.value.exit_code == 2
    lines = [line.split(": ", 2) for line in str(caught.value).splitlines()]
    assert {source for source, *_ in lines} == {"file.json"}
    return {key: problem for _, key, problem in lines}


def test_imse_json_is_the_papers_recipe(config: Config) -> None:
    recipe = {
        "model": {"name": "imse", "channels": 16, "beta": 2.0},
        "stft": {"n_fft": 510, "hop_size": 100, "win_size": 510, "compress_factor": 0.3, "window": "hann"},
        "data": {"sampling_rate": 16_000, "segment_size": 30_700, "normalize_level": True},
        "loss": {"metric": 0.05, "magnitude": 0.9, "phase": 0.3, "complex": 0.1, "time": 0.0, "si_sdr": 0.0},
        "optim": {"learning_rate": 5e-4, "adam_b1": 0.8, "adam_b2": 0.99, "lr_decay": 0.99, "weight_decay": 0.01},
        "train": {"epochs": 100, "batch_size": 2, "validation_interval": 1000, "seed": 1234, "metric_lag": 0},
    }
    content = config.to_dict()
    assert content.keys() == recipe.keys()  # no section `mix`
    assert {name: {key: content[name][key] for key in section} for name, section in recipe.items()} == recipe
    assert config.stft.bins == 256


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_recipes_are_valid_and_survive_json(path: Path) -> None:
    config = load_config(path)
    assert parse_config(json.loads(json.dumps(config.to_dict())), "again") == config
    assert (config.mix is not None) == path.stem.endswith(("_mix", "_real", "_live"))


def test_all_problems_are_reported_together(content: dict[str, Any]) -> None:
    content["stft"]["hop_sise"] = content["stft"].pop("hop_size")
    content["loss"]["metric"] = "much"
    content["train"] |= {"epochs": 1.5, "seed": True, "bf16": 1}
    content["optim"] |= {"lr_decay": float("nan"), "adam_b1": 1.0, "learning_rate": 0}
    content["mox"] = {}
    del content["data"]
    problems = problems_of(content)
    assert problems.keys() == {
        *("mox", "data", "stft.hop_sise", "stft.hop_size", "loss.metric"),
        *("train.epochs", "train.seed", "train.bf16", "optim.lr_decay", "optim.adam_b1", "optim.learning_rate"),
    }
    assert "did you mean 'mix'" in problems["mox"]
    assert "did you mean 'hop_size'" in problems["stft.hop_sise"]
    assert problems["data"].startswith("missing") and problems["stft.hop_size"].startswith("missing")
    assert "'much'" in problems["loss.metric"] and "1.5" in problems["train.epochs"]


@pytest.mark.parametrize(
    ("recipe", "changes", "key"),
    [
        ("imse", {"model.channels": 20}, "model.channels"),
        ("imse", {"model.beta": float("inf")}, "model.beta"),
        ("imse", {"model.name": "imsee"}, "model.name"),
        ("imse", {"stft.n_fft": 512, "stft.win_size": 512}, "stft.n_fft"),  # 257 bins
        ("imse", {"stft.win_size": 512}, "stft.win_size"),  # longer than n_fft
        ("imse", {"stft.hop_size": 256}, "stft.win_size"),  # shorter than two hops
        ("imse", {"data.segment_size": 509}, "data.segment_size"),  # shorter than n_fft
        ("imse", {"loss.magnitude": 0, "loss.phase": 0, "loss.complex": 0}, "loss"),  # metric alone
        ("imse", {"train": None}, "train"),
        ("imse", {"model": 3}, "model"),
        ("imse", {"train.batch_size": 6, "train.accumulation": 4}, "train.accumulation"),
        ("imse_mix", {"mix.snr_low": 20}, "mix.snr_high"),
        ("lite_rtse", {"stft.n_fft": 16384}, "stft.n_fft"),
        ("cnunet", {"stft.n_fft": 510}, "stft.n_fft"),
        ("cnunet", {"stft.compress_factor": 0.3}, "stft"),
        ("dpcrn", {"stft.floors": True}, "stft"),
        ("dccrn", {"stft.n_fft": 510}, "stft.n_fft"),
        ("imse_live", {"model.lookahead": 6}, "model.lookahead"),  # no whole block
        ("dpcrn", {"stft.n_fft": 520}, "stft.n_fft"),  # 261 bins
        ("dpcrn_ac", {"stft.n_fft": 1024}, "stft.n_fft"),
        ("dpcrn_cf", {"stft.hop_size": 128}, "stft"),  # the comb filter adds the halves of frames
        ("dpcrn_cf", {"stft.compress_factor": 0.3}, "stft"),
        ("dpcrn_cf", {"data.segment_size": 511}, "data.segment_size"),  # no whole frame for F0
        ("dpcrn_cf", {"loss.f0": 0.0}, "loss.f0"),
        ("dpcrn_ac", {"loss.f0": 0.5}, "loss.f0"),
        ("lite_rtse", {"loss.f0": 0.5}, "loss.f0"),
        ("mpsenet", {"stft.n_fft": 402}, "stft.n_fft"),  # 202 bins
    ],
)
def test_invalid_value(recipe: str, changes: dict[str, Any], key: str) -> None:
    content = load_config(CONFIGS / f"{recipe}.json").to_dict()
    for name, value in changes.items():
        section, _, setting = name.partition(".")
        if setting:
            content[section][setting] = value
        else:
            content[section] = value
    assert list(problems_of(content)) == [key]


def test_saved_configurations_may_have_training_settings_of_other_versions() -> None:
    content = load_config(CONFIGS / "imse_mix.json").to_dict()
    for section in ("optim", "mix"):
        content[section]["other"] = 1
    assert parse_saved_config(json.dumps(content)) == load_config(CONFIGS / "imse_mix.json")
    content["stft"]["other"] = 1
    with pytest.raises(UserError, match=r"stft\.other: unknown key"):
        parse_saved_config(json.dumps(content))
    for text in ("[]", "{", '{"mix": 3}'):
        with pytest.raises(UserError, match="cannot be used"):
            parse_saved_config(text)


@pytest.mark.parametrize("name", ["a\u2028b\n\x1b[2J", "x" * 1000])
def test_keys_with_control_characters_stay_on_their_line(content: dict[str, Any], name: str) -> None:
    content["optim"][name] = content[name] = 1
    shown = repr(name)[1:-1][:60]
    assert problems_of(content) == {shown: "unknown section", f"optim.{shown}": "unknown key"}


@pytest.mark.parametrize("wrong", [[], None, {"model": {"name": []}}, {}])
def test_content_that_is_not_a_configuration(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"^file\.json: "):
        parse_config(wrong, "file.json")


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        ("{", "not valid JSON"),
        ('{"model": {}, "model": {}}', "'model' is given twice"),
        ("\ud800", "not valid JSON"),
        pytest.param("[" * 100_000, "not valid JSON", id="deep"),
    ],
)
def test_files_that_are_not_json(tmp_path: Path, text: str, keyword: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=f"config.json: .*{keyword}"):
        load_config(path)


def test_overrides(config: Config) -> None:
    assignments = ["optim.learning_rate=1e-4", "train.bf16=true", "train.epochs = 3", "loss.time=1"]
    changed = load_config(CONFIGS / "imse.json", [*assignments, "stft.window=hamming"])
    assert changed == dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, learning_rate=1e-4),
        train=dataclasses.replace(config.train, bf16=True, epochs=3),
        loss=dataclasses.replace(config.loss, time=1.0),
        stft=dataclasses.replace(config.stft, window="hamming"),
    )


@pytest.mark.parametrize(
    ("assignment", "where"),
    [
        ("optim.learning_rat=1", "optim.learning_rat: "),
        ("optim.learning_rate=fast", "optim.learning_rate: "),
        ("optim.learning_rate", "--set optim.learning_rate: "),
        ("learning_rate=1", "--set learning_rate=1: "),
    ],
)
def test_invalid_override(assignment: str, where: str) -> None:
    assert where in error_line(lambda: load_config(CONFIGS / "imse.json", [assignment]))


def test_base(tmp_path: Path, content: dict[str, Any]) -> None:
    mix = MixConfig(0, 10, -1, 1, 0, validation_mixes=2)
    write(tmp_path / "first.json", content)
    write(tmp_path / "below/second.json", {"base": "../first.json", "optim": {"lr_decay": 0.5}, "train": {"seed": 7}})
    third = {"base": "below/second.json", "train": {"seed": 8}, "mix": dataclasses.asdict(mix)}
    loaded = load_config(write(tmp_path / "third.json", third), ["train.epochs=3"])
    assert (loaded.optim.lr_decay, loaded.train.seed, loaded.train.epochs, loaded.mix) == (0.5, 8, 3, mix)
    content["optim"]["lr_decay"], content["train"]["seed"], content["train"]["epochs"] = 0.5, 8, 3
    assert loaded == parse_config(content | {"mix": dataclasses.asdict(mix)}, "by hand")


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"base": 3}, "delta.json: base: "),
        ({"base": "none.json"}, "none.json: cannot be read"),
        ({"base": "delta.json"}, "delta.json: base: "),
        ({"base": "circle.json"}, "circle.json: base: "),
        ({"base": "base.json", "optim": {"lr_decai": 1}}, "delta.json: optim.lr_decai: "),
        ({"base": "list.json"}, "delta.json: model: missing"),
    ],
)
def test_invalid_base(tmp_path: Path, content: dict[str, Any], changes: object, where: str) -> None:
    write(tmp_path / "base.json", content)
    write(tmp_path / "list.json", [])
    write(tmp_path / "circle.json", {"base": "delta.json"})
    with pytest.raises(UserError, match=f"^{tmp_path}/{where}"):
        load_config(write(tmp_path / "delta.json", changes))
