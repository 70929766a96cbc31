"""Graceful stop on SIGTERM and Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from cli import INTERRUPTED, TERMINATED


class GracefulStop:
    """Within the `with` block, record SIGTERM and SIGINT in `code`, the exit code to leave with, 0 if there was none.

    The loop checks `code` after each step. A second Ctrl-C raises `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self.code = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        self._handlers = {number: signal.signal(number, self._record) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _record(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.code:
            raise KeyboardInterrupt
        self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED
