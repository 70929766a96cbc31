"""Atomic writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.recordings import files_below
from utils.atomic import atomic_open, remove_leftovers, write_text_atomically


def test_text_is_written_in_utf_8_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "list.txt"
    write_text_atomically(path, "тест\nnot Unicode: \udcff\n")
    assert path.read_bytes() == "тест\nnot Unicode: \\udcff\n".encode()
    assert files_below(tmp_path) == {"new/list.txt"}


def test_an_error_keeps_the_old_file_and_removes_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), atomic_open(path) as stream:
        stream.write(b"half")
        assert path.read_text(encoding="utf-8") == "old"
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old"
    assert files_below(tmp_path) == {"list.txt"}


def test_remove_leftovers_removes_temporary_files_only(tmp_path: Path) -> None:
    name = ".0123456789abcdef.part"
    others = ["notes.part", ".notes.part", f"{name}.txt", name[1:], f"below/{name}"]
    for other in others:
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).touch()
    with atomic_open(tmp_path / "list.txt"):
        (temporary,) = files_below(tmp_path) - set(others)
    (tmp_path / "list.txt").rename(tmp_path / temporary)  # as left by a process that was killed within the block
    remove_leftovers(tmp_path)
    assert files_below(tmp_path) == set(others)
