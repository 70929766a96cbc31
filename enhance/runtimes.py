"""Ways to make a network faster where it is used: onnxruntime, bfloat16, compilation for the one shape, kept memory."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import torch
from torch import Tensor, nn

from cli import UserError
from config import Config
from enhance.enhancer import Enhancer
from enhance.files import Load
from enhance.onnx_export import with_onnxruntime
from enhance.onnx_runtime import load_onnx
from enhance.windows import repeated_length
from models.checkpoint import load_checkpoint
from models.stft import Spectra

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""

_LARGEST_KEPT = 2**25
"""Bytes: the most that mallopt takes everywhere. IMSE's largest map of a window has 30 MB."""


class InBfloat16(nn.Module):
    """A network whose convolutions and matrix products are in bfloat16; what comes out is float32 again."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, spectra: Spectra) -> Spectra:
        """Noisy spectra → enhanced ones."""
        with torch.autocast(spectra.mag.device.type, torch.bfloat16):
            enhanced = self.network(spectra)
        return Spectra(*(part.float() for part in enhanced))


class OneDnnPointwise(nn.Module):
    """A 1×1 convolution by oneDNN, which PyTorch itself takes for many threads only: with one, half the time."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, T, F]` → `[B, C', T, F]`."""
        return torch.mkldnn_convolution(x, self.weight, self.bias, (0, 0), (1, 1), (1, 1), 1)


class CompiledForShape(nn.Module):
    """A network compiled for a batch of `batch_size` spectra of `frames` frames; all others run uncompiled.

    Networks cannot be compiled for dynamic shapes, and compiling takes longer than what a shape seen once takes.
    Raises what torch.compile raises at the first input of that shape.
    """

    def __init__(self, network: nn.Module, batch_size: int, frames: int) -> None:
        super().__init__()
        self.network = network
        self.compiled = torch.compile(network, dynamic=False)
        self.batch_size, self.frames = batch_size, frames

    def forward(self, spectra: Spectra) -> Spectra:
        """Noisy spectra → enhanced ones."""
        batch_size, _, frames = spectra.mag.shape
        repeats = (batch_size, frames) == (self.batch_size, self.frames)
        return self.compiled(spectra) if repeats else self.network(spectra)


def take_onednn(network: nn.Module) -> None:
    """Replace the network's 1×1 convolutions by `OneDnnPointwise`."""
    for name, part in network.named_children():
        if isinstance(part, nn.Conv2d) and _is_pointwise(part):
            setattr(network, name, OneDnnPointwise(part))
        else:
            take_onednn(part)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, where it is glibc, for the process to use again.

    Otherwise it gives a window's maps back to the system and has each page of the next window's faulted in anew,
    which takes a tenth of IMSE's time on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)


def load_network(path: Path, backend: str, threads: int) -> tuple[nn.Module, Config]:
    """A checkpoint's network, computed by "torch", or by "onnxruntime" on `threads` cores; an .onnx file always so.

    Raises `UserError`; and `UserError` where the network cannot be exported for onnxruntime.
    """
    if path.suffix == ".onnx":
        return load_onnx(path, threads)
    network, config = load_checkpoint(path)
    return (with_onnxruntime(network, config, threads) if backend == "onnxruntime" else network), config


def fast_enhancer(
    network: nn.Module, config: Config, device: str, protocol: str, load: Load, bf16: bool, compiled: bool
) -> Enhancer:
    """An enhancer on a device, made faster in the ways that are asked for; compiled before it comes back.

    With one thread the network's 1×1 convolutions are replaced. Raises `UserError`.
    """
    if bf16:
        network = InBfloat16(network)
    elif device == "cpu" and load.threads == 1 and not compiled and torch.backends.mkldnn.is_available():
        take_onednn(network)
    length = repeated_length(protocol, config.data.segment_size)
    if not compiled or length is None:
        return Enhancer(network, config).to(device)
    frames = (length + config.stft.padding(length)) // config.stft.hop_size + 1
    enhancer = Enhancer(CompiledForShape(network, load.batch_size, frames), config).to(device)
    torch.set_num_threads(load.threads)  # what is compiled serves threads with this setting
    try:
        enhancer.enhance_rows(torch.zeros(load.batch_size, length))
    except RuntimeError as error:
        raise UserError(f"--compile: cannot be used ({str(error).strip().splitlines()[0]})") from error
    return enhancer
