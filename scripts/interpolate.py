"""Interpolate the weights of two checkpoints: `python -m scripts.interpolate A B --share 0.5 --output C`.

A fine-tuned network between its start (A) and its end (B) often keeps most of what it could do before and most of what
it has learnt (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903). The configuration is
that of B. Exit codes: 0 written, 1 not written, 2 the command line or a checkpoint is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cli import DONE, SOME_FAILED, ArgumentParser, UserError, run
from models.checkpoint import load_checkpoint, save_checkpoint


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Raises `UserError`."""
    parser = ArgumentParser(prog="python -m scripts.interpolate", description="Interpolate two checkpoints.")
    parser.add_argument("start", type=Path, metavar="A", help="checkpoint")
    parser.add_argument("end", type=Path, metavar="B", help="checkpoint of the same network")
    parser.add_argument("--share", type=float, default=0.5, help="weight of B, 0 to 1; default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, metavar="C", help="checkpoint to write")
    options = parser.parse_args(argv)
    if not 0 <= options.share <= 1:
        parser.error(f"--share: must be from 0 to 1, not {options.share}")
    start, start_config = load_checkpoint(options.start)
    end, config = load_checkpoint(options.end)
    if (start_config.model, start_config.stft) != (config.model, config.stft):
        raise UserError(f"{options.end}: another network or STFT than {options.start}")
    for weight, other in zip(end.state_dict().values(), start.state_dict().values(), strict=True):
        if weight.is_floating_point():  # statistics of batch norms too, but not their counters
            weight.copy_(torch.lerp(other, weight, options.share))
    try:
        save_checkpoint(options.output, end, config)
    except UserError as error:
        raise UserError(str(error), SOME_FAILED) from error
    return DONE


if __name__ == "__main__":
    run(main)
