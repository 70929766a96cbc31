"""A file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.atomic import replacing, write_text_atomically


def test_text_is_written_in_utf_8_into_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "list.txt"
    write_text_atomically(path, "тест\n")
    assert path.read_bytes() == "тест\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError), replacing(path) as stream:
        stream.write(b"half")
        assert path.read_text(encoding="utf-8") == "old"
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_are_not_in_unicode_are_written_with_backslashes(tmp_path: Path) -> None:
    write_text_atomically(tmp_path / "list.txt", "é\udcff")
    assert (tmp_path / "list.txt").read_bytes() == b"\xc3\xa9\\udcff"
