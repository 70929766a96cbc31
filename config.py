"""Configuration: a JSON file in sections, checked as a whole and held in frozen dataclasses.

`load_config` reports every unknown, missing, mistyped, out-of-range or clashing key at once, by name, so that one
look at the message is enough to mend the file. Every key must be given: a config file says all that a run did.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

LARGEST_NUMBER = 1e9
"""No setting is beyond it, and none is infinite."""


class ConfigError(Exception):
    """A configuration cannot be used; `problems` holds one line for each thing wrong with it."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


Checks = Mapping[str, bool]


@dataclass(frozen=True)
class ImseConfig:
    """The network IMSE: base width (16 in the paper) and the largest value of the magnitude mask (2)."""

    name: str
    channels: int
    beta: float

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {
            "channels: must be a multiple of 8, from 8 to 1024": 8 <= self.channels <= 1024 and self.channels % 8 == 0,
            "beta: must be above 0": self.beta > 0,
        }


@dataclass(frozen=True)
class StftConfig:
    """The spectra that a network works on: sizes in samples; magnitudes are raised to `compress_factor`."""

    n_fft: int
    hop_size: int
    win_size: int
    compress_factor: float

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {
            "n_fft: must be even and above 0": self.n_fft > 0 and self.n_fft % 2 == 0,
            "win_size: must be above 0 and at most n_fft": 0 < self.win_size <= self.n_fft,
            "hop_size: must be above 0 and at most half of win_size": 0 < 2 * self.hop_size <= self.win_size,
            "compress_factor: must be above 0 and at most 1": 0 < self.compress_factor <= 1,
        }

    @property
    def bins(self) -> int:
        """Frequency bins F of a spectrum."""
        return self.n_fft // 2 + 1


@dataclass(frozen=True)
class DataConfig:
    """The signals: sampling rate in Hz; training crops and inference windows of `segment_size` samples."""

    sampling_rate: int
    segment_size: int

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {
            "sampling_rate: must be above 0": self.sampling_rate > 0,
            "segment_size: must be above 0": self.segment_size > 0,
        }


@dataclass(frozen=True)
class LossConfig:
    """Weights of the generator's loss terms (IMSE paper, section on training)."""

    metric: float
    magnitude: float
    phase: float
    complex: float

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {f"{name}: must not be negative": weight >= 0 for name, weight in dataclasses.asdict(self).items()}


@dataclass(frozen=True)
class OptimConfig:
    """AdamW for generator and discriminator; the learning rate is multiplied by `lr_decay` after each epoch."""

    learning_rate: float
    adam_b1: float
    adam_b2: float
    lr_decay: float

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {
            "learning_rate: must be above 0": self.learning_rate > 0,
            "adam_b1: must be at least 0 and below 1": 0 <= self.adam_b1 < 1,
            "adam_b2: must be at least 0 and below 1": 0 <= self.adam_b2 < 1,
            "lr_decay: must be above 0 and at most 1": 0 < self.lr_decay <= 1,
        }


@dataclass(frozen=True)
class TrainConfig:
    """The run: passes over the list, utterances a step, steps between validations, seed of every random choice."""

    epochs: int
    batch_size: int
    validation_interval: int
    seed: int

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {
            "epochs: must be above 0": self.epochs > 0,
            "batch_size: must be above 0": self.batch_size > 0,
            "validation_interval: must be above 0": self.validation_interval > 0,
            "seed: must not be negative": self.seed >= 0,
        }


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
        if name not in content:
            continue
        section = content[name]
        if not isinstance(section, dict):
            problems.append(f"{name}: expected an object, found {_shown(section)}")
            continue
        if name == "model":
            section_type = MODEL_CONFIGS.get(str(section.get("name")))
            if section_type is None:
                known = ", ".join(MODEL_CONFIGS)
                problems.append(f"model.name: expected one of {known}, found {_shown(section.get('name'))}")
                continue
        if parsed := _parse_section(section, section_type, name, problems):
            sections[name] = parsed
            problems.extend(f"{name}.{what}" for what, holds in parsed.checks().items() if not holds)
    problems.extend(_clashes(**sections))
    if problems:
        raise ConfigError(source, problems)
    return Config(**sections)


def _clashes(
    model: ImseConfig | None = None, stft: StftConfig | None = None, data: DataConfig | None = None, **_: Any
) -> Iterator[str]:
    """What is wrong between sections, as far as they are there."""
    if model and stft and stft.bins % 8:
        yield f"stft.n_fft: gives {stft.bins} bins; the network needs a multiple of 8, to halve them three times"
    if stft and data and data.segment_size < stft.n_fft:
        yield f"data.segment_size: must be at least stft.n_fft, {stft.n_fft}"


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
    """Build one section's dataclass where all its keys are there; what is wrong goes into `problems`."""
    types = get_type_hints(section_type)
    _report_names(section, types, "key", f"{name}.", problems)
    values: dict[str, Any] = {}
    for field in fields(section_type):
        if field.name not in section:
            continue
        value, expected = section[field.name], types[field.name]
        if expected is float and type(value) is int and abs(value) <= LARGEST_NUMBER:
            value = float(value)
        if type(value) is not expected or not abs(value if expected is not str else 0) <= LARGEST_NUMBER:
            problems.append(f"{name}.{field.name}: expected {expected.__name__}, found {_shown(value)}")
        else:
            values[field.name] = value
    return section_type(**values) if len(values) == len(types) else None


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)[:60]
