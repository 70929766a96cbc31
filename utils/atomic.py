"""Write files that appear under their final name only when they are whole.

A list or report that was cut off by a full disk or a crash looks like a short one: so everything is written
to a hidden temporary file beside its place, flushed to the disk and renamed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.part")


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that becomes `path` at a clean end of the block; folders are made as needed.

    At any error the temporary file goes and whatever stood at `path` before stays. Raises `OSError`.
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


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written in a folder that no other writes to; raises `OSError`."""
    for path in folder.glob(".*.part"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8; raises `OSError`.

    Names of files that are not in Unicode stand in it with backslashes.
    """
    with atomic_open(path) as stream:
        stream.write(text.encode(errors="backslashreplace"))
