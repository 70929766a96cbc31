"""Prepare one recording for the listening page: FLAC audio and spectrogram images."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile

from data.audio import AudioError, read_audio, resample_blocks
from metrics.score import MAX_SECONDS
from utils.plots import power_spectrogram, spectrogram_image


@dataclass(frozen=True)
class Prepared:
    """The content of the page for one recording.

    seconds: duration of the longest version; NaN if none can be read.
    media: JSON with audio and images in base64, read by the scripts of the page; None if no version can be read.
    problems: a message for each version that cannot be read.
    """

    seconds: float
    media: str | None
    problems: tuple[str, ...]


def prepare(files: tuple[Path, ...]) -> Prepared:
    """Read, compress and draw the versions of a recording, one file each.

    The versions share the level and time axis of the images. A version that cannot be read is null in `media`.
    """
    sounds: list[tuple[np.ndarray, int] | None] = []  # samples [N, channels] and rate
    problems: list[str] = []
    for path in files:
        try:
            samples, audio_format = read_audio(path)
            if len(samples) > MAX_SECONDS * audio_format.rate:
                raise AudioError(f"{path}: longer than {MAX_SECONDS} s; split it")
            sounds.append((samples, audio_format.rate))
        except AudioError as error:
            sounds.append(None)
            problems.append(str(error))
    if not any(sounds):
        return Prepared(math.nan, None, tuple(problems))
    seconds = max(len(sound[0]) / sound[1] for sound in sounds if sound)
    highest_rate = max(sound[1] for sound in sounds if sound)  # of the images
    powers: list[np.ndarray | None] = []
    for sound in sounds:
        if sound is None:
            powers.append(None)
            continue
        samples, rate = sound
        mono = resample_blocks(iter([samples.mean(axis=1, keepdims=True)]), rate, highest_rate, 1)
        wav = np.concatenate(list(mono))[:, 0]
        powers.append(power_spectrogram(wav, highest_rate, round(seconds * highest_rate)))
    reference = max(float(power.max()) for power in powers if power is not None)
    versions: list[dict[str, str] | None] = []
    for sound, power in zip(sounds, powers, strict=True):
        if sound is None or power is None:
            versions.append(None)
            continue
        flac = BytesIO()
        pcm = np.clip(np.rint(sound[0] * 32768.0), -32768, 32767).astype(np.int16)
        soundfile.write(flac, pcm, sound[1], format="FLAC", subtype="PCM_16")
        content = {"sound": flac.getvalue(), "spectrogram": spectrogram_image(power, reference)}
        versions.append({name: b64encode(data).decode() for name, data in content.items()})
    media = json.dumps({"seconds": seconds, "highest_hz": highest_rate / 2, "versions": versions})
    return Prepared(seconds, media, tuple(problems))
