"""Networks run by onnxruntime, from the .onnx files that `scripts/export_onnx.py` writes.

    network, config = load_onnx(Path("network.onnx"), threads=1)
    enhanced = network(Spectrogram(config.stft)(wav))

They map `Spectra` to `Spectra` on the CPU, so `Enhancer` and `Stream` take them like the PyTorch networks. A file is
complete: its metadata hold the configuration.
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
"""Key of the configuration, in JSON, in a file's metadata."""

SPECTRA_INPUTS = ("mag", "pha")
"""Inputs of every network, `[batch, F, frames]`. Further inputs are its state."""

_EXPORT_AGAIN = "give one that scripts/export_onnx.py wrote"


class OnnxNetwork(nn.Module):
    """A network in an onnxruntime session, for inference on the CPU."""

    def __init__(self, session: InferenceSession) -> None:
        super().__init__()
        self._session = session

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance whole signals, spectra `[B, F, T]`."""
        return self._run(noisy, {})[0]

    def _run(self, noisy: Spectra, state: Mapping[str, np.ndarray]) -> tuple[Spectra, list[np.ndarray]]:
        """Run the session; returns the enhanced spectra and the other outputs, in order."""
        inputs = {name: np.ascontiguousarray(x) for name, x in zip(SPECTRA_INPUTS, noisy, strict=True)}
        mag, pha, *others = map(np.asarray, self._session.run(None, {**inputs, **state}))
        return Spectra(torch.from_numpy(mag), torch.from_numpy(pha)), others


class StreamingOnnxNetwork(OnnxNetwork):
    """A network with a state: a `enhance.streaming.StreamingNetwork`."""

    def __init__(self, session: InferenceSession) -> None:
        super().__init__(session)
        self._state_shapes = {each.name: each.shape for each in session.get_inputs() if each.name not in SPECTRA_INPUTS}

    def initial_state(self, batch: int) -> dict[str, np.ndarray]:
        """Return the state before the first frame of `batch` signals: {input name: zeros}."""
        return {
            name: np.zeros([size if isinstance(size, int) else batch for size in shape], np.float32)
            for name, shape in self._state_shapes.items()
        }

    def stream(self, noisy: Spectra, state: Mapping[str, np.ndarray]) -> tuple[Spectra, dict[str, np.ndarray]]:
        """Enhance the next frames, spectra `[B, F, T]` with T ≥ 1; returns them and the next state."""
        enhanced, next_state = self._run(noisy, state)
        return enhanced, dict(zip(self._state_shapes, next_state, strict=True))

    def forward(self, noisy: Spectra) -> Spectra:
        """Enhance whole signals, spectra `[B, F, T]`."""
        return self.stream(noisy, self.initial_state(len(noisy.mag)))[0]


def load_onnx(path: Path, threads: int) -> tuple[OnnxNetwork, Config]:
    """Load a network and its configuration from an .onnx file, to run on `threads` threads.

    The network is a `StreamingOnnxNetwork` if the file has a state. Raises `UserError` if the file is missing, cut
    short, not ONNX or not from this project, or onnxruntime is not installed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the network cannot be read: {error.strerror}") from error
    session = open_session(content, threads, str(path))
    metadata = session.get_modelmeta().custom_metadata_map
    inputs = [each.name for each in session.get_inputs()]
    if CONFIG_KEY not in metadata or tuple(inputs[: len(SPECTRA_INPUTS)]) != SPECTRA_INPUTS:
        raise UserError(f"{path}: an ONNX file without this project's configuration; {_EXPORT_AGAIN}")
    try:
        config = parse_config(json.loads(metadata[CONFIG_KEY]), "its configuration")
    except (UserError, ValueError, RecursionError) as error:
        reason = "; ".join(str(error).splitlines())
        raise UserError(f"{path}: its configuration cannot be used ({reason}); {_EXPORT_AGAIN}") from error
    return session_network(session), config


def session_network(session: InferenceSession) -> OnnxNetwork:
    """Return the network of a session, a `StreamingOnnxNetwork` if it has a state."""
    streaming = len(session.get_inputs()) > len(SPECTRA_INPUTS)
    return (StreamingOnnxNetwork if streaming else OnnxNetwork)(session).eval()


def open_session(content: bytes, threads: int, name: str, simplified: Path | None = None) -> InferenceSession:
    """Open an onnxruntime session on the content of an .onnx file, called `name` in messages.

    With `simplified`, the graph is optimised independently of this machine and written to that path. Raises
    `UserError` if the content is cut short or not ONNX, or onnxruntime is not installed.
    """
    try:
        import onnxruntime  # late: an optional package
    except ImportError as error:
        raise UserError(f"{name}: onnxruntime is not installed: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads
    if simplified is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(simplified)
    errors = onnxruntime.capi.onnxruntime_pybind11_state  # pyright: ignore[reportAttributeAccessIssue] (compiled)
    unusable = errors.InvalidProtobuf, errors.InvalidArgument, errors.InvalidGraph, errors.Fail, errors.NotImplemented
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except unusable as error:
        raise UserError(f"{name}: not an ONNX file, or cut short; {_EXPORT_AGAIN}") from error
