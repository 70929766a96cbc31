"""Configuration: JSON files in sections, validated by pydantic and held in frozen dataclasses.

`load_config` reports all unknown, missing, mistyped, out-of-range and conflicting keys at once, one line each, such as
`configs/imse.json: stft.hop_size: should be greater than 0 (found -1)`. Keys without a default are required.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from cli import UserError

CHECKED = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""Options of all sections: no unknown keys, no conversion (but int to float), no NaN or infinity. Inherited."""

PositiveInt = Annotated[int, Field(gt=0, le=10**9)]
NonNegativeInt = Annotated[int, Field(ge=0, le=10**9)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e9)]
NonNegativeFloat = Annotated[float, Field(ge=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Decibels = Annotated[float, Field(ge=-100, le=100)]


@dataclass(frozen=True, config=CHECKED)
class NetworkConfig:
    """Base class of the networks' settings, the section `model`. Register subclasses with `models.register`."""

    name: str
    """Which network: a key of `MODEL_CONFIGS`."""

    block_frames: ClassVar[int] = 1
    """Number of frames that a streaming network takes at a time."""

    complex_spectra: ClassVar[bool] = False
    """Whether input and output are real and imaginary parts of uncompressed spectra, instead of compressed magnitude
    and phase."""

    @property
    def delay_frames(self) -> int:
        """Number of frames by which the output of a streaming network lags behind its input."""
        return 0

    def bins_problem(self, bins: int) -> str:
        """Return why the network cannot process spectra of `bins` frequency bins, or an empty string if it can."""
        del bins
        return ""

    def stft_problem(self, stft: StftConfig) -> str:
        """Return why the network cannot work with other settings of the STFT, or an empty string if it can."""
        if self.complex_spectra and (stft.compress_factor != 1 or stft.floors):
            return "the network takes uncompressed spectra: compress_factor should be 1, floors false"
        return ""

    @property
    def own_terms(self) -> tuple[str, ...]:
        """Return the names of the loss terms that the network computes itself.

        With such terms, the network in training is called with the noisy spectra, the clean waveforms `[B, N]` and the
        epoch, and returns the enhanced spectra and the terms by name. `loss` has a weight of each name.
        """
        return ()


@dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    """Settings that IMSE and MUSE share."""

    channels: Annotated[int, Field(ge=8, le=1024, multiple_of=8)]
    """Channels of the first level: 16 in the papers."""
    beta: PositiveFloat
    """Largest value of the magnitude mask: 2 in the papers, which call it β. (MALA's β is another quantity.)"""

    def bins_problem(self, bins: int) -> str:
        """Return an error message unless the frequency axis can be halved three times."""
        return "the network needs a multiple of 8, to halve the frequency axis three times" if bins % 8 else ""


@dataclass(frozen=True)
class ImseConfig(UNetConfig):
    """Settings of IMSE."""


@dataclass(frozen=True)
class ImseLiveConfig(UNetConfig):
    """Settings of IMSE live."""

    lookahead: Annotated[int, Field(ge=0, le=10**4, multiple_of=4)] = 0
    """Frames after its block that an enhanced frame may depend on."""
    memory_frames: PositiveFloat = 480.0
    """Time constant of all running means in frames: 3 s with 160 frames a second."""

    block_frames: ClassVar[int] = 4

    @property
    def delay_frames(self) -> int:
        """Number of frames by which the output of a stream lags behind its input."""
        return self.lookahead


@dataclass(frozen=True)
class MuseConfig(UNetConfig):
    """Settings of MUSE."""


@dataclass(frozen=True)
class LiteRtseConfig(NetworkConfig):
    """Settings of Lite-RTSE."""

    multi_order: Literal["repeated", "single"] = "repeated"
    """"repeated": a 7×7 convolution before each gate of a block, as in the unofficial implementation. "single": one
    7×7 convolution before all gates, as in the paper's figure."""

    def bins_problem(self, bins: int) -> str:
        """Return an error message if there are too many bins."""
        return "the network takes at most 4097" if bins > 4097 else ""


@dataclass(frozen=True)
class CnunetConfig(NetworkConfig):
    """Settings of CNUNet."""

    released_skips: bool = False
    """Wire the skip connections as the released code does, where three come from the other part (real instead of
    imaginary or vice versa). Off: each decoder takes those of its own part, as evidently intended."""

    complex_spectra: ClassVar[bool] = True

    def bins_problem(self, bins: int) -> str:
        """Return an error message unless the bins above 0 Hz are a multiple of 256."""
        return "the network needs a multiple of 256 plus 1 (0 Hz)" if bins % 256 != 1 or bins == 1 else ""


@dataclass(frozen=True)
class DccrnConfig(NetworkConfig):
    """Settings of DCCRN."""

    lstm: Literal["complex", "real"] = "complex"
    """"complex": DCCRN-CL. "real": the smaller encoder and the larger, real LSTM of the paper's other variants."""
    mask: Literal["E", "C", "R"] = "E"
    """"E": gain below 1 and rotation. "C": complex product. "R": real and imaginary part on their own."""
    look_ahead: Annotated[int, Field(ge=0, le=6)] = 6
    """How many decoder layers, from the first, see one frame ahead: all 6 in the paper. With 0 the network streams."""

    def bins_problem(self, bins: int) -> str:
        """Return an error message unless the bins above 0 Hz are a multiple of 64."""
        return "the network needs a multiple of 64 plus 1 (0 Hz)" if bins % 64 != 1 or bins == 1 else ""


@dataclass(frozen=True)
class DpcrnConfig(NetworkConfig):
    """Settings of DPCRN, with adaptive kernels (DPCRN-AC16) and with a comb filter (DPCRN-CF16)."""

    size: Literal["light", "middle", "large", "sub_band"] = "middle"
    """The first three are those of the published code; "sub_band" works on 129 bands instead of 257 bins."""
    adaptive_kernels: bool = False
    """Mix eight kernels in each convolution, with shares that change from frame to frame."""
    comb: bool = False
    """Restore harmonics with a comb filter, and estimate the fundamental frequency for it."""
    label_epochs: NonNegativeInt = 10
    """Epochs in which the comb filter uses the fundamental frequency of the clean speech."""
    mask_gain: PositiveFloat = 1.0
    """Factor of the mask, for weights whose output is too quiet: the loss SI-SDR does not depend on the level."""

    complex_spectra: ClassVar[bool] = True

    def bins_problem(self, bins: int) -> str:
        """Return an error message unless the frequency axis can be halved and doubled again."""
        if self.size == "sub_band" or self.comb:
            return "the network needs 257" if bins != 257 else ""
        return "the network needs a multiple of 8 plus 1 (0 Hz)" if bins % 8 != 1 or bins == 1 else ""

    def stft_problem(self, stft: StftConfig) -> str:
        """Return an error message if the comb filter cannot compute samples from the spectra."""
        needed = StftConfig(n_fft=512, hop_size=256, win_size=512, compress_factor=1.0, window="sqrt_hann")
        values = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(needed).items())
        return f"model.comb needs {values}" if self.comb and stft != needed else super().stft_problem(stft)

    @property
    def own_terms(self) -> tuple[str, ...]:
        """Return the loss term of the F0 estimate if there is one."""
        return ("f0",) if self.comb else ()


@dataclass(frozen=True)
class MpsenetConfig(NetworkConfig):
    """Settings of MP-SENet, the long version."""

    channels: Annotated[int, Field(ge=4, le=1024, multiple_of=4)]
    """Channels of all maps, divided among four attention heads: 64 in the release."""
    beta: PositiveFloat
    """Largest value of the magnitude mask: 2 in the release."""
    released_axes: bool = True
    """Run the first transformer of each block along frequency and the second along time, as the release does and its
    weights need. Off: the other way round, as in the paper. The tensors are the same in both cases."""

    def bins_problem(self, bins: int) -> str:
        """Return an error message unless the number of bins is odd."""
        return "" if bins % 2 else "the network needs an odd number: give n_fft a multiple of 4"


@dataclass(frozen=True, config=CHECKED)
class StftConfig:
    """Short-time Fourier transform of the network's input and output; sizes in samples."""

    n_fft: Annotated[int, Field(gt=0, le=10**9, multiple_of=2)]
    hop_size: PositiveInt
    win_size: PositiveInt
    compress_factor: Annotated[float, Field(gt=0, le=1)]
    """Exponent of the magnitudes that the network sees; 1 for no compression."""
    window: Literal["hann", "hamming", "sqrt_hann"] = "hann"
    """Window of analysis and synthesis, periodic."""
    floors: bool = False
    """Add small constants to the spectrum before magnitude and phase are computed, as the release of MP-SENet does: a
    silent bin has a compressed magnitude of 0.0447 instead of 0."""

    @field_validator("win_size")
    @classmethod
    def _fits(cls, win_size: int, info: ValidationInfo) -> int:
        if win_size > info.data.get("n_fft", win_size):
            raise ValueError("should be at most n_fft")
        if win_size < 2 * info.data.get("hop_size", 0):
            raise ValueError("should be at least twice hop_size")
        return win_size

    @property
    def bins(self) -> int:
        """Number of frequency bins F."""
        return self.n_fft // 2 + 1

    def padding(self, samples: int) -> int:
        """Return the number of zeros to append to a signal of `samples` samples before the STFT.

        Reflection padding needs more than n_fft / 2 samples. With an overlap of half a window the squared windows at
        the signal's end sum to almost 0, and dividing by them in the inverse STFT would produce a click; there the
        last frame is centred at or beyond the end.
        """
        fill = -samples % self.hop_size if self.win_size < 3 * self.hop_size else 0
        return max(fill, self.n_fft // 2 + 1 - samples, 0)


@dataclass(frozen=True, config=CHECKED)
class DataConfig:
    """Signals that the network is trained on and applied to."""

    sampling_rate: PositiveInt
    """In Hz."""
    segment_size: PositiveInt
    """Length of training crops and of inference windows, in samples."""
    normalize_level: bool = True
    """Scale each recording to a mean power of 1 for the network, and back afterwards. Off for streaming, where the
    end of the recording is unknown."""


@dataclass(frozen=True, config=CHECKED)
class MixConfig:
    """Dynamic mixing: in every epoch each crop is a new mixture of clean speech and noise."""

    snr_low: Decibels
    snr_high: Decibels
    """Signal-to-noise ratio of a crop: uniform between the two."""
    gain_low: Decibels
    gain_high: Decibels
    """Change of a crop's level: uniform between the two. With `normalize_level` it is relative to a mean power of 1,
    and stands for the difference between a crop and its whole recording; without, to the speech as recorded."""
    reverb_share: Share
    """Fraction of the crops whose speech is in a simulated room; the target keeps the first 50 ms of its response."""
    validation_mixes: PositiveInt
    """Number of mixtures of held-out speech and noise for validation."""
    synthetic_room_share: Share = 0.0
    """Fraction of the rooms that are synthetic (`data.mixing.room_response`) although there are room files."""
    noise_free_share: Share = 0.0
    """Fraction of the crops without noise."""
    babble_share: Share = 0.0
    """Fraction of the noisy crops whose noise is the voices of several other speakers, instead of a noise file. If all
    speech is of one speaker, all noise is from files."""
    second_noise_share: Share = 0.0
    """Fraction of the noisy crops with a second noise."""
    band_share: Share = 0.0
    """Fraction of the crops that are limited to 4 kHz or to 300 to 3400 Hz, together with their target."""
    clip_share: Share = 0.0
    """Fraction of the crops that are clipped."""
    codec_share: Share = 0.0
    """Fraction of the crops that are coded with one of `data.degradations.CODECS`."""
    speed_share: Share = 0.0
    """Fraction of the crops whose speech is faster or slower, with another pitch."""
    filter_share: Share = 0.0
    """Fraction of the crops whose speech passes a random filter (`data.mixing.random_filter`); as often, their noise
    does."""

    @field_validator("snr_high", "gain_high")
    @classmethod
    def _in_order(cls, high: float, info: ValidationInfo) -> float:
        low = str(info.field_name).replace("high", "low")
        if high < info.data.get(low, high):
            raise ValueError(f"should be at least {low}")
        return high


@dataclass(frozen=True, config=CHECKED)
class LossConfig:
    """Weights of the generator's loss terms in `models.losses`; terms with weight 0 are not computed.

    IMSE and MUSE use `metric`, `magnitude`, `phase` and `complex`; MP-SENet the same with `phase_inner` as phase loss,
    `consistency` and `time`; CNUNet the two L1 terms; Lite-RTSE and DPCRN the two compressed terms and SI-SDR; DCCRN
    SI-SDR.
    """

    metric: NonNegativeFloat = 0.0
    """Loss of the metric discriminator, which is trained on PESQ labels. With weight 0 there is no discriminator."""
    magnitude: NonNegativeFloat = 0.0
    """Squared error of the compressed magnitude."""
    phase: NonNegativeFloat = 0.0
    """Anti-wrapping losses of instantaneous phase, group delay and instantaneous angular frequency."""
    phase_inner: NonNegativeFloat = 0.0
    """The same, with differences between neighbouring bins and frames only (MP-SENet)."""
    complex: NonNegativeFloat = 0.0
    """Squared error of the compressed complex spectrum."""
    consistency: NonNegativeFloat = 0.0
    """Squared difference between the spectrum and the STFT of its waveform (MP-SENet)."""
    time: NonNegativeFloat = 0.0
    """Absolute error of the waveform (MP-SENet)."""
    si_sdr: NonNegativeFloat = 0.0
    """Negative SI-SDR of the waveform (GTCRN)."""
    magnitude_l1: NonNegativeFloat = 0.0
    complex_l1: NonNegativeFloat = 0.0
    """Absolute errors of the waveform's uncompressed spectrum (CNUNet)."""
    compressed_magnitude: NonNegativeFloat = 0.0
    compressed_complex: NonNegativeFloat = 0.0
    """Squared errors of the spectrum with magnitudes to the power of 0.3 (GTCRN)."""
    f0: NonNegativeFloat = 0.0
    """Cross-entropy of the estimated fundamental frequency; of DPCRN with the comb filter only, which needs it."""


NETWORK_TERMS = ("f0",)
"""Loss terms that a network computes itself, see `NetworkConfig.own_terms`."""


@dataclass(frozen=True, config=CHECKED)
class OptimConfig:
    """AdamW for generator and discriminator."""

    learning_rate: PositiveFloat
    adam_b1: Decay
    adam_b2: Decay
    lr_decay: Annotated[float, Field(gt=0, le=1)]
    """Factor of the learning rate after each epoch."""
    schedule: Literal["exponential", "linear", "cosine"] = "exponential"
    """"exponential": decay by `lr_decay`, as in the papers. "linear", "cosine": decay to 0 at the end of the run."""
    weight_decay: NonNegativeFloat = 0.01
    """0 for Adam."""
    warmup_steps: NonNegativeInt = 0
    """Steps in which the learning rate rises linearly from 0. Not in the papers, like the next two; 0 for off."""
    grad_clip: NonNegativeFloat = 0.0
    """Largest norm of the generator's gradient."""
    ema_decay: Decay = 0.0
    """Decay of the exponential moving average of the generator's weights, which is validated and saved."""


@dataclass(frozen=True, config=CHECKED)
class TrainConfig:
    """Course of a training run."""

    epochs: PositiveInt
    batch_size: PositiveInt
    """Crops per step and process."""
    validation_interval: NonNegativeInt
    """Steps between validations; 0 for one after each epoch."""
    seed: NonNegativeInt
    accumulation: PositiveInt = 1
    """Number of equal parts into which a batch is split; they are processed one after another, to save memory. The
    network takes one step along the mean of their gradients, the discriminator one for each part."""
    metric_lag: Annotated[int, Field(ge=0, le=1)] = 0
    """0: each step waits for its PESQ labels, as in the paper. 1: the discriminator is trained on the labels of the
    step before, so that the device does not wait."""
    metric_reanalysed: bool = False
    """Show the discriminator the magnitude of the enhanced waveform instead of the network's output (MP-SENet)."""
    metric_start: NonNegativeInt = 0
    """First step with the metric discriminator; before it, the other loss terms are trained alone."""
    distillation: Share = 0.0
    """How far the target of dry crops is moved from the clean speech to the output of a teacher: the network of
    `train.py --teacher`; by default that of `--fine_tune`, so that the new network forgets less of it. Dry crops are
    those with noise and nothing else."""
    save_interval: PositiveInt = 1000
    """Steps between saves of the training state."""
    bf16: bool = False
    """Run the network under bfloat16 autocast; off for float32, as in the paper. Ignored where bfloat16 is emulated, as
    on CPUs without AVX-512. On a CPU only for networks whose width is a multiple of 16: for others some of PyTorch's
    convolutions return NaN gradients or crash."""
    compile: bool = False
    """Use `torch.compile`, which takes minutes at the start."""

    @field_validator("accumulation")
    @classmethod
    def _divides(cls, accumulation: int, info: ValidationInfo) -> int:
        if info.data.get("batch_size", 0) % accumulation:
            raise ValueError("should be a divisor of batch_size")
        return accumulation


@dataclass(frozen=True, config=CHECKED)
class Config:
    """Complete configuration of a network and its training."""

    model: NetworkConfig
    stft: StftConfig
    data: DataConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    mix: MixConfig | None = None

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the sections as plain dicts, from which `parse_config` restores the configuration."""
        return {name: section for name, section in dataclasses.asdict(self).items() if section is not None}


MODEL_CONFIGS: dict[str, type[NetworkConfig]] = {
    "imse": ImseConfig,
    "imse_live": ImseLiveConfig,
    "muse": MuseConfig,
    "lite_rtse": LiteRtseConfig,
    "cnunet": CnunetConfig,
    "dccrn": DccrnConfig,
    "dpcrn": DpcrnConfig,
    "mpsenet": MpsenetConfig,
}
"""Settings class of each network by `model.name`. `models.register` adds to it and to `models.NETWORKS`."""

SECTIONS: Mapping[str, type] = {
    "model": NetworkConfig,
    "stft": StftConfig,
    "data": DataConfig,
    "loss": LossConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "mix": MixConfig,
}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file.

    A file with the key `base`, a path relative to the file, needs to give only what differs from that file.
    `overrides` are assignments such as `optim.learning_rate=1e-4`, with values in JSON; strings need no quotes.
    Raises `UserError`.
    """
    content = _load_with_base(path)
    for assignment in overrides:
        key, equals, text = assignment.partition("=")
        section, _, name = key.strip().partition(".")
        if not (equals and section and name):
            raise UserError(f"--set {assignment}: expected section.key=value, such as optim.learning_rate=1e-4")
        try:
            value = json.loads(text)
        except ValueError:
            value = text.strip()
        if isinstance(content, dict) and isinstance(content.setdefault(section, {}), dict):
            content[section][name] = value
    return parse_config(content, str(path))


def _load_with_base(path: Path, derived: tuple[Path, ...] = ()) -> Any:
    content = load_json(path)
    if not isinstance(content, dict) or "base" not in content:
        return content
    base = content.pop("base")
    if not isinstance(base, str):
        raise UserError(f"{path}: base: should be the path of a configuration file (found {reprlib.repr(base)})")
    derived = (*derived, path.resolve())
    if (path.parent / base).resolve() in derived:
        raise UserError(f"{path}: base: {base} is based on this file itself")
    return merge(_load_with_base(path.parent / base, derived), content)


def merge(base: Any, changes: Mapping[str, Any]) -> Any:
    """Return the sections of `base`, updated key by key with those of `changes`."""
    merged = dict(base) if isinstance(base, dict) else {}
    for name, section in changes.items():
        old = merged.get(name)
        merged[name] = {**old, **section} if isinstance(old, dict) and isinstance(section, dict) else section
    return merged


def load_json(path: Path) -> Any:
    """Read a JSON file; raise `UserError` if it cannot be read, is not valid JSON, or repeats a key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {repeated!r} is given twice")
        return content

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # RecursionError: brackets in brackets, thousands deep
        raise UserError(f"{path}: not valid JSON: {error}") from error


def parse_saved_config(text: str) -> Config:
    """Return the configuration that is saved in a checkpoint or an ONNX file as JSON; raises `UserError`.

    Unknown settings of training are left out, because inference does not need them: those of other versions.
    """
    try:
        content = json.loads(text)
        for name in ("loss", "optim", "train", "mix"):
            if isinstance(content, dict) and isinstance(section := content.get(name), dict):
                known = [field.name for field in dataclasses.fields(SECTIONS[name])]
                content[name] = {key: value for key, value in section.items() if key in known}
        return parse_config(content, "its configuration")
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"its configuration cannot be used ({'; '.join(str(error).splitlines())})") from error


def parse_config(content: Any, source: str) -> Config:
    """Return the configuration with the given sections.

    Raises `UserError` with one line per problem, each beginning with `source`, usually the path of the file.
    """
    if not isinstance(content, dict):
        raise UserError(f"{source}: should be a JSON object with the sections of a configuration")
    # Keys of the file, then types and ranges within each section (pydantic), then conditions between sections.
    parsed: dict[str, Any] = {}
    problems = [
        f"{_quote(name)}: unknown section{_suggest(name, SECTIONS)}" for name in content if name not in SECTIONS
    ]
    for name, section_class in SECTIONS.items():
        if name not in content:
            if name != "mix":
                problems.append(f"{name}: missing section")
            continue
        section = content[name]
        if not isinstance(section, dict):
            problems.append(f"{name}: should be a JSON object (found {reprlib.repr(section)})")
            continue
        if name == "model":
            network = section.get("name")
            if not isinstance(network, str) or network not in MODEL_CONFIGS:
                known = ", ".join(MODEL_CONFIGS)
                problems.append(f"model.name: should be one of {known} (found {reprlib.repr(network)})")
                continue
            section_class = MODEL_CONFIGS[network]
        known = [field.name for field in dataclasses.fields(section_class)]
        unknown = [key for key in section if key not in known]
        problems += [f"{name}.{_quote(key)}: unknown key{_suggest(key, known)}" for key in unknown]
        try:
            parsed[name] = section_class(**{key: section[key] for key in known if key in section})
        except ValidationError as error:
            for item in error.errors(include_url=False):
                if item["type"] == "missing":
                    message = "missing"
                else:
                    message = item["msg"].removeprefix("Input ").removeprefix("Value error, ")
                    message += f" (found {reprlib.repr(item['input'])})"
                problems.append(f"{'.'.join([name, *map(str, item['loc'])])}: {message}")

    model, stft, data, loss = (parsed.get(name) for name in ("model", "stft", "data", "loss"))
    if model and stft and (problem := model.bins_problem(stft.bins)):
        problems.append(f"stft.n_fft: gives {stft.bins} bins; {problem}")
    elif model and stft and (problem := model.stft_problem(stft)):
        problems.append(f"stft: {problem}")
    if model and loss:
        for name in NETWORK_TERMS:
            if getattr(loss, name) > 0 and name not in model.own_terms:
                problems.append(f"loss.{name}: this network has no such term; leave it out")
            elif getattr(loss, name) == 0 and name in model.own_terms:
                problems.append(f"loss.{name}: should be greater than 0, or a part of this network is not trained")
    if stft and data and data.segment_size < stft.n_fft:
        problems.append(f"data.segment_size: should be at least stft.n_fft = {stft.n_fft}")
    others = {"metric", *NETWORK_TERMS}
    if loss and not any(weight for name, weight in dataclasses.asdict(loss).items() if name not in others):
        problems.append("loss: give a term besides metric a weight greater than 0")
    if problems:
        raise UserError("\n".join(f"{source}: {problem}" for problem in problems))
    return Config(**parsed)


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _quote(name: str) -> str:
    """Escape and shorten a key, so that a message stays on one line."""
    return repr(name)[1:-1][:60]
