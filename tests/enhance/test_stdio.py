"""A file through standard input and output: what messages call it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from data.audio import AudioError
from enhance.stdio import pipe_file


@pytest.mark.parametrize(
    ("part", "called"), [(0, "standard input: is not speech"), (1, "standard output: is not speech")]
)
def test_a_message_names_the_stream_and_not_the_file_that_stands_for_it(
    part: int, called: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*files: Path) -> None:
        raise AudioError(f"{files[part]}: is not speech")

    (tmp_path / "in").write_bytes(b"sound")
    with (tmp_path / "in").open() as source, (tmp_path / "out").open("w") as target:
        monkeypatch.setattr(sys, "stdin", source)
        monkeypatch.setattr(sys, "stdout", target)
        with pytest.raises(AudioError) as caught:
            pipe_file(refuse)
    assert str(caught.value) == called
    assert (tmp_path / "out").read_bytes() == b""
