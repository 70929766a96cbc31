"""create_test_list.py, run as a user runs it."""

from __future__ import annotations

from pathlib import Path

from data.file_lists import Utterance, read_file_list
from tests.fixtures.commands import run_script


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_list_finds_both_versions_whatever_their_extension(tmp_path: Path) -> None:
    ids = ["a.take2", "b", 'sub folder/it\'s "c" тест']
    enhanced, clean = tmp_path / "enhanced", tmp_path / "clean"
    make_files(enhanced, *(f"{name}.wav" for name in ids), "notes.txt")
    make_files(clean, *(f"{name}.flac" for name in ids))
    done = run_script("create_test_list.py", "--test_dir_to_scan", "enhanced", cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "test_final.txt: 3 files\n")
    assert (tmp_path / "test_final.txt").read_text(encoding="utf-8").splitlines() == ids
    assert read_file_list(tmp_path / "test_final.txt", clean, enhanced) == [
        Utterance(name, clean / f"{name}.flac", enhanced / f"{name}.wav") for name in ids
    ]


def test_the_list_goes_where_it_is_told_and_replaces_the_old_one(tmp_path: Path) -> None:
    make_files(tmp_path / "enhanced", "a.wav")
    target = tmp_path / "lists" / "mine.txt"
    make_files(target.parent, target.name)
    options = ("--test_dir_to_scan", "enhanced", "--output_file", "lists/mine.txt")
    assert run_script("create_test_list.py", *options, cwd=tmp_path).returncode == 0
    assert target.read_text(encoding="utf-8") == "a\n"
    assert list(target.parent.iterdir()) == [target]


def test_a_name_that_a_list_cannot_hold_is_named_and_left_out(tmp_path: Path) -> None:
    make_files(tmp_path / "enhanced", "a.wav", "b|c.wav")
    done = run_script("create_test_list.py", "--test_dir_to_scan", "enhanced", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "'b|c'" in done.stderr
    assert (tmp_path / "test_final.txt").read_text(encoding="utf-8") == "a\n"


def test_a_folder_that_cannot_be_listed_gets_one_line_and_no_list(tmp_path: Path) -> None:
    make_files(tmp_path, "empty/notes.txt", "twice/a.wav", "twice/a.flac")
    for folder, words in (
        ("missing", "missing: no such folder"),
        ("empty", "empty: holds no audio files"),
        ("twice", "have the same name 'a'"),
    ):
        done = run_script("create_test_list.py", "--test_dir_to_scan", folder, cwd=tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
        assert not (tmp_path / "test_final.txt").exists()


def test_a_list_that_cannot_be_written_gets_one_line(tmp_path: Path) -> None:
    make_files(tmp_path, "enhanced/a.wav")
    options = ("--test_dir_to_scan", "enhanced", "--output_file", "enhanced/a.wav/list.txt")
    done = run_script("create_test_list.py", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("enhanced/a.wav/list.txt: cannot be written")
    assert len(done.stderr.splitlines()) == 1
