"""Networks run by OpenVINO, on CPUs 1.1 (MUSE) to 1.6 times (IMSE) as fast as by PyTorch.

PyTorch traces a network, OpenVINO converts and compiles the trace, and the result is compared with PyTorch. That takes
seconds, so the compiled network is kept in the user's cache folder, `$XDG_CACHE_HOME/imse` or `~/.cache/imse`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
import warnings
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

import models
from cli import UserError
from config import Config
from enhance import graphs
from enhance.graphs import (
    CHECKED_SHAPES,
    EXAMPLE_BATCH,
    EXAMPLE_FRAMES,
    SPECTRA_INPUTS,
    GraphNetwork,
    StreamingGraphNetwork,
    TensorNetwork,
    check_graph,
    example_state,
)
from enhance.streaming import StreamingNetwork
from models.stft import AnySpectra, spectra_class
from utils.atomic import atomic_open

if TYPE_CHECKING:
    from openvino import CompiledModel, Core, InferRequest, Model

ENTRIES_KEPT = 20
"""Maximum number of compiled networks in the cache folder."""

TOLERANCE = 1e-2
"""Maximum error in noise: for MUSE, whose deformable convolution amplifies rounding errors, up to 4e-3; for the others
below 1e-5. On speech, the output of MUSE differs by less than −60 dB, that of the others by less than −75 dB."""

_DIGEST_SIZE = hashlib.sha256().digest_size


def with_openvino(
    network: nn.Module,
    config: Config,
    threads: int,
    frames: int | None = None,
    stream: bool = False,
    bf16: bool = False,
) -> GraphNetwork:
    """Compile a network in evaluation mode for the CPU, or load it from the cache.

    threads: CPU threads.
    frames: number of frames of all inputs; None for any number, which takes 1.7 times as long.
    stream: keep the state of a `StreamingNetwork` between calls; it then takes its frames in pieces of `frames`.
    bf16: compute in bfloat16 on CPUs that can.

    Raises `UserError` if openvino is not installed or cannot run the network.
    """
    try:
        import openvino  # noqa: F401 (late: takes a fifth of a second)
        from openvino.frontend import GeneralFailure, NotImplementedFailure, OpConversionFailure, OpValidationFailure
    except ImportError as error:
        raise UserError("openvino is not installed: pip install openvino") from error
    core = _core()
    properties = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # several processes would pin their threads to the same cores
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
    }
    entry = cache_dir() / f"{_key(network, config, core, [frames, stream, properties])}.openvino"
    if compiled := _read_entry(entry, core, properties):
        return _graph_network(compiled, config)
    try:
        compiled = core.compile_model(_convert(network, config, frames, stream), "CPU", properties)
        graph = _graph_network(compiled, config)
        if not bf16:
            check_graph(graph, network, config, CHECKED_SHAPES if frames is None else [(1, max(frames, 7))], TOLERANCE)
    except (RuntimeError, GeneralFailure, NotImplementedFailure, OpConversionFailure, OpValidationFailure) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"OpenVINO cannot run {type(network).__name__}: {reason}") from error
    _write_entry(entry, compiled)
    return graph


@cache
def _core() -> Core:
    """Return the OpenVINO runtime of this process.

    It is never deleted: OpenVINO replaces the signal stack of the thread, and after deleting two runtimes in the order
    in which they were made the stack of the first is unmapped but in use, and the next signal ends the process.
    """
    import openvino

    return openvino.Core()


def cache_dir() -> Path:
    """Return the folder of compiled networks; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "imse")  # noqa: PTH111 (never raises)


def _key(network: nn.Module, config: Config, core: Core, options: list[Any]) -> str:
    """Return a hash of what determines a compiled network: weights, configuration, code, versions, CPU, options."""
    import openvino

    digest = hashlib.sha256()
    cpu = [str(core.get_property("CPU", name)) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    digest.update(json.dumps([config.to_dict(), torch.__version__, openvino.__version__, cpu, options]).encode())
    sources = [Path(__file__), Path(graphs.__file__), *sorted(Path(models.__file__).parent.glob("*.py"))]
    for source in [*sources, Path(inspect.getfile(type(network)))]:
        digest.update(source.read_bytes())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _convert(network: nn.Module, config: Config, frames: int | None, stream: bool) -> Model:
    """Return the graph of a network for one signal of `frames` frames, or for any batch size and number of frames."""
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    state = example_state(network, config) if stream and isinstance(network, StreamingNetwork) else {}
    example_frames = frames if stream and frames else EXAMPLE_FRAMES  # LSTMs compute a single frame in another way
    examples = *torch.rand(SPECTRA_INPUTS, EXAMPLE_BATCH, config.stft.bins, example_frames), *state.values()
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        examples = tuple(example.clone() for example in examples)  # one tensor would be recorded as one input
        wrapped = TensorNetwork(network, config.model.complex_spectra).eval()
        trace = torch.jit.trace(wrapped, examples, check_trace=False, strict=False)
        decoder = TorchScriptPythonDecoder(torch.jit.freeze(trace), skip_freeze=True)
    frontend = FrontEndManager().load_by_framework("pytorch")
    graph = frontend.load(decoder)
    for index, (place, example) in enumerate(zip(graph.get_inputs(), examples, strict=True)):
        shape = [(1 if frames else -1) if size == EXAMPLE_BATCH else size for size in example.shape]
        if index < SPECTRA_INPUTS:
            shape[2] = frames or -1
        graph.set_element_type(place, openvino.Type.f32)
        graph.set_partial_shape(place, openvino.PartialShape(shape))
    model = frontend.convert(graph)
    for port, name in zip(model.inputs, [*wrapped.spectra_class._fields, *state], strict=True):
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    return model


def _graph_network(compiled: CompiledModel, config: Config) -> GraphNetwork:
    request = compiled.create_infer_request()
    batch_axis, bins, frame_axis = compiled.input(0).partial_shape

    def infer(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [output.copy() for output in request.infer(inputs, share_inputs=True, share_outputs=True).values()]

    def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run the graph, on one signal after the other if it takes one only."""
        if batch_axis.is_dynamic:
            return infer(inputs)
        frames = next(iter(inputs.values())).shape[2]
        if frames != frame_axis.get_length():
            raise ValueError(f"the network was compiled for {frame_axis.get_length()} frames, not {frames}")
        alone = zip(*(x[:, None] for x in inputs.values()), strict=True)
        signals = [infer(dict(zip(inputs, parts, strict=True))) for parts in alone]
        return [np.concatenate(outputs) for outputs in zip(*signals, strict=True)]

    if len(compiled.inputs) > SPECTRA_INPUTS:
        return _OpenVinoStream(compiled, config).eval()
    if frame_axis.is_dynamic:
        # OpenVINO 2026.4 compiles softmax attention at its first input. If that is a single frame, the results for 16
        # or more frames are wrong.
        first = np.zeros((1, bins.get_length(), EXAMPLE_FRAMES), np.float32)
        infer(dict.fromkeys(spectra_class(config.model.complex_spectra)._fields, first))
    return GraphNetwork(run).eval()


class _OpenVinoStream(StreamingGraphNetwork):
    """A network with a state for one signal after the other, in pieces of the graph's number of frames.

    The state of a signal is a pair of infer requests that run in turn: the state that one writes is the input of the
    other, so that nothing is copied. A state is overwritten by the next one.
    """

    def __init__(self, compiled: CompiledModel, config: Config) -> None:
        super().__init__(compiled.input(0).partial_shape[2].get_length(), config.model.delay_frames)
        self._compiled = compiled

    def _requests(self) -> tuple[InferRequest, InferRequest]:
        first, second = self._compiled.create_infer_request(), self._compiled.create_infer_request()
        for index in range(SPECTRA_INPUTS, len(self._compiled.inputs)):
            second.get_output_tensor(index).data[:] = 0
            first.set_input_tensor(index, second.get_output_tensor(index))
            second.set_input_tensor(index, first.get_output_tensor(index))
        return first, second

    def stream(
        self, noisy: AnySpectra, state: list[tuple[InferRequest, InferRequest]] | None
    ) -> tuple[AnySpectra, list[tuple[InferRequest, InferRequest]]]:
        """Enhance the next frames, spectra `[B, F, T]`, T divisible by `block_frames`."""
        noisy_parts = [part.numpy() for part in noisy]
        enhanced = [np.empty_like(part) for part in noisy_parts]
        batch, _, frames = noisy_parts[0].shape
        next_state = [self._requests() for _ in range(batch)] if state is None else list(state)
        for signal in range(batch):
            for start in range(0, frames, self.block_frames):
                piece = signal, slice(None), slice(start, start + self.block_frames)
                request, other = next_state[signal]
                for index, part in enumerate(noisy_parts):
                    request.get_input_tensor(index).data[0] = part[piece]
                request.start_async()
                request.wait()
                for index, part in enumerate(enhanced):
                    part[piece] = request.get_output_tensor(index).data[0]
                next_state[signal] = other, request
        return type(noisy)(*map(torch.from_numpy, enhanced)), next_state


def _read_entry(entry: Path, core: Core, properties: dict[str, Any]) -> CompiledModel | None:
    """Return a compiled network from the cache; None, with a line on standard error if the file is damaged."""
    try:
        content = entry.read_bytes()
    except OSError:
        return None
    digest, blob = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    if digest == hashlib.sha256(blob).digest():
        with suppress(RuntimeError):
            return core.import_model(BytesIO(blob), "CPU", properties)
    print(f"{entry}: damaged, compiling the network again", file=sys.stderr)
    return None


def _write_entry(entry: Path, compiled: CompiledModel) -> None:
    """Write a compiled network to the cache and remove the oldest ones; do nothing if the folder cannot be written."""
    exported = BytesIO()
    compiled.export_model(exported)
    blob = exported.getvalue()
    with suppress(OSError):
        with atomic_open(entry) as stream:
            stream.write(hashlib.sha256(blob).digest() + blob)
        entries = sorted(entry.parent.glob("*.openvino"), key=lambda path: path.stat().st_mtime)
        for old in entries[:-ENTRIES_KEPT]:
            old.unlink(missing_ok=True)
