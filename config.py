"""Configuration: a JSON file in sections, checked as a whole and held in frozen dataclasses.

`load_config` reports every unknown, missing, mistyped, out-of-range or clashing key at once, by name, so that one
look at the message is enough to mend the file. A key without a default must be given; the others stand for what not
every network has or needs. The file is long, so that every setting is found in one place.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cli import UserError

LARGEST_NUMBER = 1e9
"""No setting is beyond it, and none is infinite."""

LARGEST_FILE = 1_000_000
"""Bytes of a configuration; ours have a thousand. Beyond it is something else, perhaps without an end."""

MOST_BASES = 8
"""A configuration may stand on another, that on a third, and so on up to this."""

_MOST_SHOWN = 60  # characters, of what a message quotes


def _lines(source: str, problems: Sequence[str]) -> str:
    return "\n".join(f"{source}: {problem}" for problem in problems)


Checks = Mapping[str, bool]


@dataclass(frozen=True)
class NetworkConfig:
    """What the settings of every network have in common: its name, and what can be wrong with them."""

    name: str

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {}

    def bins_problem(self, bins: int) -> str:
        """What is wrong with that number of frequency bins for the network, or nothing."""
        del bins
        return ""


@dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    """What IMSE and MUSE share.

    channels: base width, 16 in the papers.
    beta: largest value of the magnitude mask, 2 in the papers (their name for it; MALA's β is another).
    """

    channels: int
    beta: float

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {
            "channels: must be a multiple of 8, from 8 to 1024": 8 <= self.channels <= 1024 and self.channels % 8 == 0,
            "beta: must be above 0": self.beta > 0,
        }

    def bins_problem(self, bins: int) -> str:
        """What is wrong with that number of frequency bins for the network, or nothing."""
        return "the network needs a multiple of 8, to halve them three times" if bins % 8 else ""


@dataclass(frozen=True)
class ImseConfig(UNetConfig):
    """The network IMSE."""


ATTENTIONS = (
    *("mala", "without_magnitude", "without_rotation", "without_local", "without_gate"),
    *("softmax_bottleneck", "taylor"),
)
LOCAL_PATTERNS = ("idconv", "without_square", "without_frequency", "without_time", "depthwise", "deformable")


@dataclass(frozen=True)
class ImseAblationConfig(UNetConfig):
    """IMSE with parts taken out or exchanged (`tools.ablation.networks`); the defaults are IMSE.

    attention: "mala", or MALA "without_magnitude" (plain linear attention), "without_rotation", "without_local" or
        "without_gate"; "softmax_bottleneck" for softmax attention at the bottleneck; "taylor" for MUSE's.
    local: "idconv", or IDConv "without_square", "without_frequency" or "without_time", whose channels then pass
        unchanged; "depthwise" for a 3×3 kernel on all channels; "deformable" for MUSE's embedding.
    band_kernel: length of IDConv's thin kernels.
    phase: off, the magnitude alone is seen and enhanced, and the noisy phase kept.
    """

    attention: str = "mala"
    local: str = "idconv"
    band_kernel: int = 11
    phase: bool = True

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {
            **super().checks(),
            f"attention: must be one of {', '.join(ATTENTIONS)}": self.attention in ATTENTIONS,
            f"local: must be one of {', '.join(LOCAL_PATTERNS)}": self.local in LOCAL_PATTERNS,
            "band_kernel: must be odd, from 1 to 99": self.band_kernel in range(1, 100, 2),
        }


@dataclass(frozen=True)
class MuseConfig(UNetConfig):
    """The network MUSE."""


@dataclass(frozen=True)
class LiteRtseConfig(NetworkConfig):
    """The network Lite-RTSE.

    multi_order: "repeated" for one 7×7 convolution before each of the block's gates, as in the unofficial release;
        "single" for one convolution before all of them, as in the paper's figure.
    """

    multi_order: str = "repeated"

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {"multi_order: must be repeated or single": self.multi_order in ("repeated", "single")}

    def bins_problem(self, bins: int) -> str:
        """What is wrong with that number of frequency bins for the network, or nothing."""
        return "" if bins <= 4097 else "the network takes 4097 at most"


@dataclass(frozen=True)
class CnunetConfig(NetworkConfig):
    """The network CNUNet.

    released_skips: connect the real and the imaginary decoder as the release does, which takes three of the skip
        connections from the other part; off, as evidently intended.
    """

    released_skips: bool = False

    def bins_problem(self, bins: int) -> str:
        """What is wrong with that number of frequency bins for the network, or nothing."""
        return "the network needs a multiple of 256 beside that at 0 Hz" if bins % 256 != 1 or bins == 1 else ""


WINDOWS = ("hann", "hamming", "sqrt_hann")


@dataclass(frozen=True)
class StftConfig:
    """The spectra that a network works on: sizes in samples; magnitudes are raised to `compress_factor`.

    window: "hann", "hamming" or "sqrt_hann", periodic, in analysis and synthesis.
    """

    n_fft: int
    hop_size: int
    win_size: int
    compress_factor: float
    window: str = "hann"

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {
            "n_fft: must be even and above 0": self.n_fft > 0 and self.n_fft % 2 == 0,
            "win_size: must be above 0 and at most n_fft": 0 < self.win_size <= self.n_fft,
            "hop_size: must be above 0 and at most half of win_size": 0 < 2 * self.hop_size <= self.win_size,
            "compress_factor: must be above 0 and at most 1": 0 < self.compress_factor <= 1,
            f"window: must be one of {', '.join(WINDOWS)}": self.window in WINDOWS,
        }

    @property
    def bins(self) -> int:
        """Frequency bins F of a spectrum."""
        return self.n_fft // 2 + 1

    def padding(self, samples: int) -> int:
        """Zeros that are to follow a signal of `samples` before its frames are cut.

        Reflection at the edges needs more samples than it mirrors. Where frames overlap by half, as little is left of
        the window at its end as the inverse would have to divide by for a signal's last samples: a click. There the
        last frame is centred at the end or beyond.
        """
        fill = -samples % self.hop_size if self.win_size < 3 * self.hop_size else 0
        return max(fill, self.n_fft // 2 + 1 - samples, 0)


@dataclass(frozen=True)
class DataConfig:
    """The signals: sampling rate in Hz; training crops and inference windows of `segment_size` samples.

    normalize_level: bring each recording to a mean power of 1 before the network sees it, and back after; off, the
        network works at the level of the recording, which a stream has to, since its end is not known.
    """

    sampling_rate: int
    segment_size: int
    normalize_level: bool = True

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {
            "sampling_rate: must be above 0": self.sampling_rate > 0,
            "segment_size: must be above 0": self.segment_size > 0,
        }


@dataclass(frozen=True)
class MixConfig:
    """Dynamic mixing: each crop is clean speech with noise, put together anew every epoch.

    snr_low, snr_high: signal-to-noise ratio of a crop in dB, uniform.
    gain_low, gain_high: change of a crop's level in dB, uniform. Where levels are normalised, that is against the
        crop's own: a crop of a recording is louder or softer than the whole of it, which inference goes by. Where
        not, it is against the level of the speech as recorded.
    reverb_share: share of the crops whose speech sounds in a synthetic room; their target keeps its first 50 ms.
    validation_mixes: how many mixes of held-out speech and noise validation scores.
    """

    snr_low: float
    snr_high: float
    gain_low: float
    gain_high: float
    reverb_share: float
    validation_mixes: int

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {
            "snr_low: must be at least -100 and at most snr_high": -100 <= self.snr_low <= self.snr_high,
            "snr_high: must be at most 100": self.snr_high <= 100,
            "gain_low: must be at least -100 and at most gain_high": -100 <= self.gain_low <= self.gain_high,
            "gain_high: must be at most 100": self.gain_high <= 100,
            "reverb_share: must be from 0 to 1": 0 <= self.reverb_share <= 1,
            "validation_mixes: must be above 0": self.validation_mixes > 0,
        }


@dataclass(frozen=True)
class LossConfig:
    """Weights of the generator's loss terms, functions of `models.losses` but for `metric`; at 0 a term is left out.

    metric: what the discriminator, which learns PESQ, says of the enhanced speech; without it there is none.
    magnitude, complex: squared errors of the compressed spectra; phase: IP + GD + IAF. With `metric` IMSE's and MUSE's.
    consistency, time: MP-SENet's consistency of the spectra, and the error of the waveform.
    magnitude_l1, complex_l1: CNUNet's, of the uncompressed spectra of the waveform.
    compressed_magnitude, compressed_complex, si_sdr: GTCRN's, with which Lite-RTSE is trained here.
    """

    metric: float = 0.0
    magnitude: float = 0.0
    phase: float = 0.0
    complex: float = 0.0
    consistency: float = 0.0
    time: float = 0.0
    si_sdr: float = 0.0
    magnitude_l1: float = 0.0
    complex_l1: float = 0.0
    compressed_magnitude: float = 0.0
    compressed_complex: float = 0.0

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        weights = dataclasses.asdict(self)
        checks = {f"{name}: must not be negative": weight >= 0 for name, weight in weights.items()}
        checks["metric: cannot be the only loss; give another term a weight above 0"] = any(
            weight > 0 for name, weight in weights.items() if name != "metric"
        )
        return checks


@dataclass(frozen=True)
class OptimConfig:
    """AdamW for generator and discriminator; the learning rate is multiplied by `lr_decay` after each epoch.

    weight_decay: of both; 0 makes them Adam.
    Beyond the papers, each 0 for off: `warmup_steps`, over which the learning rate rises from 0; `grad_clip`, the
    largest norm of the generator's gradient; `ema_decay` of the averaged weights that are validated and kept.
    """

    learning_rate: float
    adam_b1: float
    adam_b2: float
    lr_decay: float
    weight_decay: float = 0.01
    warmup_steps: int = 0
    grad_clip: float = 0.0
    ema_decay: float = 0.0

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {
            "learning_rate: must be above 0": self.learning_rate > 0,
            "adam_b1: must be at least 0 and below 1": 0 <= self.adam_b1 < 1,
            "adam_b2: must be at least 0 and below 1": 0 <= self.adam_b2 < 1,
            "lr_decay: must be above 0 and at most 1": 0 < self.lr_decay <= 1,
            "weight_decay: must not be negative": self.weight_decay >= 0,
            "warmup_steps: must not be negative": self.warmup_steps >= 0,
            "grad_clip: must not be negative": self.grad_clip >= 0,
            "ema_decay: must be at least 0 and below 1": 0 <= self.ema_decay < 1,
        }


@dataclass(frozen=True)
class TrainConfig:
    """The run: passes over the data, crops a step and process, seed of every choice.

    validation_interval: steps between validations; 0 for one after each epoch.
    metric_lag: 0 waits for the PESQ labels in each step, as the paper does; 1 takes those of the step before, so
        that the device never waits.
    save_interval: steps between two saved training states.
    bf16: bfloat16 autocast of the network; off, all is float32 as in the paper. On a CPU only for networks whose
        width is a multiple of 16: at others some of PyTorch's convolutions give NaN gradients, or crash.
    compile: `torch.compile`, which takes minutes at the start.
    """

    epochs: int
    batch_size: int
    validation_interval: int
    seed: int
    metric_lag: int = 0
    save_interval: int = 1000
    bf16: bool = False
    compile: bool = False

    def checks(self) -> Checks:
        """What must hold of the values, by what to say where it does not."""
        return {
            "epochs: must be above 0": self.epochs > 0,
            "batch_size: must be above 0": self.batch_size > 0,
            "validation_interval: must not be negative": self.validation_interval >= 0,
            "seed: must not be negative": self.seed >= 0,
            "metric_lag: must be 0 or 1": self.metric_lag in (0, 1),
            "save_interval: must be above 0": self.save_interval > 0,
        }


MODEL_CONFIGS: Mapping[str, type[NetworkConfig]] = {
    "imse": ImseConfig,
    "imse_ablation": ImseAblationConfig,
    "muse": MuseConfig,
    "lite_rtse": LiteRtseConfig,
    "cnunet": CnunetConfig,
}
"""The settings of each network, by the name that `model.name` gives; `models.NETWORKS` has the networks."""


@dataclass(frozen=True)
class Config:
    """A whole configuration, section by section."""

    model: NetworkConfig
    stft: StftConfig
    data: DataConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    mix: MixConfig | None = None

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The plain mapping that `parse_config` reads back."""
        return {name: section for name, section in dataclasses.asdict(self).items() if section is not None}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration file; raises `UserError`.

    A file with the key `base` gives only what differs from that file, whose path is relative to its own.
    `overrides` are assignments such as `optim.learning_rate=1e-4`, their values in JSON.
    """
    content = _with_base(path)
    return parse_config(_overridden(content, overrides) if overrides else content, str(path))


def _with_base(path: Path, depth: int = 0) -> Any:
    """A file's content put over that of its base, section by section and key by key."""
    content = load_json(path)
    if not isinstance(content, dict) or "base" not in content:
        return content
    base = content.pop("base")
    if not (isinstance(base, str) and base.isprintable()):
        raise UserError(_lines(str(path), [f"base: expected the path of a configuration, found {_shown(base)}"]))
    if depth == MOST_BASES:
        raise UserError(_lines(str(path), [f"base: the {MOST_BASES + 1}th in a row; do they go in a circle?"]))
    return merge(_with_base(path.parent / base, depth + 1), content)


def merge(base: Any, delta: Mapping[str, Any]) -> Any:
    """The content of a base with a delta's sections put into it, key by key."""
    merged = dict(base) if isinstance(base, dict) else {}
    for name, section in delta.items():
        below = merged.get(name)
        merged[name] = {**below, **section} if isinstance(below, dict) and isinstance(section, dict) else section
    return merged


def _overridden(content: Any, overrides: Sequence[str]) -> Any:
    """Put `section.key=value` assignments into the content, and return it."""
    for assignment in overrides:
        place, equals, text = assignment.partition("=")
        section, dot, key = place.strip().partition(".")
        if not (equals and dot and section and key):
            raise UserError(
                f"--set {_shown_name(assignment)}", ["expected section.key=value, such as optim.learning_rate=1e-4"]
            )
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = text.strip()  # a word needs no quotes; what must be a number is refused with the section
        if isinstance(content, dict) and isinstance(content.setdefault(section, {}), dict):
            content[section][key] = value
    return content


def load_json(path: Path) -> Any:
    """Read a JSON file; raises `UserError` for what is no file, too large, not JSON, or gives a key twice."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would be to wait for who writes to it
            raise UserError(_lines(str(path), ["not a file; give a JSON file"]))
        with path.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(_lines(str(path), [f"no configuration: larger than {LARGEST_FILE} bytes"]))
        return json.loads(content.decode(), object_pairs_hook=_unique_keys)
    except OSError as error:
        raise UserError(_lines(str(path), [f"cannot be read: {error.strerror}"])) from error
    except (ValueError, RecursionError) as error:
        raise UserError(_lines(str(path), [f"not valid JSON: {error}"])) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key '{_shown_name(key)}' is given twice")
        content[key] = value
    return content


def parse_config(content: Any, source: str) -> Config:
    """Check a mapping of sections and build the configuration; raises `UserError` with all that is wrong.

    `source` is what messages call it: usually the file's path.
    """
    if not isinstance(content, dict):
        raise UserError(_lines(source, ["expected an object with the sections of a configuration"]))
    problems: list[str] = []
    sections: dict[str, Any] = {}
    section_types = {name: _section_type(hint) for name, hint in get_type_hints(Config).items()}
    _report_names(content, Config, "section", "", problems)
    for name, section_type in section_types.items():
        if name not in content:
            continue
        section = content[name]
        if not isinstance(section, dict):
            problems.append(f"{name}: expected an object, found {_shown(section)}")
            continue
        if name == "model":
            network = section.get("name")
            section_type = MODEL_CONFIGS.get(network) if isinstance(network, str) else None
            if section_type is None:
                known = ", ".join(MODEL_CONFIGS)
                problems.append(f"model.name: expected one of {known}, found {_shown(network)}")
                continue
        if parsed := _parse_section(section, section_type, name, problems):
            sections[name] = parsed
            problems.extend(f"{name}.{what}" for what, holds in parsed.checks().items() if not holds)
    problems.extend(_clashes(**sections))
    if problems:
        raise UserError(_lines(source, problems))
    return Config(**sections)


def _section_type(hint: Any) -> type:
    """The dataclass of a section that may be left out."""
    return next((kind for kind in get_args(hint) if kind is not type(None)), hint)


def _clashes(
    model: NetworkConfig | None = None,
    stft: StftConfig | None = None,
    data: DataConfig | None = None,
    **_: Any,
) -> Iterator[str]:
    """What is wrong between sections, as far as they are there."""
    if model and stft and (problem := model.bins_problem(stft.bins)):
        yield f"stft.n_fft: gives {stft.bins} bins; {problem}"
    if stft and data and data.segment_size < stft.n_fft:
        yield f"data.segment_size: must be at least stft.n_fft, {stft.n_fft}"


def _report_names(given: Mapping[str, Any], owner: type, what: str, prefix: str, problems: list[str]) -> None:
    known = {field.name: field.default is MISSING for field in fields(owner)}
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            problems.append(f"{prefix}{_shown_name(key)}: unknown {what}{hint}")
    problems.extend(f"{prefix}{key}: missing" for key, needed in known.items() if needed and key not in given)


def _parse_section(section: dict[str, Any], section_type: type, name: str, problems: list[str]) -> Any:
    """Build one section's dataclass where all its keys are there; what is wrong goes into `problems`."""
    types = get_type_hints(section_type)
    _report_names(section, section_type, "key", f"{name}.", problems)
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
    needed = {field.name for field in fields(section_type) if field.default is MISSING}
    return section_type(**values) if needed <= values.keys() else None


def _shown(value: Any) -> str:
    """A value in JSON, or how it begins: in one line, whatever it holds."""
    try:
        return "nothing" if value is None else json.dumps(value)[:_MOST_SHOWN]
    except RecursionError:  # to read it may take less of the stack than to write it
        return "lists or objects in one another"


def _shown_name(name: str) -> str:
    """A name as it stands in JSON, without the quotes."""
    return json.dumps(name)[1:-1][:_MOST_SHOWN]
