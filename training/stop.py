"""SIGTERM and Ctrl-C: remembered, and obeyed when the step under way is done."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from types import FrameType

from cli import INTERRUPTED

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a program that SIGTERM has ended."""


@dataclass
class Stop:
    """Remembers the first signal as the exit code that it asks for; a second Ctrl-C ends at once."""

    code: int = field(default=0)

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.code:
            raise KeyboardInterrupt
        self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED
