"""Convert a pair of VoiceBank+DEMAND recordings to mono 16-bit WAV at 16 kHz, as downsampling.py does for all.

The default resampler is soxr. torchaudio, imported only on request, gives the samples of the published preparation.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Literal

import numpy as np

from cli import UserError
from data.audio import UNKNOWN_FRAMES, AudioError, AudioFormat, AudioReader, fit_length, read_audio, write_audio
from data.file_lists import Utterance

RATE = 16_000
OUTPUT_FORMAT = AudioFormat(RATE, channels=1)

Resampler = Literal["soxr", "torchaudio"]


def convert_pair(job: tuple[Utterance, Utterance], resampler: Resampler) -> bool:
    """Convert both files of a `(source, target)` pair; n samples at `rate` Hz become ceil(16000 n / rate) samples.

    Returns False if both exist already, by their headers. 16-bit samples at 16 kHz are copied exactly. Raises
    `AudioError` if a source is damaged, not mono or below 16 kHz, if the sources differ in rate or length, or if an
    output cannot be written.
    """
    source, target = job
    with AudioReader(source.clean) as clean, AudioReader(source.noisy) as noisy:
        for file in (clean, noisy):
            if file.format.channels != 1:
                raise AudioError(f"{file.name}: has {file.format.channels} channels; mono is expected")
            if file.format.rate < RATE:
                raise AudioError(f"{file.name}: its rate of {file.format.rate} Hz is below {RATE} Hz")
            if file.frames >= UNKNOWN_FRAMES:
                raise AudioError(f"{file.name}: its header does not give its length; convert it to another file")
        names = f"{clean.name} and {noisy.name}"
        if clean.format.rate != noisy.format.rate:
            raise AudioError(f"{names}: differ in rate: {clean.format.rate} and {noisy.format.rate} Hz")
        if clean.frames != noisy.frames:
            raise AudioError(f"{names}: differ in length: {clean.frames} and {noisy.frames} samples")
        frames = -(-clean.frames * RATE // clean.format.rate)
    with suppress(AudioError), AudioReader(target.clean) as clean, AudioReader(target.noisy) as noisy:
        if all(file.format == OUTPUT_FORMAT and file.frames == frames for file in (clean, noisy)):
            return False
    converted: list[np.ndarray] = []
    for path in (source.clean, source.noisy):  # both before writing: a damaged file leaves no half pair
        if resampler == "torchaudio":
            samples, source_format = read_audio(path)
            samples = resample_as_published(samples, source_format.rate)
        else:
            samples, _ = read_audio(path, RATE)
        converted.append(np.concatenate(list(fit_length(iter([samples]), frames))))
    write_audio(target.clean, converted[0], OUTPUT_FORMAT)
    write_audio(target.noisy, converted[1], OUTPUT_FORMAT)
    return True


def resample_as_published(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resample float32 `[frames, channels]` from `rate` to 16 kHz with torchaudio's default filter.

    Raises `UserError` if torchaudio cannot be imported.
    """
    try:
        functional, torch = import_module("torchaudio.functional"), import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a library that it links to is missing, such as CUDA's
        reason = str(error).partition("\n")[0]
        raise UserError(f"--resampler torchaudio: torchaudio cannot be imported ({reason}); use soxr") from error
    torch.set_num_threads(1)  # downsampling.py runs one process per core
    return functional.resample(torch.from_numpy(samples.T.copy()), rate, RATE).numpy().T
