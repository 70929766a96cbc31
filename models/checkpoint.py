"""Checkpoint files: the one writer of ours, the one reader of ours and of the released ones.

Ours are safetensors files with the whole configuration in their metadata, so a file alone rebuilds its network.
Released ones (`torch.save`) are recognised by their tensor names and read without executing anything in them; a
config.json beside one is used, and the paper's configuration for what it does not say.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from cli import UserError
from config import Config, load_json, parse_config
from models import build
from models.published import config_sections, published_network, translate_published
from utils.atomic import atomic_open

_ROOT = Path(__file__).resolve().parent.parent
CONFIGS = _ROOT / "configs"
DEFAULT_CHECKPOINT = _ROOT / "checkpoints" / "default.safetensors"
LIVE_CHECKPOINT = _ROOT / "checkpoints" / "lite_rtse.safetensors"
"""What commands use where none is named, for files and for live sound: this project trained both."""

_MOST_SHOWN = 100  # characters of a name
_NOT_A_CHECKPOINT = (
    "not a checkpoint, or cut short; nothing in it was executed. Give a released file "
    "(scripts/download_published.py) or a *.safetensors of this project"
)
# What torch's restricted unpickler raises on a damaged or hostile stream: it has no error of its own for most.
UNPICKLING_ERRORS = (
    *(pickle.UnpicklingError, struct.error, RuntimeError, EOFError, OSError, MemoryError, AssertionError),
    *(ValueError, TypeError, LookupError, AttributeError, OverflowError),
)
_REAL_NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def save_checkpoint(path: Path, network: nn.Module, config: Config) -> None:
    """Write the weights and the configuration; a file that stands there stays until the new one is whole.

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
    """Rebuild a network from its file, on the CPU and in evaluation mode, with its configuration.

    Raises `UserError` where the file is missing, cut short, no checkpoint, or another network's.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise UserError(f"{path}: the checkpoint cannot be read: {error.strerror}") from error
    # A safetensors file begins with the 8-byte length of its JSON header, a torch file is a zip archive.
    if start[8:9] == b"{":
        weights, config = _read_ours(path)
    elif start.startswith(b"PK"):
        weights, config = _read_published(path)
    else:
        raise UserError(f"{path}: {_NOT_A_CHECKPOINT}")
    with torch.device("meta"):  # compares shapes before it takes memory
        _check_fit(path, weights, build(config).state_dict())
    network = build(config)
    network.load_state_dict(weights)
    return network.eval(), config


def _read_ours(path: Path) -> tuple[dict[str, Tensor], Config]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError) as error:
        reason = "; ".join(str(error).splitlines())
        raise UserError(f"{path}: a safetensors file, but damaged or cut short ({reason}); get it anew") from error
    except (TypeError, ValueError, RuntimeError) as error:  # PyTorch's, with the stack of its C++ in the message
        raise UserError(f"{path}: holds a tensor whose shape PyTorch cannot take; get it anew") from error
    if "config" not in metadata:
        raise UserError(f"{path}: holds weights without a configuration; give a checkpoint of this project")
    try:
        return weights, parse_config(json.loads(metadata["config"]), "its configuration")
    except (UserError, ValueError, RecursionError) as error:
        reason = "; ".join(str(error).splitlines())
        message = f"{path}: its configuration cannot be used ({reason}); give a checkpoint that this version wrote"
        raise UserError(message) from error


def _read_published(path: Path) -> tuple[dict[str, Tensor], Config]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNPICKLING_ERRORS as error:
        raise UserError(f"{path}: {_NOT_A_CHECKPOINT}") from error
    # Not by methods of their own: a pickle can put something else in the place of those.
    weights = dict.get(content, "generator") if isinstance(content, dict) else None
    weights = dict(dict.items(weights)) if isinstance(weights, dict) else None
    if weights is None or not all(_is_weight(*entry) for entry in weights.items()):
        raise UserError(f"{path}: a torch file without a 'generator' state dict; give a released checkpoint")
    network = published_network(weights)
    if network is None:
        raise UserError(f"{path}: holds another network's tensors; released checkpoints of IMSE and MUSE are read")
    return translate_published(weights), _published_config(path, CONFIGS / f"{network}.json")


def _is_weight(name: object, value: object) -> bool:
    """Whether an entry of a state dict is a name with real numbers that are there, and nothing else."""
    return isinstance(name, str) and is_plain_tensor(value) and value.dtype in _REAL_NUMBERS


def is_plain_tensor(value: object) -> TypeGuard[Tensor]:
    """Whether what a file gave are numbers on the CPU that are all there, and nothing else."""
    if type(value) is not Tensor or vars(value) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    # With strides of 0 a few bytes would be any number of numbers.
    return value.nbytes <= value.untyped_storage().nbytes()


def _published_config(path: Path, paper_config: Path) -> Config:
    """The configuration of a released checkpoint: config.json beside it over the paper's."""
    paper = load_json(paper_config)
    beside = path.with_name("config.json")
    try:
        flat: Any = load_json(beside) if beside.exists() else {}
        if not isinstance(flat, dict):
            raise UserError(f"{beside}: expected an object")
        return parse_config(config_sections(flat, paper), str(beside))
    except UserError as error:
        raise UserError("; ".join(str(error).splitlines())) from error


def _check_fit(path: Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise `UserError` unless names and shapes are the network's own."""
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    if missing or unknown:
        example = ascii((unknown or missing)[0])[:_MOST_SHOWN]
        raise UserError(
            f"{path}: another network's weights: {len(missing)} tensors are missing and {len(unknown)} are unknown, "
            f"such as {example}; give a checkpoint of this network"
        )
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise UserError(
                f"{path}: '{name}' has shape {list(weights[name].shape)} where the configuration asks for "
                f"{list(tensor.shape)}; give the configuration that belongs to it"
            )
        if weights[name].dtype != tensor.dtype and not {weights[name].dtype, tensor.dtype} <= _REAL_NUMBERS:
            raise UserError(f"{path}: '{name}' holds {weights[name].dtype}, not real numbers; get it anew")
        if not weights[name].isfinite().all():
            raise UserError(f"{path}: '{name}' holds NaN or infinite weights; give an earlier checkpoint")
