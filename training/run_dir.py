"""What a run leaves in its folder, each file whole at any moment.

best.safetensors      the network with the highest validation PESQ
latest.safetensors    the network as it was last saved; with `optim.ema_decay` its averaged weights, as in best
latest.pt             the training state that `--resume` goes on from
config.json           the configuration, with what the command line changed
tensorboard/          losses, scores, audio, pictures

A network's file holds its weights and the configuration (`models.checkpoint`). The state holds, by these keys:

network, optimizer, discriminator, discriminator_optimizer, average     what `state_dict` gives of each that there is
global_step, skipped, skipped_in_a_row, unlabelled                       counts of steps, and of crops without a label
waiting               with `train.metric_lag` the batch of each process that has yet to teach the discriminator
best, validated       the best PESQ so far, and the step of the last validation
crops, total_batch    what the data is known by, and the crops of a step: a resumed run must have the same
config                the configuration

Everything random follows from the seed and the step's number, so there are no random states among them.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from warnings import catch_warnings
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import nn

from cli import UserError
from config import Config, parse_config
from models.checkpoint import UNPICKLING_ERRORS, save_checkpoint
from training.state import entries_of
from utils.atomic import atomic_open, remove_leftovers, write_text_atomically

CHANGEABLE = {("train", "epochs"), ("train", "validation_interval"), ("train", "save_interval")}
"""Settings that may differ when a run is resumed: those that do not change a step."""


class RunDir:
    """The folder of one run.

    Raises `UserError` where it holds another run and neither `resume` nor `overwrite` is set, where there is
    nothing to resume, and where it cannot be written.
    """

    def __init__(self, path: Path, resume: bool = False, overwrite: bool = False) -> None:
        self.path = path
        self.best, self.latest, self.state = (
            path / name for name in ("best.safetensors", "latest.safetensors", "latest.pt")
        )
        there = [file for file in (self.state, self.latest, self.best) if file.exists()]
        if resume and not self.state.exists():
            # A run that was killed within its first save has left a network.
            begin = "begin anew with --overwrite" if there else "leave --resume out"
            raise UserError(f"{self.state}: no such file, so there is nothing to resume; {begin}")
        if there and not resume and not overwrite:
            go_on = "go on with --resume, " if self.state in there else ""
            raise UserError(
                f"{path}: holds another run ({there[0].name}); {go_on}replace it with --overwrite, "
                "or choose another --checkpoint_path"
            )

    @property
    def tensorboard(self) -> Path:
        """Where TensorBoard's event files go."""
        return self.path / "tensorboard"

    def begin(self, config: Config) -> None:
        """Make the folder for a new run: an earlier one's files go, and the configuration is written."""
        try:
            for file in (self.state, self.latest, self.best, *self.tensorboard.glob("events.*")):
                file.unlink(missing_ok=True)
            write_text_atomically(self.path / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from error

    def save(self, network: nn.Module, config: Config, state: Mapping[str, Any]) -> None:
        """Write the latest network and state; raises `UserError`, and the earlier ones then stay.

        What an earlier process of this run left half written when it was killed goes before.
        """
        content = io.BytesIO()
        torch.save(dict(state) | {"config": config.to_dict()}, content)
        try:
            remove_leftovers(self.path)
            with atomic_open(self.state) as stream:
                stream.write(content.getbuffer())
                stream.flush()
                os.fsync(stream.fileno())  # now, since there must be room for both before either is replaced
                save_checkpoint(self.latest, network, config)
        except OSError as error:
            message = f"{self.state}: the training state cannot be written: {error.strerror}"
            raise UserError(message) from error

    def load_state(self, config: Config) -> dict[str, Any]:
        """The state to go on from; raises `UserError` where it is damaged or of another configuration."""
        try:
            with ZipFile(self.state) as file:  # PyTorch stores without compression, and looks at no checksum
                if any(part.compress_type != ZIP_STORED for part in file.infolist()) or file.testzip():
                    raise UserError(f"{self.state}: damaged; start again without --resume")
            with catch_warnings(action="ignore"):  # of odd pickles
                state = entries_of(torch.load(self.state, map_location="cpu", weights_only=True))
        except (*UNPICKLING_ERRORS, BadZipFile) as error:
            message = f"{self.state}: not a training state, or cut short; start again without --resume"
            raise UserError(message) from error
        try:
            before = parse_config(state.get("config"), "its configuration")
        except (UserError, *UNPICKLING_ERRORS) as error:  # which anything but JSON's values may give
            message = f"{self.state}: not a training state of this version; start again without --resume"
            raise UserError(message) from error
        if changed := changed_settings(before.to_dict(), config.to_dict()):
            raise UserError(
                f"{self.state}: belongs to another configuration, which differs in {', '.join(changed)}; "
                f"resume with {self.path / 'config.json'}, or start in another folder"
            )
        return state


def changed_settings(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings, as `section.key`, in which two configurations differ and a resumed run must not."""
    keys = {(section, key) for config in (before, now) for section, values in config.items() for key in values}
    return sorted(
        f"{section}.{key}"
        for section, key in keys - CHANGEABLE
        if before.get(section, {}).get(key) != now.get(section, {}).get(key)
    )
