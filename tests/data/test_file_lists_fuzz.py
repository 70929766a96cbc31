"""Any bytes as a file list: utterances whose paths the system takes, or one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from cli import UserError
from data.file_lists import file_list_line, read_file_list
from tests.fixtures.fuzzing import CASES, assert_one_line, damaged, try_all
from tests.fixtures.recordings import files_below

_PIECES = (
    *("a", "b", "c.wav", "noisy/a.wav", ".", "..", "../a", "/", "/etc/passwd", ".wav", "a.", "~"),
    *("|", "|", "|", "\n", "\n", "\r", "\r\n", " ", "\t", "\0", "\ufeff", "\u2028", "\x1b[2J", "ü", "声", "x" * 5000),
)


def texts() -> st.SearchStrategy[bytes]:
    """Lists made of what lists are made of, in any order; any text; any bytes; and a good list damaged."""
    pieces = st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=30).map("".join)
    good = "".join(f"p{name}|clean/p{name}.wav|noisy/p{name}.wav\n" for name in range(5)).encode()
    return pieces.map(str.encode) | st.text().map(str.encode) | st.binary() | damaged([good])


@pytest.mark.parametrize("cases", CASES)
def test_any_bytes_are_utterances_or_refused(cases: int, tmp_path: Path) -> None:
    path, folder = tmp_path / "list.txt", tmp_path / "folder"
    folder.mkdir()
    for name in ("a.wav", "b.flac"):
        (folder / name).touch()
    before = files_below(tmp_path) | {"list.txt"}

    def check(case: tuple[bytes, bool, bool]) -> None:
        content, *given = case
        path.write_bytes(content)
        folders = [folder if chosen else None for chosen in given]
        try:
            utterances = read_file_list(path, *folders)
        except UserError as error:
            assert_one_line(error, path)
        else:
            assert utterances
            assert len({utterance.id for utterance in utterances}) == len(utterances)
            for utterance in utterances:
                assert "\0" not in f"{utterance.clean}{utterance.noisy}"  # the system would not take such a path
        assert files_below(tmp_path) == before

    try_all(cases, st.tuples(texts(), st.booleans(), st.booleans()), check)


@pytest.mark.parametrize("cases", CASES)
def test_what_may_stand_in_a_list_comes_back(cases: int, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    fields = st.text(min_size=1, max_size=20) | st.lists(st.sampled_from(_PIECES), max_size=4).map("".join)

    def check(case: tuple[str, str, str]) -> None:
        try:
            line = file_list_line(*case)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
            return
        path.write_text(line + "\n", encoding="utf-8", newline="")
        (utterance,) = read_file_list(path)
        assert (utterance.id, utterance.clean, utterance.noisy) == (case[0], Path(case[1]), Path(case[2]))

    try_all(cases, st.tuples(fields, fields, fields), check)
