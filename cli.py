"""What all commands of this project share: exit codes, one-line errors, and a clean end at Ctrl-C."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

DONE, SOME_FAILED, WRONG_COMMAND_LINE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes of all commands; the last two are those of programs that Ctrl-C or SIGTERM has ended."""


class ArgumentParser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line on standard error, and exits with code 2."""

    def error(self, message: str) -> NoReturn:
        """End the program."""
        self.exit(WRONG_COMMAND_LINE, f"{self.prog}: {message} (--help shows the options)\n")

    def check_device(self, device: str) -> None:
        """End the program where PyTorch cannot compute on `device`."""
        import torch  # late: commands without a network do not wait for it

        try:
            torch.zeros(1, device=device).cpu()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            self.error(f"--device {device}: cannot be used ({str(error).splitlines()[0]})")


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code; Ctrl-C, SIGTERM and a closed pipe end it without a traceback.

    Each ends the blocks that are open, so that nothing is left half written.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        code = main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # whose reader has gone, and needs no message
            print(f"{error.filename or 'standard output'}: {error.strerror}", file=sys.stderr)
        # What standard output still holds cannot be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = SOME_FAILED
    sys.exit(code)
