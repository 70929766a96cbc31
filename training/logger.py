"""What a run tells: TensorBoard scalars, audio and pictures.

With `tensorboard --logdir RUN/tensorboard` one sees every loss term, gradient norm and learning rate, the
validation scores, for a few fixed utterances noisy, enhanced and clean side by side, and of the first what the
network does inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cli import UserError
from data.dataset import EvalPair
from models.stft import Spectrogram
from training.pictures import spectrogram_picture

SHOWN_EXAMPLES = 3
"""Validation utterances that can be listened to."""


class TensorBoardLogger:
    """Writes TensorBoard's event files into a folder.

    When a run is resumed after step `global_step`, what was written beyond it, before the run was killed, is
    withdrawn, so that curves go on without a gap or an overlap. All methods raise `UserError` where the
    folder cannot be written.
    """

    def __init__(self, folder: Path, global_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # late, since only training needs TensorBoard

        self._folder = folder
        with self._named_errors():
            self._writer = SummaryWriter(str(folder), purge_step=global_step + 1 if global_step else None)

    def scalars(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Add one point to the curve `group/name` of each value."""
        with self._named_errors():
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def example(self, example: EvalPair, enhanced: np.ndarray, spectrogram: Spectrogram, rate: int, step: int) -> None:
        """Show an utterance `[N]` in its three versions, to hear, and to see in one picture in this order."""
        versions = {"noisy": example.noisy, "enhanced": enhanced, "clean": example.clean}
        for version, wav in versions.items():
            audible = wav / max(1.0, float(np.abs(wav).max()))
            with self._named_errors():
                self._writer.add_audio(f"{example.id}/{version}", audible[None], step, sample_rate=rate)
        self.pictures(example.id, {"spectrograms": spectrogram_picture(list(versions.values()), spectrogram)}, step)

    def pictures(self, group: str, pictures: Mapping[str, np.ndarray], step: int) -> None:
        """Show pictures `[3, height, width]` as `group/name`."""
        with self._named_errors():
            for name, picture in pictures.items():
                self._writer.add_image(f"{group}/{name}", picture, step)

    def flush(self) -> None:
        """Bring all to the disk, before a checkpoint says that these steps are done."""
        with self._named_errors():
            self._writer.flush()

    def close(self) -> None:
        """End the file."""
        with self._named_errors():
            self._writer.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """TensorBoard's errors say neither what was to be written nor where; those of its thread come late."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._folder}: cannot be written: {error.strerror}") from error


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points (step, value) of each curve `group/name` that a run left in its folder; none where there are none."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not any(folder.glob("events.*")):
        return {}
    events = EventAccumulator(str(folder), {SCALARS: 0}).Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()[SCALARS]}
