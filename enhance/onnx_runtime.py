"""Networks that onnxruntime computes, from .onnx files that `scripts/export_onnx.py` writes.

They take and give `Spectra` as the PyTorch networks do, on the CPU, so that `enhance.enhancer.Enhancer` and
`enhance.streaming.Stream` work with either:

    network, config = load_onnx(Path("network.onnx"), threads=1)
    enhanced = network(Spectrogram(config.stft)(wav))

The file alone is complete: its metadata hold the configuration. Only the package onnxruntime is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from cli import UserError
from config import Config, parse_config
from models.stft import Spectra

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CONFIG_KEY = "config"
"""Where the metadata of a file hold the configuration, in JSON."""

SPECTRA_INPUTS = ("mag", "pha")
"""The inputs that every network has, `[batch, F, frames]`; what others it has are its state."""

_EXPORT_ANEW = "give one that scripts/export_onnx.py wrote"
_ERRORS_ONLY = 3  # of onnxruntime's log levels


class OnnxNetwork(nn.Module):
    """Noisy `Spectra` → enhanced `Spectra`, on the CPU; it cannot be trained."""

    def __init__(self, session: InferenceSession) -> None:
        super().__init__()
        self._session = session

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance whole signals, spectra `[B, F, T]`."""
        return self._run(noisy, {})[0]

    def _run(self, noisy: Spectra, state: Mapping[str, np.ndarray]) -> tuple[Spectra, list[np.ndarray]]:
        """One pass; returns the enhanced spectra, and the other outputs in order."""
        inputs = {name: np.ascontiguousarray(x) for name, x in zip(SPECTRA_INPUTS, noisy, strict=True)}
        mag, pha, *others = map(np.asarray, self._session.run(None, {**inputs, **state}))
        return Spectra(torch.from_numpy(mag), torch.from_numpy(pha)), others


class StreamingOnnxNetwork(OnnxNetwork):
    """A network that also takes its frames in pieces: a `enhance.streaming.StreamingNetwork`."""

    def __init__(self, session: InferenceSession) -> None:
        super().__init__(session)
        self._state_shapes = {each.name: each.shape for each in session.get_inputs() if each.name not in SPECTRA_INPUTS}

    def initial_state(self, batch: int) -> dict[str, np.ndarray]:
        """The state before the first frame of `batch` signals: zeros, by the names of the inputs."""
        return {
            name: np.zeros([size if isinstance(size, int) else batch for size in shape], np.float32)
            for name, shape in self._state_shapes.items()
        }

    def stream(self, noisy: Spectra, state: Mapping[str, np.ndarray]) -> tuple[Spectra, dict[str, np.ndarray]]:
        """Enhance the next frames, spectra `[B, F, T]` with T ≥ 1; returns them, and the state after them."""
        enhanced, next_state = self._run(noisy, state)
        return enhanced, dict(zip(self._state_shapes, next_state, strict=True))

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance whole signals, spectra `[B, F, T]`."""
        return self.stream(noisy, self.initial_state(len(noisy.mag)))[0]


def load_onnx(path: Path, threads: int) -> tuple[OnnxNetwork, Config]:
    """Read a network and its configuration from a file of `scripts/export_onnx.py`; it computes on `threads` cores.

    A `StreamingOnnxNetwork` where the file was exported for streams. Raises `UserError` where the file is
    missing, cut short, no ONNX or not of this project, or onnxruntime is not installed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the network cannot be read: {error.strerror}") from error
    session = open_session(content, threads, str(path))
    metadata = session.get_modelmeta().custom_metadata_map
    inputs = [each.name for each in session.get_inputs()]
    if CONFIG_KEY not in metadata or tuple(inputs[: len(SPECTRA_INPUTS)]) != SPECTRA_INPUTS:
        raise UserError(f"{path}: an ONNX file without this project's configuration; {_EXPORT_ANEW}")
    try:
        config = parse_config(json.loads(metadata[CONFIG_KEY]), "its configuration")
    except (UserError, ValueError, RecursionError) as error:
        reason = "; ".join(str(error).splitlines())
        raise UserError(f"{path}: its configuration cannot be used ({reason}); {_EXPORT_ANEW}") from error
    return network_of(session), config


def network_of(session: InferenceSession) -> OnnxNetwork:
    """The network that a session computes; one that streams where it has a state."""
    streams = len(session.get_inputs()) > len(SPECTRA_INPUTS)
    return (StreamingOnnxNetwork if streams else OnnxNetwork)(session).eval()


def open_session(content: bytes, threads: int, name: str, simplified: Path | None = None) -> InferenceSession:
    """A session of onnxruntime for the content of an .onnx file, which messages call `name`.

    With `simplified`, the graph is simplified without regard to this machine and written there. Raises
    `UserError` where the content is no ONNX, cut short, or onnxruntime is not installed.
    """
    try:
        import onnxruntime  # late: an optional package
    except ImportError as error:
        raise UserError(f"{name}: onnxruntime is not installed: pip install -e '.[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = threads
    if simplified is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(simplified)
    errors = onnxruntime.capi.onnxruntime_pybind11_state  # pyright: ignore[reportAttributeAccessIssue] (compiled)
    unusable = errors.InvalidProtobuf, errors.InvalidArgument, errors.InvalidGraph, errors.Fail, errors.NotImplemented
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except unusable as error:
        raise UserError(f"{name}: not an ONNX file, or cut short; {_EXPORT_ANEW}") from error
