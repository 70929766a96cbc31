"""Networks as ONNX graphs: how `scripts/export_onnx.py` and the backend onnxruntime get theirs.

PyTorch's exporter writes a graph for any batch and any number of frames, which onnxruntime simplifies; what neither
needs to compute is then left out. It takes seconds for Lite-RTSE, half a minute for IMSE and more for CNUNet, and
needs the packages of the extra `onnx`, but no GPU.

Over hundreds of frames onnxruntime's results are a little less exact than PyTorch's, which adds up long sums in parts:
of a segment's magnitudes, up to 1e-5 of the largest (IMSE, MUSE).
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from cli import UserError
from config import Config
from enhance.onnx_runtime import CONFIG_KEY, SPECTRA_INPUTS, OnnxNetwork, StreamingOnnxNetwork, network_of, open_session
from enhance.streaming import StreamingNetwork
from models import lite_rtse
from models.stft import Spectra, Spectrogram

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

OPSET = 18
"""The one that PyTorch's exporter writes without a conversion; onnxruntime knows it since 1.14."""

LSTM_NODE_SINCE = "2.8"
"""The first PyTorch that can put a node of ONNX's own into a graph, which LSTMs need."""

IN_MEMORY = "the exported network"
"""What messages call a graph that is not in a file."""

EXAMPLE_BATCH, EXAMPLE_FRAMES = 3, 8
"""What the graph is recorded with. No other axis of a network's state is as long as the batch."""

CHECKED = ((1, 1), (2, 7), (3, 30))
"""Batch and number of frames of what an exported network is checked with."""

TOLERANCE, COMPLEX_TOLERANCE = 1e-4, 2e-3
"""How far magnitudes and complex spectra may be from PyTorch's, over the largest magnitude.

Phases are the angles of two numbers that may both be close to 0, which can turn rounding errors into large ones.
"""

NOISE_LEVEL = 0.1
"""Deviation of the noise that it is checked with, where the network does not ask for 1."""


class _PlainTensors(nn.Module):
    """A network with tensors for inputs and outputs: magnitude and phase `[B, F, T]`, and those of the state if any."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.example_state = network.initial_state(EXAMPLE_BATCH) if isinstance(network, StreamingNetwork) else None

    def forward(self, mag: Tensor, pha: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The enhanced magnitude and phase; with a state, also the next one."""
        noisy = Spectra(mag, pha)
        if not isinstance(self.network, StreamingNetwork):
            return _no_inputs(self.network(noisy), noisy)
        before = _nested(state, like=self.example_state) if state else self.network.initial_state(mag.shape[0])
        enhanced, after = self.network.stream(noisy, before)
        enhanced = _no_inputs(enhanced, noisy)
        return (*enhanced, *_flat(after).values()) if state else enhanced


def _no_inputs(enhanced: Spectra, noisy: Spectra) -> tuple[Tensor, ...]:
    """The enhanced spectra, where a part that is the noisy one is computed: a graph's outputs are not its inputs."""
    return tuple(part + 0 if part is given else part for part, given in zip(enhanced, noisy, strict=True))


def export(network: nn.Module, config: Config, stream: bool = False) -> bytes:
    """The content of an .onnx file for a network that is on the CPU and in evaluation mode, checked against it.

    Inputs are `mag` and `pha`, outputs `enhanced_mag` and `enhanced_pha`, float32 `[batch, F, frames]` with any batch
    and frames from 1 up. With `stream` the state before the first frame and after the last, zeros at the beginning,
    are inputs and outputs too. The configuration stands in the metadata.

    Raises `UserError` where the network cannot stream or the graph computes something else, and `UserError`
    where a package is missing.
    """
    if stream and not isinstance(network, StreamingNetwork):
        raise UserError(f"{type(network).__name__} cannot stream: it needs the whole signal; export it without")
    name = type(network).__name__
    if torch.__version__ < LSTM_NODE_SINCE and any(isinstance(part, nn.LSTM) for part in network.modules()):
        raise UserError(f"exporting {name} needs PyTorch {LSTM_NODE_SINCE} or newer; this is {torch.__version__}")
    state = _flat(network.initial_state(EXAMPLE_BATCH)) if stream and isinstance(network, StreamingNetwork) else {}
    model = _simplified(_recorded(network, config.stft.bins, state))
    entry = model.metadata_props.add()
    entry.key, entry.value = CONFIG_KEY, json.dumps(config.to_dict())
    content = model.SerializeToString()
    check(network_of(open_session(content, 1, IN_MEMORY)), network, config)
    return content


def with_onnxruntime(network: nn.Module, config: Config, threads: int) -> OnnxNetwork:
    """The same network, computed by onnxruntime on `threads` cores; one that can stream still can.

    Raises `UserError` and `UserError` as `export` does.
    """
    content = export(network, config, stream=isinstance(network, StreamingNetwork))
    return network_of(open_session(content, threads, IN_MEMORY))


@torch.inference_mode()
def check(exported: OnnxNetwork, network: nn.Module, config: Config) -> None:
    """Raise `UserError` unless both give the same magnitudes and complex spectra of noise, as far as is allowed."""
    spectrogram = Spectrogram(config.stft)
    generator = torch.Generator().manual_seed(0)
    level = 1 if config.data.normalize_level else NOISE_LEVEL
    for batch, frames in CHECKED:
        noise = level * torch.randn(batch, frames * config.stft.hop_size, generator=generator)
        noisy = Spectra(*(part[..., :frames] for part in spectrogram(noise)))
        expected, enhanced = network(noisy), _enhanced(exported, noisy)
        largest = expected.mag.max()
        for name, wrong, allowed in (
            ("magnitudes", (enhanced.mag - expected.mag).abs().max() / largest, TOLERANCE),
            ("complex spectra", (enhanced.complex - expected.complex).abs().max() / largest, COMPLEX_TOLERANCE),
        ):
            if not wrong <= allowed:  # NaN is wrong too
                raise UserError(
                    f"onnxruntime's {name} of {batch} x {frames} frames are {wrong:.1e} of the largest from PyTorch's "
                    f"({allowed:.0e} is allowed); nothing was written; try other versions of torch and onnxruntime"
                )


def _enhanced(exported: OnnxNetwork, noisy: Spectra) -> Spectra:
    """Whole signals enhanced; frame by frame where the network streams, so that its state is checked too."""
    if not isinstance(exported, StreamingOnnxNetwork):
        return exported(noisy)
    state = exported.initial_state(len(noisy.mag))
    pieces: list[Spectra] = []
    for mag, pha in zip(noisy.mag.split(1, dim=2), noisy.pha.split(1, dim=2), strict=True):
        enhanced, state = exported.stream(Spectra(mag, pha), state)
        pieces.append(enhanced)
    return Spectra(*(torch.cat(parts, dim=2) for parts in zip(*pieces, strict=True)))


def _flat(state: Any) -> dict[str, Tensor]:
    """By name, the tensors of a state: a named tuple of tensors and of tuples of them, which are numbered."""
    named: dict[str, Tensor] = {}
    for name, part in state._asdict().items():
        named |= (
            {f"{name}_{index}": each for index, each in enumerate(part)} if isinstance(part, tuple) else {name: part}
        )
    return named


def _nested(tensors: Sequence[Tensor], like: Any) -> Any:
    """The state, of the form of `like`, of which these are the tensors, in order."""
    rest = iter(tensors)
    return like._make(tuple(islice(rest, len(part))) if isinstance(part, tuple) else next(rest) for part in like)


def _recorded(network: nn.Module, bins: int, state: Mapping[str, Tensor]) -> bytes:
    """The graph as PyTorch's exporter writes it."""
    _need("onnx", "onnxscript", "onnxruntime")
    mag, pha = torch.rand(2, EXAMPLE_BATCH, bins, EXAMPLE_FRAMES)
    of_spectra = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}
    of_state = tuple({each.shape.index(EXAMPLE_BATCH): Dim.DYNAMIC} for each in state.values())
    with torch.no_grad(), _quiet(), _lstm_as_one_node(), _sums_in_steps():
        program = torch.export.export(
            _PlainTensors(network),
            # Each input is a tensor of its own: what is one tensor here would become one input.
            (mag, pha, *(each.clone() for each in state.values())),
            dynamic_shapes=(of_spectra, of_spectra, *([of_state] if state else [])),
            strict=False,
        )
        exported = torch.onnx.export(
            program,
            input_names=[*SPECTRA_INPUTS, *state],
            output_names=[f"enhanced_{name}" for name in SPECTRA_INPUTS] + [f"next_{name}" for name in state],
            opset_version=OPSET,
            dynamo=True,
            optimize=False,  # slower than the rest, and onnxruntime does it in a second
            verbose=False,
        )
    assert exported is not None
    return exported.model_proto.SerializeToString()


def _simplified(content: bytes) -> ModelProto:
    """The graph without what can be computed beforehand, and without what only its writer needs."""
    import onnx  # late: an optional package

    with TemporaryDirectory() as folder:
        path = Path(folder) / "simplified.onnx"
        open_session(content, 1, IN_MEMORY, simplified=path)
        model = onnx.load(path)
    graph = model.graph
    graph.ClearField("value_info")
    graph.ClearField("metadata_props")
    for node in graph.node:
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
    model.ClearField("metadata_props")
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    for each in [*graph.input, *graph.output]:
        _name_axes(each)
    return model


def _name_axes(tensor: ValueInfoProto) -> None:
    """Call the first axis of any size `batch`, a second one `frames`."""
    free = [axis for axis in tensor.type.tensor_type.shape.dim if not axis.HasField("dim_value")]
    for axis, name in zip(free, ("batch", "frames"), strict=False):
        axis.dim_param = name


@contextmanager
def _lstm_as_one_node() -> Iterator[None]:
    """Within it, Lite-RTSE's LSTMs become ONNX's; PyTorch's would be recorded for one number of frames only."""
    original = lite_rtse.run_lstm
    lite_rtse.run_lstm = _onnx_lstm
    try:
        yield
    finally:
        lite_rtse.run_lstm = original


def _onnx_lstm(lstm: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`models.lite_rtse.run_lstm` for the exporter: the node, and the shapes of what it gives."""
    batch, frames, _ = x.shape
    # PyTorch has the gates in the order input, forget, cell, output, ONNX input, output, forget, cell.
    gates = ([p.chunk(4)[gate] for gate in (0, 3, 1, 2)] for p in lstm.all_weights[0])
    weight, recurrent, bias, recurrent_bias = (torch.cat(parts)[None] for parts in gates)
    y, hidden, cell = torch.onnx.ops.symbolic_multi_out(
        "LSTM",
        (x.transpose(0, 1), weight, recurrent, torch.cat([bias, recurrent_bias], dim=1), None, *state),
        {"hidden_size": lstm.hidden_size},
        dtypes=[x.dtype] * 3,
        shapes=[(frames, 1, batch, lstm.hidden_size), *[(1, batch, lstm.hidden_size)] * 2],
    )
    return y[:, 0].transpose(0, 1), (hidden, cell)


@contextmanager
def _sums_in_steps() -> Iterator[None]:
    """Within it, group norms take their means one dimension at a time: onnxruntime would add up a map one by one."""
    original = nn.GroupNorm.forward
    nn.GroupNorm.forward = _group_norm
    try:
        yield
    finally:
        nn.GroupNorm.forward = original


def _group_norm(self: nn.GroupNorm, input: Tensor) -> Tensor:
    """What `nn.GroupNorm` gives for a map `[B, C, F, T]`."""
    groups = input.unflatten(1, (self.num_groups, -1))

    def mean(each: Tensor) -> Tensor:
        return each.mean(dim=4, keepdim=True).mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)

    centred = groups - mean(groups)
    normalized = (centred * torch.rsqrt(mean(centred.square()) + self.eps)).flatten(1, 2)
    return normalized * self.weight[:, None, None] + self.bias[:, None, None]


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, the exporter's warnings are not shown: they are of what these networks do not need."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)


def _need(*packages: str) -> None:
    """Raise `UserError` where an optional package is missing."""
    if missing := [package for package in packages if find_spec(package) is None]:
        raise UserError(f"{' and '.join(missing)} not installed: pip install -e '.[onnx]'")
