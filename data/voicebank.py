"""Turn one recorded pair into training data: clean and noisy, mono, 16 kHz, 16-bit WAV, of one length.

The work of downsampling.py on a single utterance. `soxr` is the project's resampler; `torchaudio` is that of
the published preparation, for those who want its samples, and is imported only when asked for.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np

from data.audio import AudioError, AudioFormat, AudioReader, fit_length, read_audio, write_audio
from data.file_lists import Utterance

RATE = 16_000
OUTPUT_FORMAT = AudioFormat(RATE, channels=1)

Resampler = Literal["soxr", "torchaudio"]


def convert_pair(source: Utterance, target: Utterance, resampler: Resampler = "soxr") -> bool:
    """Write both files of `target`, each ceil(16000 n / rate) samples long for the n of its source.

    Returns False where an earlier run left both whole. Samples of 16-bit sources at 16 kHz are not changed.
    Raises `AudioError` for a source that is broken, not mono, below 16 kHz, or unlike its twin in rate or
    length, and for an output that cannot be written.
    """
    frames = _output_frames(source)
    if _is_done(target.clean, frames) and _is_done(target.noisy, frames):
        return False
    # Both are read before either is written, so that a broken file leaves no output without its twin.
    clean, noisy = (_resample(path, frames, resampler) for path in (source.clean, source.noisy))
    write_audio(target.clean, clean, OUTPUT_FORMAT)
    write_audio(target.noisy, noisy, OUTPUT_FORMAT)
    return True


def resample_as_published(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resample float32 `[frames, channels]` from `rate` to 16 kHz with torchaudio's default filter.

    Raises `ImportError` where torchaudio cannot be imported.
    """
    try:
        functional, torch = import_module("torchaudio.functional"), import_module("torch")
    except (ImportError, OSError) as error:
        # OSError: it is installed, but a library that it links to (CUDA's, as a rule) is not.
        reason = str(error).partition("\n")[0]
        raise ImportError(f"torchaudio cannot be imported ({reason}); use the resampler soxr") from error
    # The files are spread over processes, each of which would take all cores otherwise.
    torch.set_num_threads(1)
    return functional.resample(torch.from_numpy(samples.T.copy()), rate, RATE).numpy().T


def _output_frames(pair: Utterance) -> int:
    """The length of the outputs in samples, after a look at both headers."""
    with AudioReader(pair.clean) as clean, AudioReader(pair.noisy) as noisy:
        for file in (clean, noisy):
            if file.format.channels != 1:
                raise AudioError(f"{file.name}: has {file.format.channels} channels; mono is expected")
            if file.format.rate < RATE:
                raise AudioError(f"{file.name}: its rate of {file.format.rate} Hz is below {RATE} Hz")
        names = f"{clean.name} and {noisy.name}"
        if clean.format.rate != noisy.format.rate:
            raise AudioError(f"{names}: differ in rate: {clean.format.rate} and {noisy.format.rate} Hz")
        if clean.frames != noisy.frames:
            raise AudioError(f"{names}: differ in length: {clean.frames} and {noisy.frames} samples")
        return -(-clean.frames * RATE // clean.format.rate)


def _is_done(path: Path, frames: int) -> bool:
    """Whether a whole file of this length is there, by its header."""
    try:
        with AudioReader(path) as reader:
            return reader.format == OUTPUT_FORMAT and reader.frames == frames
    except AudioError:
        return False


def _resample(path: Path, frames: int, resampler: Resampler) -> np.ndarray:
    """Read a mono file as float32 `[frames, 1]` at 16 kHz."""
    if resampler == "torchaudio":
        samples, source_format = read_audio(path)
        samples = resample_as_published(samples, source_format.rate)
    else:
        samples, _ = read_audio(path, RATE)
    return np.concatenate(list(fit_length(iter([samples]), frames)))
