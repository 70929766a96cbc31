"""Configuration: a JSON file in sections, checked as a whole and held in frozen dataclasses.

`load_config` reports every unknown, missing, mistyped, out-of-range or clashing key at once, by name, so that one
look at the message is enough to mend the file. Every key must be given: a config file says all that a run did.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints


class ConfigError(Exception):
    """A configuration cannot be used; `problems` holds one line for each thing wrong with it."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


@dataclass(frozen=True)
class ImseConfig:
    """The network IMSE: base width (16 in the paper) and the largest value of the magnitude mask (2)."""

    name: str
    channels: int
    beta: float


@dataclass(frozen=True)
class StftConfig:
    """The spectra that a network works on: sizes in samples; magnitudes are raised to `compress_factor`."""

    n_fft: int
    hop_size: int
    win_size: int
    compress_factor: float

    @property
    def bins(self) -> int:
        """Frequency bins F of a spectrum."""
        return self.n_fft // 2 + 1


@dataclass(frozen=True)
class DataConfig:
    """The signals: sampling rate in Hz; training crops and inference windows of `segment_size` samples."""

    sampling_rate: int
    segment_size: int


@dataclass(frozen=True)
class LossConfig:
    """Weights of the generator's loss terms (IMSE paper, section on training)."""

    metric: float
    magnitude: float
    phase: float
    complex: float


@dataclass(frozen=True)
class OptimConfig:
    """AdamW for generator and discriminator; the learning rate is multiplied by `lr_decay` after each epoch."""

    learning_rate: float
    adam_b1: float
    adam_b2: float
    lr_decay: float


@dataclass(frozen=True)
class TrainConfig:
    """The run: passes over the list, utterances a step, steps between validations, seed of every random choice."""

    epochs: int
    batch_size: int
    validation_interval: int
    seed: int


MODEL_CONFIGS: Mapping[str, type[ImseConfig]] = {"imse": ImseConfig}
"""The networks by the name that `model.name` gives."""


@dataclass(frozen=True)
class Config:
    """A whole configuration, section by section."""

    model: ImseConfig
    stft: StftConfig
    data: DataConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The plain mapping that `parse_config` reads back."""
        return dataclasses.asdict(self)


def load_config(path: Path) -> Config:
    """Read and check a configuration file; raises `ConfigError`."""
    return parse_config(load_json(path), str(path))


def load_json(path: Path) -> Any:
    """Read a JSON file; raises `ConfigError` where it is missing or not JSON, or gives a key twice."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), [f"not valid JSON: {error}"]) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the key '{key}' is given twice")
    return dict(pairs)


def parse_config(content: Any, source: str) -> Config:
    """Check a mapping of sections and build the configuration; raises `ConfigError` with all that is wrong.

    `source` is what messages call it: usually the file's path.
    """
    if not isinstance(content, dict):
        raise ConfigError(source, ["expected an object with the sections of a configuration"])
    problems: list[str] = []
    sections: dict[str, Any] = {}
    section_types = get_type_hints(Config)
    _report_names(content, section_types, "section", "", problems)
    for name, section_type in section_types.items():
        section = content.get(name)
        if section is None:
            continue
        if not isinstance(section, dict):
            problems.append(f"{name}: expected an object, found {_shown(section)}")
            continue
        if name == "model":
            section_type = MODEL_CONFIGS.get(str(section.get("name")))
            if section_type is None:
                known = ", ".join(MODEL_CONFIGS)
                problems.append(f"model.name: expected one of {known}, found {_shown(section.get('name'))}")
                continue
        sections[name] = _parse_section(section, section_type, name, problems)
    if not problems:
        problems = _clashes(config := Config(**sections))
        if not problems:
            return config
    raise ConfigError(source, problems)


def _report_names(
    given: Mapping[str, Any], known: Mapping[str, Any], what: str, prefix: str, problems: list[str]
) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            problems.append(f"{prefix}{key}: unknown {what}{hint}")
    problems.extend(f"{prefix}{key}: missing" for key in known if key not in given)


def _parse_section(section: dict[str, Any], section_type: type, name: str, problems: list[str]) -> Any:
    """Build one section's dataclass, or add what is wrong to `problems` and return None."""
    types = get_type_hints(section_type)
    before = len(problems)
    _report_names(section, types, "key", f"{name}.", problems)
    values: dict[str, Any] = {}
    for field in fields(section_type):
        if field.name not in section:
            continue
        value, expected = section[field.name], types[field.name]
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected or (expected is float and not math.isfinite(value)):
            problems.append(f"{name}.{field.name}: expected {expected.__name__}, found {_shown(value)}")
        values[field.name] = value
    return section_type(**values) if len(problems) == before else None


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)[:60]


def _clashes(config: Config) -> list[str]:
    """What is wrong with values that have the right names and types."""
    model, stft, data, optim, train = config.model, config.stft, config.data, config.optim, config.train
    checks = {
        "model.channels: must be a positive multiple of 8": model.channels > 0 and model.channels % 8 == 0,
        "model.beta: must be above 0": model.beta > 0,
        "stft.n_fft: must be even and above 0": stft.n_fft > 0 and stft.n_fft % 2 == 0,
        f"stft.n_fft: gives {stft.bins} bins; must give a multiple of 8, for three halvings": stft.bins % 8 == 0,
        "stft.win_size: must be above 0 and at most stft.n_fft": 0 < stft.win_size <= stft.n_fft,
        "stft.hop_size: must be above 0 and at most half of stft.win_size": 0 < 2 * stft.hop_size <= stft.win_size,
        "stft.compress_factor: must be above 0 and at most 1": 0 < stft.compress_factor <= 1,
        "data.sampling_rate: must be above 0": data.sampling_rate > 0,
        "data.segment_size: must be at least stft.n_fft": data.segment_size >= stft.n_fft,
        "optim.learning_rate: must be above 0": optim.learning_rate > 0,
        "optim.adam_b1: must lie in 0..1, below 1": 0 <= optim.adam_b1 < 1,
        "optim.adam_b2: must lie in 0..1, below 1": 0 <= optim.adam_b2 < 1,
        "optim.lr_decay: must be above 0 and at most 1": 0 < optim.lr_decay <= 1,
        "train.epochs: must be above 0": train.epochs > 0,
        "train.batch_size: must be above 0": train.batch_size > 0,
        "train.validation_interval: must be above 0": train.validation_interval > 0,
        "train.seed: must not be negative": train.seed >= 0,
    }
    problems = [problem for problem, holds in checks.items() if not holds]
    weights = dataclasses.asdict(config.loss)
    problems.extend(f"loss.{name}: must not be negative" for name, weight in weights.items() if not weight >= 0)
    return problems
