"""Export a network to an ONNX file, for onnxruntime and devices without PyTorch.

    python -m scripts.export_onnx [--checkpoint_file CKPT] --output network.onnx [--stream]

Inputs are `mag` and `pha`, the compressed magnitude and the phase of noisy speech, or for CNUNet and DPCRN `real` and
`imaginary`, float32 `[batch, F, frames]` for any batch size and 1 or more frames (multiples of 4 for IMSE live with
--stream); outputs have the same names after `enhanced_`. With --stream, for causal networks, the state between calls
is input and output too: tensors `state_0`, `state_1`, … and `next_state_0`, …, zeros at the beginning. The metadata
hold the configuration, with the STFT, as JSON under `config`.

The results are compared with PyTorch's before the file is written, which takes from seconds (Lite-RTSE) to a minute or
two (CNUNet). Needs `pip install -e '.[onnx]'`. Exit codes: 0 written; 1 not written, with the reason on standard error;
2 the command line is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cli import DONE, SOME_FAILED, ArgumentParser, UserError, run
from enhance.onnx_export import export
from models.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from utils.atomic import atomic_open


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = ArgumentParser(description="Export a network to an ONNX file.")
    add = parser.add_argument
    add(
        "--checkpoint_file",
        type=Path,
        metavar="CKPT",
        default=DEFAULT_CHECKPOINT,
        help="default: that of inference.py",
    )
    add("--output", type=Path, metavar="FILE", required=True, help="the .onnx file; an existing one is replaced")
    add("--stream", action="store_true", help="export the state between calls, for live enhancement")
    options = parser.parse_args(argv)
    try:
        content = export(*load_checkpoint(options.checkpoint_file), options.stream)
    except UserError as error:
        raise UserError(str(error), SOME_FAILED) from error
    try:
        with atomic_open(options.output) as file:
            file.write(content)
    except OSError as error:
        message = f"{options.output}: cannot be written: {error.strerror}; try another --output"
        raise UserError(message, SOME_FAILED) from error
    return DONE


if __name__ == "__main__":
    run(main)
