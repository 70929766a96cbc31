"""Load a network for a backend: OpenVINO, onnxruntime, or PyTorch with what makes it faster."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from cli import UserError
from config import Config
from enhance.enhancer import Enhancer, default_protocol
from enhance.graphs import GraphNetwork
from enhance.onnx_runtime import load_onnx
from enhance.openvino_runtime import with_openvino
from enhance.streaming import Stream, StreamingNetwork, is_live
from enhance.windows import repeated_length
from models.checkpoint import load_checkpoint
from models.stft import AnySpectra

FILE_PIECE = 32
"""Frames in one pass of a live network over a file. Longer pieces are not faster, and take longer to compile."""

BACKENDS = ("auto", "torch", "openvino", "onnxruntime")


def load_network(path: Path, threads: int = 1) -> tuple[nn.Module, Config]:
    """Load a checkpoint, or an .onnx file to be run by onnxruntime on `threads` threads; raises `UserError`."""
    return load_onnx(path, threads) if path.suffix == ".onnx" else load_checkpoint(path)


def fast_enhancer(
    network: nn.Module,
    config: Config,
    device: str = "cpu",
    protocol: str | None = None,
    backend: str = "torch",
    batch_size: int | None = None,
    threads: int | None = None,
    bf16: bool = False,
    compiled: bool = False,
) -> Enhancer:
    """Build an `Enhancer` that is as fast as the device and the options allow. `network` itself may be changed.

    network: a network in evaluation mode, or a `GraphNetwork`, which stays as it is.
    protocol: the one to be used, by default `default_protocol`; networks are compiled for the length of its windows.
    backend: one of `BACKENDS`; see `convert`.
    batch_size: that of `Enhancer`, but 1 for protocol "whole".
    threads: CPU threads; None: as many as PyTorch has. PyTorch's are set for the whole process, with OpenVINO to 1.
    bf16: compute in bfloat16.
    compiled: use torch.compile, before this function returns.

    Raises `UserError` if the backend or torch.compile cannot run the network.
    """
    torch.backends.cudnn.allow_tf32 = False  # the same results on a GPU as on a CPU
    if threads is not None:
        torch.set_num_threads(threads)
    protocol = protocol or default_protocol(network, config)
    length = repeated_length(protocol, config.data.segment_size)
    frames = None if length is None else (length + config.stft.padding(length)) // config.stft.hop_size + 1
    if not isinstance(network, GraphNetwork):
        stream = frames is None and is_live(network, config)  # in pieces of a fixed length
        piece = FILE_PIECE if stream else frames
        network = convert(network, config, backend, torch.get_num_threads(), piece, stream, bf16)
    if isinstance(network, GraphNetwork):
        torch.set_num_threads(1)  # after the STFT, PyTorch's threads would wait busily on the cores of the network
    elif bf16:
        network = Bfloat16Stream(network) if isinstance(network, StreamingNetwork) else Bfloat16(network)
    elif device == "cpu" and torch.get_num_threads() == 1 and not compiled and torch.backends.mkldnn.is_available():
        use_onednn_pointwise(network)
    enhancer = Enhancer(network, config, 1 if protocol == "whole" else batch_size).to(device)
    if compiled and length is not None and frames is not None:
        enhancer.network = CompiledForShape(network, enhancer.batch_size, frames)
        try:
            enhancer.enhance_windows([np.zeros((length, 1), np.float32)] * enhancer.batch_size)
        except RuntimeError as error:
            raise UserError(f"--compile: cannot be used ({str(error).strip().splitlines()[0]})") from error
    return enhancer


def fast_stream(
    network: nn.Module, config: Config, device: str = "cpu", backend: str = "torch", threads: int = 1
) -> Stream:
    """Build a `Stream` for one of `BACKENDS`; `threads` are those of OpenVINO and onnxruntime. Raises `UserError`."""
    if isinstance(network, GraphNetwork) and not isinstance(network, StreamingNetwork):
        raise UserError("an .onnx file without a state cannot stream; export the network again with --stream")
    stream = Stream(network.to(device), config)  # first, because it raises if the network cannot stream
    if isinstance(network, GraphNetwork) or backend == "torch":
        return stream
    return Stream(convert(network, config, backend, threads, config.model.block_frames, stream=True), config)


def has_fast_bfloat16(device: str) -> bool:
    """Return whether PyTorch computes in bfloat16 without emulation, which takes 15 times as long on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device != "cpu" or torch.backends.cpu.get_cpu_capability() == "AVX512"


def convert(
    network: nn.Module,
    config: Config,
    backend: str,
    threads: int,
    frames: int | None,
    stream: bool = False,
    bf16: bool = False,
) -> nn.Module:
    """Convert a PyTorch network for a backend.

    "torch" returns it as it is. "auto" takes OpenVINO, or PyTorch with a line on standard error if OpenVINO cannot run
    the network. `frames`, `stream` and `bf16` are those of `with_openvino`. Raises `UserError`.
    """
    if backend == "onnxruntime":
        from enhance.onnx_export import with_onnxruntime  # late: PyTorch's exporter takes half a second to import

        return with_onnxruntime(network, config, threads)
    if backend in ("auto", "openvino"):
        try:
            return with_openvino(network, config, threads, frames, stream, bf16)
        except UserError as error:
            if backend == "openvino":
                raise
            print(f"{error}; PyTorch is used instead, which takes longer", file=sys.stderr)
    elif backend != "torch":
        raise UserError(f"backend {backend}: must be one of {', '.join(BACKENDS)}")
    return network


class Bfloat16(nn.Module):
    """A network with convolutions and matrix products in bfloat16; input and output are float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, spectra: AnySpectra) -> AnySpectra:
        """Enhance noisy spectra."""
        with torch.autocast(spectra[0].device.type, torch.bfloat16):
            enhanced = self.network(spectra)
        return type(spectra)(*(part.float() for part in enhanced))


class Bfloat16Stream(Bfloat16):
    """A `StreamingNetwork` of this kind."""

    def stream(self, noisy: AnySpectra, state: Any) -> tuple[AnySpectra, Any]:
        """Enhance the next frames; see `StreamingNetwork`."""
        with torch.autocast(noisy[0].device.type, torch.bfloat16):
            enhanced, state = cast(StreamingNetwork, self.network).stream(noisy, state)
        return type(noisy)(*(part.float() for part in enhanced)), state


class CompiledForShape(nn.Module):
    """A network compiled for spectra `[batch_size, F, frames]`; other shapes run uncompiled.

    The networks cannot be compiled for dynamic shapes, and a shape that occurs once is not worth compiling. The first
    input of that shape raises what torch.compile raises.
    """

    def __init__(self, network: nn.Module, batch_size: int, frames: int) -> None:
        super().__init__()
        self.network = network
        self.compiled = torch.compile(network, dynamic=False)
        self.batch_size, self.frames = batch_size, frames

    def forward(self, spectra: AnySpectra) -> AnySpectra:
        """Enhance noisy spectra."""
        batch_size, _, frames = spectra[0].shape
        compiled = (batch_size, frames) == (self.batch_size, self.frames)
        return self.compiled(spectra) if compiled else self.network(spectra)


class OneDnnPointwise(nn.Module):
    """A 1×1 convolution by oneDNN. With one thread, PyTorch takes its own, which needs twice the time."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, T, F]` to `[B, C', T, F]`."""
        return torch.mkldnn_convolution(x, self.weight, self.bias, (0, 0), (1, 1), (1, 1), 1)


def use_onednn_pointwise(network: nn.Module) -> None:
    """Replace the network's 1×1 convolutions by `OneDnnPointwise`."""
    for name, part in network.named_children():
        if not isinstance(part, nn.Conv2d):
            use_onednn_pointwise(part)
        elif (part.kernel_size, part.stride, part.padding, part.groups) == ((1, 1), (1, 1), (0, 0), 1):
            setattr(network, name, OneDnnPointwise(part))


def tune_malloc() -> None:
    """Make glibc's malloc keep freed memory.

    By default it returns the feature maps of each window to the system and has their pages faulted in again for the
    next one, which takes a tenth of IMSE's time on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD at its maximum; the largest map of a window of IMSE has 30 MB
