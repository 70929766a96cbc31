"""One recording as the page needs it: the sound of each version for the browser, its pictures, its input SNR."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile

from data.audio import AudioError, AudioReader, resample_blocks
from metrics.score import MAX_LENGTH_DIFFERENCE, MAX_SECONDS
from tools.report.pictures import power_columns, spectrogram_picture, waveform_picture

_LOWEST_PLAYABLE, _HIGHEST_PLAYABLE = 8000, 192_000
"""Hz; browsers refuse what is far below or above, so that those are resampled."""


@dataclass(frozen=True)
class Recording:
    """The files of one recording, one a version; `noisy` and `clean` say which of them give the input SNR."""

    files: tuple[Path, ...]
    noisy: int | None
    clean: int | None


@dataclass(frozen=True)
class Prepared:
    """What the page shows of a recording.

    `seconds`: of the longest version, NaN where none can be read; `snr_db`: of the noisy version, NaN where there is
    none; `media`: JSON with sounds and pictures as base64, which the page's scripts read; `problems`: a line for each
    version that cannot be read.
    """

    seconds: float
    snr_db: float
    media: str | None
    problems: tuple[str, ...]

    @property
    def playable(self) -> bool:
        """Whether any version can be read."""
        return not math.isnan(self.seconds)


@dataclass(frozen=True)
class _Sound:
    samples: np.ndarray  # [N, channels]
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def prepare(recording: Recording) -> Prepared:
    """Read all versions of a recording, compress them for the browser and draw them."""
    sounds: list[_Sound | None] = []
    problems: list[str] = []
    for path in recording.files:
        try:
            sounds.append(_read(path))
        except AudioError as error:
            sounds.append(None)
            problems.append(str(error))
    there = [sound for sound in sounds if sound]
    if not there:
        return Prepared(math.nan, math.nan, None, tuple(problems))
    noisy, clean = (None if place is None else sounds[place] for place in (recording.noisy, recording.clean))
    snr_db = _snr_db(clean, noisy) if clean and noisy else math.nan
    return Prepared(max(sound.seconds for sound in there), snr_db, _media(sounds), tuple(problems))


def _read(path: Path) -> _Sound:
    """A whole file, at a rate that browsers play; raises `AudioError`."""
    with AudioReader(path) as reader:
        own_rate, channels = reader.format.rate, reader.format.channels
        rate = min(max(own_rate, _LOWEST_PLAYABLE), _HIGHEST_PLAYABLE)
        blocks: list[np.ndarray] = []
        frames = 0
        for block in resample_blocks(reader.blocks(), own_rate, rate, channels):
            frames += len(block)
            if frames > MAX_SECONDS * rate:
                raise AudioError(f"{path}: longer than {MAX_SECONDS} s; split it")
            blocks.append(block)
    return _Sound(np.concatenate(blocks), rate)


def _snr_db(clean: _Sound, noisy: _Sound) -> float:
    """Power of the clean signal over that of the difference; NaN where the two cannot be subtracted."""
    if clean.rate != noisy.rate or clean.samples.shape[1] != noisy.samples.shape[1]:
        return math.nan
    samples = min(len(clean.samples), len(noisy.samples))
    if max(len(clean.samples), len(noisy.samples)) - samples > MAX_LENGTH_DIFFERENCE:
        return math.nan
    signal = clean.samples[:samples].astype(np.float64)
    power, noise_power = np.sum(signal**2), np.sum((noisy.samples[:samples] - signal) ** 2)
    return 10 * math.log10(power / noise_power) if power > 0 and noise_power > 0 else math.nan


def _media(sounds: list[_Sound | None]) -> str:
    """Sounds and pictures of all versions, null for one that cannot be read, in JSON."""
    there = [sound for sound in sounds if sound]
    rate = max(sound.rate for sound in there)
    seconds = max(sound.seconds for sound in there)
    signals = [sound and _one_channel(sound, rate) for sound in sounds]
    powers = [None if signal is None else power_columns(signal, rate, seconds) for signal in signals]
    loudest = max(float(power.max()) for power in powers if power is not None)
    peak = max(float(np.abs(signal).max()) for signal in signals if signal is not None)
    samples = max(len(signal) for signal in signals if signal is not None)
    versions = [
        None
        if sound is None or signal is None or power is None
        else {
            "sound": _base64(_flac(sound)),
            "waveform": _base64(waveform_picture(signal, samples, peak)),
            "spectrogram": _base64(spectrogram_picture(power, loudest)),
        }
        for sound, signal, power in zip(sounds, signals, powers, strict=True)
    ]
    return json.dumps({"seconds": seconds, "highest_hz": rate / 2, "versions": versions})


def _one_channel(sound: _Sound, rate: int) -> np.ndarray:
    """The mean of the channels `[N]`, at the rate that the pictures of all versions share."""
    mean = sound.samples.mean(axis=1, keepdims=True)
    return np.concatenate(list(resample_blocks(iter([mean]), sound.rate, rate, 1)))[:, 0]


def _flac(sound: _Sound) -> bytes:
    """Compressed without loss beyond 16 bits, which every browser decodes; samples beyond ±1 are clipped."""
    stream = BytesIO()
    steps = np.clip(np.rint(sound.samples * 32768.0), -32768, 32767).astype(np.int16)
    soundfile.write(stream, steps, sound.rate, format="FLAC", subtype="PCM_16")
    return stream.getvalue()


def _base64(content: bytes) -> str:
    return b64encode(content).decode()
