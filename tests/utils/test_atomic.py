"""A file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.recordings import files_below
from utils.atomic import atomic_open, remove_leftovers, write_text_atomically


def test_text_is_written_in_utf_8_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "list.txt"
    write_text_atomically(path, "тест\n")
    assert path.read_bytes() == "тест\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), atomic_open(path) as stream:
        stream.write(b"half")
        assert path.read_text(encoding="utf-8") == "old"
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_left_half_written_goes_and_nothing_else(tmp_path: Path) -> None:
    name = ".0123456789abcdef.part"
    others = ["notes.part", ".notes.part", f"{name}.txt", name[1:], f"below/{name}"]
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with atomic_open(tmp_path / "list.txt"):
        (left,) = files_below(tmp_path) - set(others)
    (tmp_path / "list.txt").rename(tmp_path / left)  # as a process leaves it that is killed within the block
    remove_leftovers(tmp_path)
    assert files_below(tmp_path) == set(others)


def test_names_that_are_not_in_unicode_are_written_with_backslashes(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "list.txt", "é\udcff")
    assert (tmp_path / "list.txt").read_bytes() == b"\xc3\xa9\\udcff"
