"""make_file_list.py, run as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.file_lists import Utterance, read_file_list
from tests.fixtures.commands import run_script

DEFAULT = Path("VoiceBank+DEMAND/16k")
DEFAULT_FOLDERS = {
    "training.txt": ("clean_trainset_28spk_wav", "noisy_trainset_28spk_wav"),
    "test.txt": ("clean_testset_wav", "noisy_testset_wav"),
}


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_defaults_list_what_downsampling_writes(tmp_path: Path) -> None:
    for folders in DEFAULT_FOLDERS.values():
        for folder in folders:
            make_files(tmp_path / DEFAULT / folder, "p2.wav", "p1.wav", 'sub/it\'s "p3" тест.wav')
    done = run_script("make_file_list.py", cwd=tmp_path)
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
    assert run_script("make_file_list.py", cwd=tmp_path).returncode == 0
    assert (tmp_path / "test.txt").is_file()
    assert not (tmp_path / "training.txt").exists()


@pytest.mark.parametrize(("split", "name"), [("train", "training.txt"), ("test", "test.txt")])
def test_one_split_given_writes_one_list_where_it_is_told(tmp_path: Path, split: str, name: str) -> None:
    clean, noisy, output = tmp_path / "clean", tmp_path / "noisy", tmp_path / "new" / "lists"
    make_files(clean, "a.flac")
    make_files(noisy, "a.wav")
    options = (f"--{split}_clean_path", clean, f"--{split}_noisy_path", noisy, "--output_dir", output)
    done = run_script("make_file_list.py", *options, cwd=tmp_path)
    assert done.returncode == 0
    assert [path.name for path in output.iterdir()] == [name]
    assert read_file_list(output / name) == [Utterance("a", clean / "a.flac", noisy / "a.wav")]


def test_files_without_a_twin_are_named_and_the_pairs_listed(tmp_path: Path) -> None:
    make_files(tmp_path / "c", "both.wav", "only clean.wav")
    make_files(tmp_path / "n", "both.wav", "only noisy.wav")
    done = run_script("make_file_list.py", "--test_clean_path", "c", "--test_noisy_path", "n", cwd=tmp_path)
    assert done.returncode == 1
    named = ["c/only clean.wav: no file of this name in n", "n/only noisy.wav: no file of this name in c"]
    assert done.stderr.splitlines() == named
    assert (tmp_path / "test.txt").read_text(encoding="utf-8") == "both|c/both.wav|n/both.wav\n"


def test_a_name_that_a_list_cannot_hold_is_named_and_left_out(tmp_path: Path) -> None:
    for folder in ("c", "n"):
        make_files(tmp_path / folder, "good.wav", "bar|bar.wav", "two\nlines.wav")
    done = run_script("make_file_list.py", "--test_clean_path", "c", "--test_noisy_path", "n", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert "'bar|bar'" in done.stderr
    assert "'two\\nlines'" in done.stderr
    assert [pair.id for pair in read_file_list(tmp_path / "test.txt")] == ["good"]


def test_a_folder_that_a_list_cannot_hold_is_refused(tmp_path: Path) -> None:
    for folder in ("c|c", "n"):
        make_files(tmp_path / folder, "a.wav")
    done = run_script("make_file_list.py", "--test_clean_path", "c|c", "--test_noisy_path", "n", cwd=tmp_path)
    assert done.returncode == 2
    assert "'c|c'" in done.stderr
    assert not (tmp_path / "test.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "VoiceBank+DEMAND/16k/clean_trainset_28spk_wav: no such folder"),
        (["--test_clean_path", "c", "--test_noisy_path", "missing"], "missing: no such folder"),
        (["--test_clean_path", "c", "--test_noisy_path", "empty"], "empty: holds no audio files"),
        (["--test_clean_path", "c", "--test_noisy_path", "other"], "other: no file has a twin in c"),
        (["--test_clean_path", "c"], "--test_clean_path and --test_noisy_path belong together"),
        (
            ["--test_clean_path", "c", "--test_noisy_path", "c", "--output_dir", "c/a.wav"],
            "c/a.wav: cannot be written",
        ),
    ],
)
def test_a_wrong_command_line_gets_one_clear_line_and_no_list(tmp_path: Path, arguments: list[str], words: str) -> None:
    make_files(tmp_path, "c/a.wav", "empty/notes.txt", "other/b.wav")
    done = run_script("make_file_list.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("test.txt")) == []
