"""Write a network as an ONNX file, for onnxruntime and devices without PyTorch.

    python -m scripts.export_onnx [--checkpoint_file CKPT] --output network.onnx [--stream]

Inputs are `mag` and `pha`, the compressed magnitude and the phase of noisy speech, float32 `[batch, F, frames]` with
any batch and frames from 1 up; outputs `enhanced_mag` and `enhanced_pha`. With --stream, for causal networks, the
state between calls is input and output as well: `x` and `next_x` for each of its tensors, zeros at the beginning.
The whole configuration, with the STFT, stands in the metadata as JSON under `config`.

The file is compared with PyTorch before it appears, which takes from seconds (Lite-RTSE) to a minute or two (CNUNet).
Needs pip install -e '.[onnx]'. Exit codes: 0 written; 1 not written, with the reason on standard error; 2 the command
line is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cli import DONE, SOME_FAILED, ArgumentParser, UserError, run
from enhance.onnx_export import export
from models.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from utils.atomic import atomic_open


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    parser = ArgumentParser(description="Write a network as an ONNX file.")
    add = parser.add_argument
    add("--checkpoint_file", type=Path, metavar="CKPT", default=DEFAULT_CHECKPOINT, help="default: this project's own")
    add("--output", type=Path, metavar="FILE", required=True, help="the .onnx file; one that is there is replaced")
    add("--stream", action="store_true", help="with the state between calls, to enhance live")
    options = parser.parse_args(argv)
    try:
        network, config = load_checkpoint(options.checkpoint_file)
        content = export(network, config, options.stream)
    except UserError as error:
        print(error, file=sys.stderr)
        return SOME_FAILED
    try:
        with atomic_open(options.output) as file:
            file.write(content)
    except OSError as error:
        print(f"{options.output}: cannot be written: {error.strerror}; try another --output", file=sys.stderr)
        return SOME_FAILED
    return DONE


if __name__ == "__main__":
    run(main)
