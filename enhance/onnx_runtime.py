"""Networks run by onnxruntime, from the .onnx files that `scripts/export_onnx.py` writes.

    network, config = load_onnx(Path("network.onnx"), threads=1)
    enhanced = network(Spectrogram(config.stft, config.model.complex_spectra)(wav))

They map spectra to spectra on the CPU, so `Enhancer` and `Stream` take them like the PyTorch networks. A file is
complete: its metadata hold the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cli import UserError
from config import Config, parse_saved_config
from enhance.graphs import SPECTRA_INPUTS, GraphNetwork, StreamingGraphNetwork, run_graph
from models.stft import AnySpectra, spectra_class

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CONFIG_KEY = "config"
"""Key of the configuration, in JSON, in a file's metadata."""

_EXPORT_AGAIN = "give one that scripts/export_onnx.py wrote"


def load_onnx(path: Path, threads: int) -> tuple[GraphNetwork, Config]:
    """Load a network and its configuration from an .onnx file, to run on `threads` threads.

    The network is a `StreamingGraphNetwork` if the file has a state. Raises `UserError` if the file is missing, cut
    short, not ONNX or not from this project, or onnxruntime is not installed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the network cannot be read: {error.strerror}") from error
    session = open_session(content, threads, str(path))
    metadata = session.get_modelmeta().custom_metadata_map
    if CONFIG_KEY not in metadata:
        raise UserError(f"{path}: an ONNX file without this project's configuration; {_EXPORT_AGAIN}")
    try:
        config = parse_saved_config(metadata[CONFIG_KEY])
    except UserError as error:
        raise UserError(f"{path}: {error}; {_EXPORT_AGAIN}") from error
    inputs = tuple(each.name for each in session.get_inputs())
    if inputs[:SPECTRA_INPUTS] != spectra_class(config.model.complex_spectra)._fields:
        raise UserError(f"{path}: its inputs are not those of {config.model.name}; {_EXPORT_AGAIN}")
    return session_network(session, config), config


def session_network(session: InferenceSession, config: Config) -> GraphNetwork:
    """Return the network of a session, a `StreamingGraphNetwork` if it has a state."""

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return list(map(np.asarray, session.run(None, inputs)))

    state_shapes = {each.name: each.shape for each in session.get_inputs()[SPECTRA_INPUTS:]}
    return (_OnnxStream(run, state_shapes, config) if state_shapes else GraphNetwork(run)).eval()


class _OnnxStream(StreamingGraphNetwork):
    """A network whose state is a dict of arrays, inputs and outputs of the graph.

    `state_shapes` are {input name: shape}, where sizes that are not integers stand for the batch.
    """

    def __init__(
        self,
        run: Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]],
        state_shapes: Mapping[str, Sequence[Any]],
        config: Config,
    ) -> None:
        super().__init__(config.model.block_frames, config.model.delay_frames)
        self._run, self._state_shapes = run, state_shapes

    def stream(
        self, noisy: AnySpectra, state: Mapping[str, np.ndarray] | None
    ) -> tuple[AnySpectra, dict[str, np.ndarray]]:
        """Enhance the next frames, spectra `[B, F, T]`; returns them and the next state."""
        if state is None:
            batch = len(noisy[0])
            state = {
                name: np.zeros([size if isinstance(size, int) else batch for size in shape], np.float32)
                for name, shape in self._state_shapes.items()
            }
        enhanced, next_state = run_graph(self._run, noisy, state)
        return enhanced, dict(zip(self._state_shapes, next_state, strict=True))


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
