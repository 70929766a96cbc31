"""Is what a file says a training state of this run? Looked at as a whole, before the first step fails at it.

A file that can be read may still hold anything: other shapes, words for numbers, mappings with methods of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from models.checkpoint import is_plain_tensor

_MOST_COUNTED = 2**53
"""Steps and the like: nobody takes more, and a file of TensorBoard holds them."""


def entries_of(value: object) -> dict[Any, Any]:
    """What a mapping from a file holds, not by methods of its own, which a pickle can set; nothing of another value."""
    return dict(dict.items(value)) if isinstance(value, dict) else {}


def fitted(found: object, expected: Any, place: str) -> Any:
    """`found` in plain mappings, where it is built as `expected`: the same keys, shapes, and kinds of values.

    Raises `ValueError` with the place of what is not; so does a count below 0, an integer or a tensor of no axes.
    """
    if isinstance(expected, Mapping):
        entries = entries_of(found)
        if entries.keys() != expected.keys():
            raise ValueError(f"{place}: other entries")
        return {name: fitted(entries[name], part, f"{place}.{name}") for name, part in expected.items()}
    if isinstance(expected, Tensor):
        if not is_plain_tensor(found) or (found.shape, found.dtype) != (expected.shape, expected.dtype):
            raise ValueError(f"{place}: not {expected.dtype} of shape {list(expected.shape)}")
        if found.ndim == 0 and not found >= 0:
            raise ValueError(f"{place}: below 0")
        return found.detach()
    if type(found) is not type(expected):
        raise ValueError(f"{place}: not {type(expected).__name__}")
    if isinstance(found, int) and not 0 <= found <= _MOST_COUNTED:
        raise ValueError(f"{place}: not from 0 to {_MOST_COUNTED}")
    return found


def load_optimizer(optimizer: Optimizer, found: object, place: str) -> None:
    """Take over Adam's moments; the settings stay those of the configuration. Raises `KeyError` or `ValueError`."""
    moments = entries_of(entries_of(found)["state"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # What never had a gradient has none.
    expected = {
        index: {"step": torch.zeros(()), "exp_avg": parameter.detach(), "exp_avg_sq": parameter.detach()}
        for index, parameter in enumerate(parameters)
        if index in moments
    }
    own = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": fitted(moments, expected, f"{place}.state"), "param_groups": own})
