"""File lists in their three forms, folders paired by name, and errors of both."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cli import UserError
from data.file_lists import (
    Utterance,
    audio_by_id,
    evenly_spaced,
    file_list_line,
    find_audio,
    pair_folders,
    read_file_list,
)
from tests.fixtures.commands import error_line
from tests.fixtures.recordings import make_files


def write_list(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_lines_with_both_paths_need_no_folders(tmp_path: Path) -> None:
    path = write_list(tmp_path, "a|clean/a.wav|noisy/a.wav\n\n b | clean/b.wav | noisy/b.flac \n")
    assert read_file_list(path) == [
        Utterance("a", Path("clean/a.wav"), Path("noisy/a.wav")),
        Utterance("b", Path("clean/b.wav"), Path("noisy/b.flac")),
    ]


@pytest.mark.parametrize("line", ["a|clean/a.wav", "a|clean/a.wav|elsewhere/a.wav"])
def test_a_folder_completes_a_line_and_has_precedence(tmp_path: Path, line: str) -> None:
    make_files(tmp_path / "noisy", "a.flac")
    assert read_file_list(write_list(tmp_path, line), noisy_dir=tmp_path / "noisy") == [
        Utterance("a", Path("clean/a.wav"), tmp_path / "noisy" / "a.flac")
    ]


def test_an_id_matches_files_of_any_extension(tmp_path: Path) -> None:
    files = ["a.wav", "speaker one/a 1.flac", "a.take2.wav", "a.wav.flac", "b.flac", "LOUD.WAV", "тест 'q' 声.ogg"]
    make_files(tmp_path, *files)
    path = write_list(tmp_path, "a\nspeaker one/a 1\na.take2\na.wav\nb.flac\nLOUD\nтест 'q' 声\ngone\n")
    found = [utterance.clean for utterance in read_file_list(path, tmp_path, tmp_path)]
    assert found == [tmp_path / file for file in (*files, "gone.wav")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a|c|n\nb|c|n|more\n", ["line 2", "expected", "b|c|n|more"]),
        ("a|c|n\n\nb||n\n", ["line 3", "b||n"]),
        ("a|c|n\na|d|m\n", ["line 2", "'a'", "twice"]),
        ("a|c.wav\n", ["line 1", "noisy", "'a'"]),
        ("a\n", ["line 1", "clean", "'a'"]),
        ("\n \n", ["no utterances"]),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write_list(tmp_path, text)
    message = error_line(lambda: read_file_list(path), start=str(path))
    assert [word for word in words if word not in message] == []


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UserError, match=r"list\.txt: not a text file in UTF-8"):
        read_file_list(path)
    for unreadable in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(UserError, match=f"{unreadable}: cannot be read"):
            read_file_list(unreadable)


def test_a_list_may_be_a_pipe_and_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    os.mkfifo(path)
    with ThreadPoolExecutor() as pool:
        pool.submit(path.write_bytes, "\ufeffa|c.wav|n.wav\r\nb|c.wav|n.wav".encode())
        assert [utterance.id for utterance in read_file_list(path)] == ["a", "b"]


@pytest.mark.parametrize("field", ["a|b", "a\nb", "a\u2028b", " a", "a ", "", "a\n", "\0", "\ufeffa", "a\udcff"])
def test_fields_that_a_list_cannot_hold_are_rejected(field: str) -> None:
    with pytest.raises(UserError, match="cannot stand in a file list"):
        file_list_line("id", field)


def test_folders_are_paired_by_relative_path_without_extension(tmp_path: Path) -> None:
    clean, noisy = tmp_path / "clean", tmp_path / "noisy"
    make_files(clean, "b.wav", "a.flac", "x/a.wav", "alone.wav", ".hidden.wav", ".cache/a.wav", "notes.txt")
    make_files(noisy, "a.wav", "b.WAV", "x/a.ogg", "y/alone.wav")
    pairing = pair_folders(clean, noisy)
    assert pairing.pairs == [
        Utterance("a", clean / "a.flac", noisy / "a.wav"),
        Utterance("b", clean / "b.wav", noisy / "b.WAV"),
        Utterance("x/a", clean / "x/a.wav", noisy / "x/a.ogg"),
    ]
    assert pairing.clean_only == [clean / "alone.wav"]
    assert pairing.noisy_only == [noisy / "y/alone.wav"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    make_files(tmp_path, "elsewhere/x/c.wav", "in/a.wav", "in/b/b.wav")
    for link, target in (("in/circle", "in"), ("in/b/circle", "in"), ("in/more", "elsewhere"), ("in/x/y", "in/b")):
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to(tmp_path / target)
    found = [path.relative_to(tmp_path / "in").as_posix() for path in find_audio(tmp_path / "in")]
    assert found == ["a.wav", "b/b.wav", "more/x/c.wav", "x/y/b.wav"]


def test_files_that_cannot_be_decoded_are_found_to_be_reported(tmp_path: Path) -> None:
    for name in ("a.wav", "b.m4a", "c.MP4", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "d.wav").symlink_to(tmp_path / "gone.wav")
    assert [path.name for path in find_audio(tmp_path)] == ["a.wav", "b.m4a", "c.MP4", "d.wav"]


def test_folders_that_cannot_be_searched_are_named(tmp_path: Path) -> None:
    make_files(tmp_path, "file.txt", "empty/notes.txt", "twice/a.wav", "twice/a.flac")
    for name, words in (("missing", "no such"), ("file.txt", "not a folder"), ("empty", "no audio")):
        with pytest.raises(UserError, match=f"{name}: .*{words}"):
            find_audio(tmp_path / name)
    with pytest.raises(UserError, match=r"a\.flac and a\.wav have the same name 'a'"):
        audio_by_id(tmp_path / "twice")


@pytest.mark.parametrize(("count", "chosen"), [(1, "a"), (2, "ae"), (4, "abde"), (9, "abcde")])
def test_evenly_spaced(count: int, chosen: str) -> None:
    assert "".join(evenly_spaced("abcde", count)) == chosen
    assert evenly_spaced("", count) == []
