"""Networks as graphs of other runtimes (ONNX, OpenVINO): the interface for tracing, running and checking them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from cli import UserError
from config import Config
from enhance.streaming import StreamingNetwork
from models.stft import AnySpectra, Spectrogram, spectra_class
from models.streaming import State, stream_whole

SPECTRA_INPUTS = 2
"""Number of inputs for the spectra, `[batch, F, frames]` each, as of outputs. Further ones are the state."""

EXAMPLE_BATCH, EXAMPLE_FRAMES = 7, 8
"""Size of the example inputs. No axis of a network's state but the batch may have `EXAMPLE_BATCH` entries."""

CHECKED_SHAPES = ((1, 1), (2, 7), (3, 30))
"""(Batch, frames) with which a graph is compared with PyTorch."""

TOLERANCE, COMPLEX_TOLERANCE = 1e-4, 2e-3
"""Default maximum error of magnitudes, and maximum error of complex spectra, relative to the largest magnitude.

A phase is the angle of two numbers that may both be near 0, which amplifies rounding errors.
"""

WHOLE_PIECE = 1024
"""Maximum number of frames in one call of a graph with a state, for whole signals."""

NOISE_LEVEL = 0.1
"""Standard deviation of the test noise for networks without level normalisation; 1 for the others."""


class TensorNetwork(nn.Module):
    """A network with plain tensors as inputs and outputs: both parts of spectra `[B, F, T]`, and its state if any."""

    def __init__(self, network: nn.Module, complex_spectra: bool) -> None:
        super().__init__()
        self.network = network
        self.spectra_class = spectra_class(complex_spectra)

    def forward(self, first: Tensor, second: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Enhance spectra; with a state, return the next state too."""
        noisy = self.spectra_class(first, second)
        next_state: State = ()
        if state:
            enhanced, next_state = cast(StreamingNetwork, self.network).stream(noisy, state)
        else:
            enhanced = self.network(noisy)
        # An output of a graph must not be one of its inputs.
        parts = (part + 0 if part is given else part for part, given in zip(enhanced, noisy, strict=True))
        return *parts, *next_state


@torch.no_grad()
def example_state(network: StreamingNetwork, config: Config) -> dict[str, Tensor]:
    """Return the state before the first frame of `EXAMPLE_BATCH` signals: {name of the graph's input: zeros}."""
    zeros = torch.zeros(SPECTRA_INPUTS, EXAMPLE_BATCH, config.stft.bins, config.model.block_frames)
    _, state = network.stream(spectra_class(config.model.complex_spectra)(*zeros), None)
    return {f"state_{index}": torch.zeros_like(each) for index, each in enumerate(state)}


class GraphNetwork(nn.Module):
    """A network that another runtime executes on the CPU.

    `run` maps {input name: array} to the outputs in order.
    """

    def __init__(self, run: Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]) -> None:
        super().__init__()
        self._run = run

    def forward(self, noisy: AnySpectra) -> AnySpectra:
        """Enhance whole signals, spectra `[B, F, T]`."""
        return run_graph(self._run, noisy, {})[0]


def run_graph(
    run: Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]], noisy: AnySpectra, state: Mapping[str, np.ndarray]
) -> tuple[AnySpectra, Sequence[np.ndarray]]:
    """Run a graph on spectra and a state; return the enhanced spectra and the other outputs, in order."""
    inputs = {name: np.ascontiguousarray(x) for name, x in noisy._asdict().items()}
    outputs = run({**inputs, **state})
    return type(noisy)(*map(torch.from_numpy, outputs[:SPECTRA_INPUTS])), outputs[SPECTRA_INPUTS:]


class StreamingGraphNetwork(GraphNetwork):
    """Base class of networks with a state: `enhance.streaming.StreamingNetwork`.

    block_frames: the number of frames in a call of `stream` is a multiple of this.
    delay_frames: that of the network's configuration.
    """

    def __init__(self, block_frames: int, delay_frames: int) -> None:
        nn.Module.__init__(self)
        self.block_frames, self.delay_frames = block_frames, delay_frames

    def stream(self, noisy: AnySpectra, state: Any) -> tuple[AnySpectra, Any]:
        """Enhance the next frames, spectra `[B, F, T]`; see `enhance.streaming.StreamingNetwork`."""
        raise NotImplementedError

    def forward(self, noisy: AnySpectra) -> AnySpectra:
        """Enhance whole signals, spectra `[B, F, T]`."""
        return self.in_pieces(noisy, WHOLE_PIECE)

    def in_pieces(self, noisy: AnySpectra, frames: int) -> AnySpectra:
        """Enhance whole signals, spectra `[B, F, T]`, in pieces of `frames` frames."""
        return stream_whole(self.stream, noisy, frames, self.block_frames, self.delay_frames)


@torch.inference_mode()
def check_graph(
    graph: GraphNetwork,
    network: nn.Module,
    config: Config,
    shapes: Sequence[tuple[int, int]] = CHECKED_SHAPES,
    tolerance: float = TOLERANCE,
) -> None:
    """Raise `UserError` unless both networks enhance noise to the same spectra, within the tolerances.

    `shapes` are those of the spectra, (batch, frames); `tolerance` is that of the magnitudes, and the least of the
    complex spectra.
    """
    spectrogram = Spectrogram(config.stft, config.model.complex_spectra)
    generator = torch.Generator().manual_seed(0)
    level = 1 if config.data.normalize_level else NOISE_LEVEL
    for batch, frames in shapes:
        noise = level * torch.randn(batch, frames * config.stft.hop_size, generator=generator)
        noisy = spectrogram.spectra_class(*(part[..., :frames] for part in spectrogram(noise)))
        expected = network(noisy)
        if isinstance(graph, StreamingGraphNetwork):  # in the smallest pieces, to check the state too
            enhanced = graph.in_pieces(noisy, graph.block_frames)
        else:
            enhanced = graph(noisy)
        if enhanced[0].shape != expected[0].shape:
            raise UserError(
                f"{type(network).__name__}: the converted graph returns shape {tuple(enhanced[0].shape)} "
                f"instead of {tuple(expected[0].shape)}; try other versions"
            )
        largest = expected.mag.max()
        for name, error, allowed in (
            ("magnitudes", (enhanced.mag - expected.mag).abs().max() / largest, tolerance),
            (
                "complex spectra",
                (enhanced.complex - expected.complex).abs().max() / largest,
                max(COMPLEX_TOLERANCE, tolerance),
            ),
        ):
            if not error <= allowed:  # also if it is NaN
                raise UserError(
                    f"{type(network).__name__}: {name} of {batch} x {frames} frames in the converted graph differ from "
                    f"PyTorch's by {error:.1e} of the largest ({allowed:.0e} is allowed); try other versions"
                )
