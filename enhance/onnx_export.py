"""Export networks to ONNX, for `scripts/export_onnx.py` and the backend onnxruntime.

PyTorch's exporter writes a graph for any batch size and number of frames, onnxruntime simplifies it, and the result is
compared with PyTorch. This takes seconds for Lite-RTSE, half a minute for IMSE and more for CNUNet, and needs the
packages onnx, onnxscript and onnxruntime.

Over hundreds of frames onnxruntime is less exact than PyTorch, which sums pairwise: magnitudes of a segment differ by
up to 1e-5 of the largest (IMSE, MUSE).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.export import Dim

from cli import UserError
from config import Config
from enhance.graphs import (
    EXAMPLE_BATCH,
    EXAMPLE_FRAMES,
    SPECTRA_INPUTS,
    GraphNetwork,
    TensorNetwork,
    check_graph,
    example_state,
)
from enhance.onnx_runtime import CONFIG_KEY, open_session, session_network
from enhance.streaming import StreamingNetwork

OPSET = 18
"""ONNX operator set: the one that PyTorch's exporter writes without conversion; in onnxruntime since 1.14."""

RNN_NODE_SINCE = "2.8"
"""First version of PyTorch that can export an LSTM or a GRU for any number of frames."""

IN_MEMORY = "the exported network"
"""File name in messages on graphs in memory."""


def export(network: nn.Module, config: Config, stream: bool = False) -> bytes:
    """Export a network on the CPU in evaluation mode; returns the content of an .onnx file.

    Inputs are `mag` and `pha`, outputs `enhanced_mag` and `enhanced_pha`, float32 `[batch, F, frames]` for any batch
    size and 1 or more frames; with `config.NetworkConfig.complex_spectra`, `real` and `imaginary` instead. With
    `stream`, the state before the first frame (zeros at the beginning) and after the last are inputs and outputs too.
    The metadata hold the configuration.

    Raises `UserError` if the network cannot stream, the graph's results differ, or a package is missing.
    """
    name = type(network).__name__
    if stream and not isinstance(network, StreamingNetwork):
        raise UserError(f"{name} cannot stream: its output depends on later frames; export it without --stream")
    if torch.__version__ < RNN_NODE_SINCE and any(isinstance(part, nn.RNNBase) for part in network.modules()):
        raise UserError(f"exporting {name} needs PyTorch {RNN_NODE_SINCE} or newer; this is {torch.__version__}")
    if missing := [package for package in ("onnx", "onnxscript", "onnxruntime") if find_spec(package) is None]:
        raise UserError(f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}")
    state = example_state(network, config) if stream and isinstance(network, StreamingNetwork) else {}
    content = _simplified(_recorded(network, config, state), config)
    check_graph(session_network(open_session(content, 1, IN_MEMORY), config), network, config)
    return content


def with_onnxruntime(network: nn.Module, config: Config, threads: int) -> GraphNetwork:
    """Export a network and open it in onnxruntime on `threads` threads; a streaming network still streams.

    Raises `UserError` as `export` does.
    """
    content = export(network, config, stream=isinstance(network, StreamingNetwork))
    return session_network(open_session(content, threads, IN_MEMORY), config)


def _recorded(network: nn.Module, config: Config, state: dict[str, Tensor]) -> bytes:
    """Return the graph as PyTorch's exporter writes it."""
    wrapped = TensorNetwork(network, config.model.complex_spectra)
    names = wrapped.spectra_class._fields
    first, second = torch.rand(SPECTRA_INPUTS, EXAMPLE_BATCH, config.stft.bins, EXAMPLE_FRAMES)
    spectra_axes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    state_axes = tuple({each.shape.index(EXAMPLE_BATCH): Dim.DYNAMIC} for each in state.values())
    with torch.no_grad(), _no_warnings():
        program = torch.export.export(
            wrapped,
            # Cloned, because inputs that are one tensor would be recorded as one input.
            (first, second, *(each.clone() for each in state.values())),
            dynamic_shapes=(spectra_axes, spectra_axes, *([state_axes] if state else [])),
            strict=False,
        )
        exported = torch.onnx.export(
            program,
            input_names=[*names, *state],
            output_names=[f"enhanced_{name}" for name in names] + [f"next_{name}" for name in state],
            opset_version=OPSET,
            dynamo=True,
            optimize=False,  # takes longer than all the rest; onnxruntime simplifies in a second
            verbose=False,
        )
    assert exported is not None
    return exported.model_proto.SerializeToString()


def _simplified(content: bytes, config: Config) -> bytes:
    """Return the graph with constants folded, axes named, `config` in its metadata, and no debug information."""
    import onnx  # late: an optional package

    with TemporaryDirectory() as folder:
        path = Path(folder) / "simplified.onnx"
        open_session(content, 1, IN_MEMORY, simplified=path)
        model = onnx.load(path)
    model.graph.ClearField("value_info")
    model.graph.ClearField("metadata_props")
    for node in model.graph.node:
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    for each in [*model.graph.input, *model.graph.output]:
        dynamic = [axis for axis in each.type.tensor_type.shape.dim if not axis.HasField("dim_value")]
        for axis, name in zip(dynamic, ("batch", "frames"), strict=False):
            axis.dim_param = name
    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, {CONFIG_KEY: json.dumps(config.to_dict())})
    return model.SerializeToString()


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Hide the exporter's warnings, which concern features that these networks do not use."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
