"""Prepare one recording for the listening page: FLAC audio, waveform and spectrogram images, input SNR."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from matplotlib.colors import ListedColormap
from matplotlib.image import imsave

from data.audio import AudioError, AudioReader, resample_blocks
from metrics.score import MAX_LENGTH_DIFFERENCE, MAX_SECONDS
from utils.plots import MAX_COLUMNS, power_spectrogram, spectrogram_image

MIN_RATE, MAX_RATE = 8000, 192_000
"""Sampling rates that browsers decode. Files at other rates are resampled."""

WAVEFORM_HEIGHT = 97
"""Pixels; odd, so that the zero line is one row."""
WAVEFORM_COLOR = "#2b5c8a"


class Recording(NamedTuple):
    """The files of one recording, one per version, and which of them give the input SNR."""

    files: tuple[Path, ...]
    noisy: int | None
    clean: int | None


@dataclass(frozen=True)
class Prepared:
    """The content of the page for one recording.

    seconds: duration of the longest version; NaN if none can be read.
    snr_db: SNR of the noisy version; NaN if unknown.
    media: JSON with audio and images in base64, read by the scripts of the page; None if no version can be read.
    problems: a message for each version that cannot be read.
    """

    seconds: float
    snr_db: float
    media: str | None
    problems: tuple[str, ...]


class Sound(NamedTuple):
    """Samples `[N, channels]` and their rate in Hz."""

    samples: np.ndarray
    rate: int


def prepare(recording: Recording) -> Prepared:
    """Read, compress and draw all versions of a recording.

    The versions share the level and time axis of the images. A version that cannot be read is null in `media`.
    """
    sounds: list[Sound | None] = []
    problems: list[str] = []
    for path in recording.files:
        try:
            sounds.append(read_sound(path))
        except AudioError as error:
            sounds.append(None)
            problems.append(str(error))
    readable = [sound for sound in sounds if sound]
    if not readable:
        return Prepared(math.nan, math.nan, None, tuple(problems))
    noisy, clean = (None if index is None else sounds[index] for index in (recording.noisy, recording.clean))
    snr_db = input_snr(clean, noisy) if clean and noisy else math.nan
    seconds = max(len(sound.samples) / sound.rate for sound in readable)

    rate = max(sound.rate for sound in readable)  # of the images
    mono: list[np.ndarray | None] = []
    for sound in sounds:
        if sound is None:
            mono.append(None)
        else:
            mean = sound.samples.mean(axis=1, keepdims=True)
            mono.append(np.concatenate(list(resample_blocks(iter([mean]), sound.rate, rate, 1)))[:, 0])
    samples = max(len(wav) for wav in mono if wav is not None)
    peak = max(float(np.abs(wav).max()) for wav in mono if wav is not None)
    powers = [None if wav is None else power_spectrogram(wav, rate, samples) for wav in mono]
    reference = max(float(power.max()) for power in powers if power is not None)
    versions: list[dict[str, str] | None] = []
    for sound, wav, power in zip(sounds, mono, powers, strict=True):
        if sound is None or wav is None or power is None:
            versions.append(None)
            continue
        flac = BytesIO()
        pcm = np.clip(np.rint(sound.samples * 32768.0), -32768, 32767).astype(np.int16)
        soundfile.write(flac, pcm, sound.rate, format="FLAC", subtype="PCM_16")
        content = {
            "sound": flac.getvalue(),
            "waveform": waveform_image(wav, samples, peak),
            "spectrogram": spectrogram_image(power, reference),
        }
        versions.append({name: b64encode(data).decode() for name, data in content.items()})
    media = json.dumps({"seconds": seconds, "highest_hz": rate / 2, "versions": versions})
    return Prepared(seconds, snr_db, media, tuple(problems))


def read_sound(path: Path) -> Sound:
    """Read a whole file at a rate that browsers decode; raise `AudioError` if it is unreadable or too long."""
    with AudioReader(path) as reader:
        rate = min(max(reader.format.rate, MIN_RATE), MAX_RATE)
        blocks: list[np.ndarray] = []
        frames = 0
        for block in resample_blocks(reader.blocks(), reader.format.rate, rate, reader.format.channels):
            frames += len(block)
            if frames > MAX_SECONDS * rate:
                raise AudioError(f"{path}: longer than {MAX_SECONDS} s; split it")
            blocks.append(block)
    return Sound(np.concatenate(blocks), rate)


def input_snr(clean: Sound, noisy: Sound) -> float:
    """Return the power of `clean` over that of `noisy − clean` in dB; NaN if the two signals do not match."""
    samples = min(len(clean.samples), len(noisy.samples))
    longer = max(len(clean.samples), len(noisy.samples))
    same_format = clean.rate == noisy.rate and clean.samples.shape[1] == noisy.samples.shape[1]
    if not same_format or longer - samples > MAX_LENGTH_DIFFERENCE:
        return math.nan
    signal = clean.samples[:samples].astype(np.float64)
    power, noise_power = np.sum(signal**2), np.sum((noisy.samples[:samples] - signal) ** 2)
    return 10 * math.log10(power / noise_power) if power > 0 and noise_power > 0 else math.nan


def waveform_image(wav: np.ndarray, samples: int, peak: float) -> bytes:
    """Return the envelope (minimum to maximum per column) of `wav` `[N]` as PNG.

    The width stands for `samples` samples, the height for ±`peak`.
    """
    columns = min(samples, MAX_COLUMNS)
    padded = np.zeros(samples, np.float32)
    padded[: len(wav)] = wav
    starts = np.arange(columns) * samples // columns
    middle = WAVEFORM_HEIGHT // 2
    scale = middle / peak if peak > 0 else 0.0
    top = np.rint(middle + scale * np.maximum.reduceat(padded, starts))
    bottom = np.rint(middle + scale * np.minimum.reduceat(padded, starts))
    rows = np.arange(WAVEFORM_HEIGHT)[:, None]
    inside = (rows >= bottom) & (rows <= top) | (rows == middle)
    stream = BytesIO()
    imsave(stream, inside, 0, 1, ListedColormap(["white", WAVEFORM_COLOR]), format="png", origin="lower")
    return stream.getvalue()
