"""TensorBoard output of a run: losses, scores, learning rate, and a few utterances to hear and see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cli import SOME_FAILED, UserError
from data.dataset import EvalPair


class TensorBoardLogger:
    """Write TensorBoard event files into a folder.

    When a run is resumed after `global_step`, later points, written before the run was killed, are purged. All methods
    raise `UserError` if the folder cannot be written.
    """

    def __init__(self, folder: Path, global_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # late: an optional dependency

        self._folder = folder
        with self._named_errors():
            self._writer = SummaryWriter(str(folder), purge_step=global_step + 1 if global_step else None)

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Add one point to the curve `group/name` of each value."""
        with self._named_errors():
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def example(self, pair: EvalPair, enhanced: np.ndarray, sampling_rate: int, step: int) -> None:
        """Add audio and spectrograms of an utterance `[N]`: noisy, enhanced, clean."""
        from utils.plots import spectrogram_figure  # late: an optional dependency

        wavs = {"noisy": pair.noisy, "enhanced": enhanced, "clean": pair.clean}
        with self._named_errors():
            for name, wav in wavs.items():
                audible = wav / max(1.0, float(np.abs(wav).max()))
                self._writer.add_audio(f"{pair.id}/{name}", audible[None], step, sample_rate=sampling_rate)
            self._writer.add_figure(f"{pair.id}/spectrograms", spectrogram_figure(wavs, sampling_rate), step)

    def flush(self) -> None:
        """Write everything to disk, before a checkpoint records these steps as done."""
        with self._named_errors():
            self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        with self._named_errors():
            self._writer.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Name the folder: TensorBoard's errors do not, and those of its writer thread come late."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._folder}: cannot be written: {error.strerror}", SOME_FAILED) from error
