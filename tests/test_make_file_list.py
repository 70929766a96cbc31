"""make_file_list.py and create_test_list.py."""

from __future__ import annotations

from pathlib import Path

import pytest

import create_test_list
import make_file_list
from cli import Main
from data.file_lists import Utterance, read_file_list
from tests.fixtures.commands import ROOT, Result, call_main, run_python
from tests.fixtures.recordings import make_files

DEFAULT = Path("VoiceBank+DEMAND/16k")
DEFAULT_FOLDERS = {
    "training.txt": ("clean_trainset_28spk_wav", "noisy_trainset_28spk_wav"),
    "test.txt": ("clean_testset_wav", "noisy_testset_wav"),
}


def make_list(folder: Path, *arguments: object, command: Main = make_file_list.main) -> Result:
    return call_main(command, *arguments, cwd=folder)


def test_defaults_list_the_output_of_downsampling(tmp_path: Path) -> None:
    for folders in DEFAULT_FOLDERS.values():
        for folder in folders:
            make_files(tmp_path / DEFAULT / folder, "p2.wav", "p1.wav", 'sub/it\'s "p3" тест.wav')
    done = run_python(ROOT / "make_file_list.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "training.txt: 3 pairs\ntest.txt: 3 pairs\n"
    for name, (clean, noisy) in DEFAULT_FOLDERS.items():
        ids = ["p1", "p2", 'sub/it\'s "p3" тест']
        lines = [f"{i}|{DEFAULT / clean / i}.wav|{DEFAULT / noisy / i}.wav" for i in ids]
        assert (tmp_path / name).read_text(encoding="utf-8").splitlines() == lines
        assert [pair.id for pair in read_file_list(tmp_path / name)] == ids


def test_without_the_default_training_set_only_the_test_list_is_written(tmp_path: Path) -> None:
    for folder in DEFAULT_FOLDERS["test.txt"]:
        make_files(tmp_path / DEFAULT / folder, "a.wav")
    assert make_list(tmp_path).returncode == 0
    assert (tmp_path / "test.txt").is_file()
    assert not (tmp_path / "training.txt").exists()


@pytest.mark.parametrize(("split", "name"), [("train", "training.txt"), ("test", "test.txt")])
def test_the_folders_of_one_split_give_one_list(tmp_path: Path, split: str, name: str) -> None:
    make_files(tmp_path, "clean/a.flac", "noisy/a.wav")
    folders = f"--{split}_clean_path", "clean", f"--{split}_noisy_path", "noisy"
    assert make_list(tmp_path, *folders, "--output_dir", "new/lists").returncode == 0
    assert [path.name for path in (tmp_path / "new/lists").iterdir()] == [name]
    assert read_file_list(tmp_path / "new/lists" / name) == [Utterance("a", Path("clean/a.flac"), Path("noisy/a.wav"))]


def test_unpaired_files_and_names_that_a_list_cannot_hold_are_named(tmp_path: Path) -> None:
    for folder in ("c", "n"):
        make_files(tmp_path / folder, "good.wav", "bar|bar.wav", "two\nlines.wav", f"only {folder}.wav")
    done = make_list(tmp_path, "--test_clean_path", "c", "--test_noisy_path", "n")
    assert done.returncode == 1
    for words in ("c/only c.wav: no file", "n/only n.wav: no file", "'bar|bar'", "'two\\nlines'"):
        assert words in done.stderr
    assert len(done.stderr.splitlines()) == 4
    assert (tmp_path / "test.txt").read_text(encoding="utf-8") == "good|c/good.wav|n/good.wav\n"
    done = make_list(tmp_path, "--test_dir_to_scan", "c", command=create_test_list.main)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert (tmp_path / "test_final.txt").read_text(encoding="utf-8") == "good\nonly c\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "VoiceBank+DEMAND/16k/clean_trainset_28spk_wav: no such folder"),
        (["--test_clean_path", "c", "--test_noisy_path", "missing"], "missing: no such folder"),
        (["--test_clean_path", "c", "--test_noisy_path", "other"], "other: no file has the name of one in c"),
        (["--test_clean_path", "c|c", "--test_noisy_path", "c"], "'c|c'"),
        (["--test_clean_path", "c"], "--test_clean_path and --test_noisy_path"),
        (["--test_clean_path", "c", "--test_noisy_path", "c", "--output_dir", "c/a.wav"], "c/a.wav/test.txt: cannot"),
    ],
)
def test_wrong_command_lines_give_one_line_and_no_list(tmp_path: Path, arguments: list[str], words: str) -> None:
    make_files(tmp_path, "c/a.wav", "c|c/a.wav", "empty/notes.txt", "other/b.wav")
    done = make_list(tmp_path, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.rglob("test.txt")) == []


def test_the_test_list_finds_both_versions_of_any_extension(tmp_path: Path) -> None:
    ids = ["a.take2", "b", 'sub folder/it\'s "c" тест']
    enhanced, clean = tmp_path / "enhanced", tmp_path / "clean"
    make_files(enhanced, *(f"{id_}.wav" for id_ in ids), "notes.txt")
    make_files(clean, *(f"{id_}.flac" for id_ in ids))
    done = run_python(ROOT / "create_test_list.py", "--test_dir_to_scan", "enhanced", cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "test_final.txt: 3 files\n")
    assert (tmp_path / "test_final.txt").read_text(encoding="utf-8").splitlines() == ids
    assert read_file_list(tmp_path / "test_final.txt", clean, enhanced) == [
        Utterance(id_, clean / f"{id_}.flac", enhanced / f"{id_}.wav") for id_ in ids
    ]


@pytest.mark.parametrize(
    ("folder", "output", "words"),
    [
        ("missing", "list.txt", "missing: no such folder"),
        ("twice", "list.txt", "same name 'a'"),
        ("enhanced", "enhanced/a.wav/list.txt", "enhanced/a.wav/list.txt: cannot be written"),
    ],
)
def test_a_test_list_that_cannot_be_made(tmp_path: Path, folder: str, output: str, words: str) -> None:
    make_files(tmp_path, "empty/notes.txt", "twice/a.wav", "twice/a.flac", "enhanced/a.wav")
    done = make_list(tmp_path, "--test_dir_to_scan", folder, "--output_file", output, command=create_test_list.main)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not (tmp_path / "list.txt").exists()
