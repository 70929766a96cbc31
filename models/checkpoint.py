"""Checkpoint files: write this project's, read this project's and the authors' released ones.

This project's are safetensors with the whole configuration in their metadata, so that a file alone rebuilds its
network. Released ones (`torch.save`) are recognised by their tensor names; a config.json beside one is used, and the
paper's configuration for what it does not contain. Nothing in a file is executed.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from pathlib import Path
from typing import Any, TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cli import UserError
from config import Config, load_json, parse_config, parse_saved_config
from models import build
from models.published import config_sections, is_short_mpsenet, published_network, translate_published
from utils.atomic import atomic_open

_ROOT = Path(__file__).resolve().parent.parent
CONFIGS = _ROOT / "configs"
DEFAULT_CHECKPOINT = _ROOT / "checkpoints" / "default.safetensors"
"""Default of the commands for files; trained by this project."""
LIVE_CHECKPOINT = _ROOT / "checkpoints" / "imse_live.safetensors"
"""Default for live sound; trained by this project."""

# Modules of `models.mala.MALA` in files of version 0.1; `feed_forward.gate` keeps its name.
_RENAMED = ((r"\.attention\.local\.", ".attention.lepe."), (r"\.attention\.gate\.", ".attention.output_gate."))

_NOT_A_CHECKPOINT = (
    "not a checkpoint, or cut short; nothing in it was executed. Give a released file "
    "(scripts/download_published.py) or a *.safetensors of this project"
)
_MAX_NAME = 100  # characters of a tensor name in a message
_REAL_NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}

UNPICKLING_ERRORS = (
    *(pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError, MemoryError, AssertionError),
    *(ValueError, TypeError, LookupError, AttributeError, OverflowError),
)
"""Raised by torch's restricted unpickler on a damaged or hostile file; it has no error type of its own."""


def save_checkpoint(path: Path, network: nn.Module, config: Config) -> None:
    """Write weights and configuration; an existing file is replaced only when the new one is complete.

    Raises `UserError`.
    """
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    content = safetensors.torch.save(weights, metadata={"config": json.dumps(config.to_dict())})
    try:
        with atomic_open(path) as stream:
            stream.write(content)
    except OSError as error:
        raise UserError(f"{path}: the checkpoint cannot be written: {error.strerror}") from error


def load_checkpoint(path: Path) -> tuple[nn.Module, Config]:
    """Rebuild the network of a file, on the CPU and in evaluation mode, and its configuration.

    Raises `UserError` if the file is missing, damaged, not a checkpoint, or belongs to another network.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise UserError(f"{path}: the checkpoint cannot be read: {error.strerror}") from error
    # A safetensors file starts with the 8-byte length of its JSON header; a torch file is a zip archive.
    if start[8:9] == b"{":
        weights, config = _read_safetensors(path)
    elif start.startswith(b"PK"):
        weights, config = _read_published(path)
    else:
        raise UserError(f"{path}: {_NOT_A_CHECKPOINT}")

    with torch.device("meta"):  # compare before allocating memory
        expected = build(config).state_dict()
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    if missing or unknown:
        example = ascii((unknown or missing)[0])[:_MAX_NAME]
        raise UserError(
            f"{path}: another network's weights: {len(missing)} tensors are missing and {len(unknown)} are unknown, "
            f"such as {example}; give a checkpoint of this network"
        )
    for name, tensor in weights.items():
        shape, dtype = expected[name].shape, expected[name].dtype
        if tensor.shape != shape:
            raise UserError(
                f"{path}: '{name}' has shape {list(tensor.shape)}, but its configuration requires {list(shape)}; "
                "give the configuration that belongs to it"
            )
        if tensor.dtype != dtype and not {tensor.dtype, dtype} <= _REAL_NUMBERS:
            raise UserError(f"{path}: '{name}' holds {tensor.dtype}, not real numbers; download or copy it again")
        if not tensor.isfinite().all():
            raise UserError(f"{path}: '{name}' holds NaN or infinite weights; give an earlier checkpoint")
    network = build(config)
    network.load_state_dict(weights)
    return network.eval(), config


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Config]:
    """Read weights and configuration of this project's files."""
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError) as error:
        reason = "; ".join(str(error).splitlines())
        raise UserError(f"{path}: damaged or cut short safetensors file ({reason}); copy it again") from error
    except (TypeError, ValueError, RuntimeError) as error:  # of PyTorch, with a C++ stack in the message
        raise UserError(f"{path}: holds a tensor of an impossible shape; copy it again") from error
    if "config" not in metadata:
        raise UserError(f"{path}: holds weights without a configuration; give a checkpoint of this project")
    try:
        config = parse_saved_config(metadata["config"])
    except UserError as error:
        raise UserError(f"{path}: {error}; give a checkpoint written by this version") from error
    for old, new in _RENAMED:
        weights = {re.sub(old, new, name): tensor for name, tensor in weights.items()}
    return weights, config


def _read_published(path: Path) -> tuple[dict[str, Tensor], Config]:
    """Read weights and configuration of a released file, with the names of this project."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNPICKLING_ERRORS as error:
        raise UserError(f"{path}: {_NOT_A_CHECKPOINT}") from error
    # A pickle can replace an object's own methods: call those of dict.
    weights = dict.get(content, "generator") if isinstance(content, dict) else None
    weights = dict(dict.items(weights)) if isinstance(weights, dict) else None
    if weights is None or not all(
        isinstance(name, str) and is_plain_tensor(value) and value.dtype in _REAL_NUMBERS
        for name, value in weights.items()
    ):
        raise UserError(f"{path}: a torch file without a 'generator' state dict; give a released checkpoint")
    if is_short_mpsenet(weights):
        raise UserError(
            f"{path}: the short version of MP-SENet (Interspeech 2023), another network, which is not included; give "
            "g_best_vb or g_best_dns of the long version (scripts/download_published.py)"
        )
    network = published_network(weights)
    if network is None:
        raise UserError(
            f"{path}: holds another network's tensors; give a released checkpoint of IMSE, MUSE or MP-SENet"
        )
    beside = path.with_name("config.json")
    try:
        flat: Any = load_json(beside) if beside.exists() else {}
        if not isinstance(flat, dict):
            raise UserError(f"{beside}: expected an object")
        config = parse_config(config_sections(flat, load_json(CONFIGS / f"{network}.json")), str(beside))
    except UserError as error:
        raise UserError("; ".join(str(error).splitlines())) from error
    return translate_published(weights), config


def is_plain_tensor(value: object) -> TypeGuard[Tensor]:
    """Return whether an unpickled value is an ordinary dense CPU tensor whose storage holds all its numbers."""
    if type(value) is not Tensor or vars(value) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    # With strides of 0, a few bytes could claim to be any number of elements.
    return value.nbytes <= value.untyped_storage().nbytes()
