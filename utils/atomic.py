"""Write files atomically: to a hidden temporary file that is flushed to disk and renamed.

A crash or a full disk leaves the earlier file, never a shorter one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` when the block ends without an error; parent folders are created.

    After an error the temporary file is removed and an earlier file at `path` remains. Raises `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{token_hex(8)}.part")
    try:
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file in UTF-8, with backslash escapes for file names that are not Unicode; raises `OSError`."""
    with atomic_open(path) as stream:
        stream.write(text.encode(errors="backslashreplace"))


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes. No other process may write to `folder`. Raises `OSError`."""
    for path in folder.glob(".*.part"):
        if re.fullmatch(r"\.[0-9a-f]{16}\.part", path.name):
            path.unlink(missing_ok=True)
