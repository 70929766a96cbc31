"""Conventions shared by all commands: exit codes, one-line errors, argument parser, clean termination."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

DONE, SOME_FAILED, USAGE_ERROR, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes of all commands. 130 and 143 are those of a program ended by Ctrl-C or SIGTERM."""

Main = Callable[[Sequence[str] | None], int]


class UserError(Exception):
    """An expected failure, such as an unusable option, file or configuration.

    The message names the option or file, the problem, and the remedy. `run` prints it on standard error and exits
    with `exit_code`.
    """

    def __init__(self, message: str, exit_code: int = USAGE_ERROR) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ArgumentParser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that reports an invalid command line as a `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raise `UserError`."""
        raise UserError(f"{self.prog}: {message} (--help shows the options)")

    def check_device(self, device: str) -> None:
        """Raise `UserError` if PyTorch cannot compute on `device`; with torchrun, on this process's own GPU."""
        import torch  # late: slow to import, and most commands need no network

        if device.partition(":")[0] not in ("cpu", "cuda"):
            self.error(f"--device {device}: must be cpu or cuda")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            if device.startswith("cuda:"):
                self.error(f"--device {device}: with torchrun give cuda, for one GPU per process")
            if device == "cuda":
                device = f"cuda:{os.environ['LOCAL_RANK']}"
        try:
            torch.zeros(1, device=device).cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            self.error(f"--device {device}: cannot be used ({str(error).splitlines()[0]})")


def positive(text: str) -> int:
    """Parse a command-line argument as an integer of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return int(text)


def call(main: Main, argv: Sequence[str] | None = None) -> int:
    """Run `main(argv)` and return its exit code; print a `UserError` on standard error."""
    try:
        if "" in (sys.argv[1:] if argv is None else argv):
            raise UserError("an argument is empty; is a variable of the shell not set?")
        return main(argv)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def run(main: Main) -> NoReturn:
    """Run a command on `sys.argv` and exit with its code.

    SIGTERM raises `SystemExit`, so that `with` blocks are closed and no temporary file remains. A failed write to
    standard output (full disk, closed pipe) exits with code 1; a closed pipe prints no message.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        code = call(main)
        if sys.stdout:  # None if standard output is closed
            sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"{error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        # The interpreter would flush the remaining buffer at exit and fail again.
        if sys.stdout:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = SOME_FAILED
    sys.exit(code)
