"""The folder of a training run.

best.safetensors      the network with the highest validation PESQ
latest.safetensors    the network at the last save; the EMA weights with `optim.ema_decay`, as in best
latest.pt             the training state for `--resume`: `Trainer.state_dict`, the best score, the configuration
teacher.safetensors   the network whose output is the target of `train.distillation`, if that is above 0
config.json           the configuration, with the changes of the command line
tensorboard/          losses, scores, audio, spectrograms

Each file is written to a temporary name and renamed, so a crash at any moment leaves the last good one.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import nn

from cli import UserError
from config import Config
from enhance.enhancer import Enhancer
from models.checkpoint import UNPICKLING_ERRORS, save_checkpoint
from utils.atomic import atomic_open, remove_leftovers, write_text_atomically

CHANGEABLE = {("train", "epochs"), ("train", "validation_interval"), ("train", "save_interval")}
"""Settings that may differ when a run is resumed. Of `train.epochs`, `train.load_state` checks the last step."""


class RunDir:
    """Paths, saving and loading of one run.

    Raises `UserError` if the folder holds another run and neither `resume` nor `overwrite` is set, or if there is
    nothing to resume.
    """

    def __init__(self, path: Path, resume: bool = False, overwrite: bool = False) -> None:
        self.path = path
        self.best, self.latest = path / "best.safetensors", path / "latest.safetensors"
        self.state, self.teacher = path / "latest.pt", path / "teacher.safetensors"
        self.tensorboard = path / "tensorboard"
        existing = [file for file in (self.state, self.latest, self.best) if file.exists()]
        if resume and not self.state.exists():
            # A run that was killed during its first save has left a network only.
            remedy = "start again with --overwrite" if existing else "leave out --resume"
            raise UserError(f"{self.state}: no such file, there is nothing to resume; {remedy}")
        if existing and not resume and not overwrite:
            remedy = "continue it with --resume, " if self.state in existing else ""
            raise UserError(
                f"{path}: holds another run ({existing[0].name}); {remedy}replace it with --overwrite, "
                "or choose another --checkpoint_path"
            )

    def begin(self, config: Config, teacher: Enhancer | None = None) -> None:
        """Prepare the folder for a new run: remove the files of an earlier one, write configuration and teacher."""
        try:
            for file in (self.state, self.latest, self.best, self.teacher, *self.tensorboard.glob("events.*")):
                file.unlink(missing_ok=True)
            write_text_atomically(self.path / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error
        if teacher:
            save_checkpoint(self.teacher, teacher.network, teacher.config)

    def save(self, network: nn.Module, config: Config, state: Mapping[str, Any]) -> None:
        """Write the latest network and training state; on a `UserError` the earlier files remain."""
        content = io.BytesIO()
        torch.save(dict(state) | {"config": config.to_dict()}, content)
        try:
            remove_leftovers(self.path)  # of a killed process
            with atomic_open(self.state) as stream:
                stream.write(content.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())  # both files must fit on the disk before either is replaced
                save_checkpoint(self.latest, network, config)
        except OSError as error:
            raise UserError(f"{self.state}: the training state cannot be written: {error.strerror}") from error

    def load_state(self, config: Config) -> dict[str, Any]:
        """Return the training state; raises `UserError` if it is damaged or belongs to another configuration."""
        try:
            with ZipFile(self.state) as file:
                damaged = file.testzip()  # PyTorch does not look at checksums
            state = None if damaged else torch.load(self.state, map_location="cpu", weights_only=True)
            before = state["config"] if state else {}
        except OSError as error:
            raise UserError(f"{self.state}: cannot be read: {error.strerror}") from error
        except (BadZipFile, *UNPICKLING_ERRORS):
            state, before = None, {}
        if not state:
            raise UserError(f"{self.state}: damaged, or not a training state; start again without --resume")
        if changed := changed_settings(before, config.to_dict()):
            raise UserError(
                f"{self.state}: belongs to another configuration, which differs in {', '.join(changed)}; "
                f"resume with --config {self.path / 'config.json'} --checkpoint_path {self.path}, or start in another "
                "folder"
            )
        return state


def changed_settings(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the settings `section.key` in which two configurations differ and a resumed run must not."""
    keys = {(section, key) for config in (before, now) for section, values in config.items() for key in values}
    return sorted(
        f"{section}.{key}"
        for section, key in keys - CHANGEABLE
        if before.get(section, {}).get(key) != now.get(section, {}).get(key)
    )
