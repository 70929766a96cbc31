"""Any JSON as a configuration, on any bases and with any settings: one that can be used, or a line for each problem."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from cli import UserError
from config import load_config, parse_config
from models.checkpoint import CONFIGS
from tests.fixtures.fuzzing import CASES, damaged, try_all

_ODD = ("", "a\nb", "a\u2028b", "\0", "\ud800", "\x1b[2J", "ü", "x" * 300, "imse", "muse", "base", "channels")
_NUMBERS = (0, -1, 1, 8, 10**9, 2**63, 10**400, -(10**400), 0.5, 1e-300, 1e300, float("nan"), float("inf"))
_BASES = ("a.json", "b.json", "c.json", "./../configs/b.json", "none.json", "", ".", "..", "/", "x" * 300, *_ODD)
FILES = ("a.json", "b.json", "c.json")

odd_texts = st.sampled_from(_ODD) | st.text(max_size=8)
plain_values = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(_NUMBERS) | odd_texts
values = st.recursive(
    plain_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3),
    max_leaves=6,
)


def _brackets(depth: int) -> str:
    return "[" * depth + "]" * depth


# Python's readers and writers of JSON give up somewhere below a thousand levels, each at another.
json_texts = st.one_of(
    values.map(json.dumps),
    (st.integers(1, 1100) | st.just(100_000)).map(_brackets),
    st.sampled_from([4300, 5000]).map("1".__mul__),
    st.sampled_from(["1e999", '{"a\\nb": 1, "a\\nb": 2}']),
)
assignments = st.builds(
    "{}.{}={}".format,
    st.sampled_from(["optim", "model", "train", "mix", "speed", ""]),
    st.sampled_from(["learning_rate", "name", "seed", "x"]) | odd_texts,
    json_texts,
)


def edited(wholes: list[dict[str, Any]]) -> st.SearchStrategy[str]:
    """JSON of a good configuration with some settings changed, taken out or put in, and perhaps a base."""

    @st.composite
    def edited_file(draw: st.DrawFn) -> str:
        content = copy.deepcopy(wholes[draw(st.integers(0, len(wholes) - 1))])
        texts: dict[str, str] = {}
        for index in range(draw(st.integers(0, 5))):
            section = draw(st.sampled_from([*content, *_ODD]))
            keys = content.get(section)
            place, name = content, section
            if isinstance(keys, dict) and draw(st.integers(0, 4)) > 0:
                place, name = keys, draw(st.sampled_from([*keys, *_ODD]))
            if draw(st.booleans()):
                place[name] = f"@{index}"
                texts[f'"@{index}"'] = draw(json_texts)
            else:
                place.pop(name, None)
        if draw(st.booleans()):
            content["base"] = draw(st.sampled_from(_BASES))
        text = json.dumps(content)
        for mark, value in texts.items():
            text = text.replace(mark, value)
        return text

    return edited_file()


def files(wholes: list[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    texts = edited(wholes) | json_texts | st.text()
    good = [json.dumps(content).encode() for content in wholes]
    return texts.map(lambda text: text.encode(errors="surrogatepass")) | damaged(good) | st.binary()


@pytest.fixture(scope="module")
def wholes() -> list[dict[str, Any]]:
    """Configurations of every network, and deltas."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CONFIGS.rglob("*.json"))]


@pytest.mark.parametrize("cases", CASES)
def test_any_files_and_settings_are_a_configuration_or_refused(
    cases: int, wholes: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()

    def check(case: tuple[tuple[bytes, ...], list[str]]) -> None:
        contents, settings = case
        for name, content in zip(FILES, contents, strict=True):
            (folder / name).write_bytes(content)
        try:
            config = load_config(folder / FILES[0], settings)
        except UserError as error:
            lines = str(error).splitlines()
            assert len(lines) == len(error.problems) > 0
            assert all(line.startswith(("/", "--set ")) for line in lines)
        else:
            assert parse_config(json.loads(json.dumps(config.to_dict())), "again") == config

    content = files(wholes)
    try_all(
        cases, st.tuples(st.tuples(content, content, content), st.lists(assignments | odd_texts, max_size=3)), check
    )
