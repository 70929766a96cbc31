"""What the documents say to type exists: scripts, options, files and headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.commands import ROOT

DOCUMENTS = [
    ROOT / "README.md",
    *sorted(ROOT.glob("C*.md")),
    *sorted(ROOT.glob("*/README.md")),
    *ROOT.glob("docs/*.md"),
]
HANDED_ON = {
    "scripts/ablate.py": "train.py",
    "scripts/train_default.sh": "train.py",
    "scripts/benchmark.py": "scripts/benchmark_training.py",
}
"""Scripts that take another's options too, or whose options another uses."""


def commands(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The script, from the root, and the arguments of each command in a document's blocks and between backticks."""
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL).replace("\n", " "))
    for line in "\n".join([*blocks, *inline]).replace("\\\n", " ").splitlines():
        for program, rest in re.findall(r"(?:^|[ /])(python|bash|torchrun) (?!-c )([^|<>#;&]+)", line):
            words = shlex.split(rest.replace("…", " ").replace("[", " ").replace("]", " "))
            if words and words[0] == "-m":
                yield f"{words[1].replace('.', '/')}.py", words[2:]
            elif place := next((word for word in words if word.endswith((".py", ".sh"))), None):
                assert program == "torchrun" or place == words[0], line
                yield place, words[words.index(place) + 1 :]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_names_a_script_and_options_that_it_has(path: Path) -> None:
    for script, arguments in commands(path):
        assert (ROOT / script).is_file(), script
        source = (ROOT / script).read_text(encoding="utf-8")
        if script in HANDED_ON:
            source += (ROOT / HANDED_ON[script]).read_text(encoding="utf-8")
        for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
            assert option in ("--", "--help") or f'"{option}"' in source, (option, script)
        for config in (word for word in arguments if re.fullmatch(r"configs/[\w/]+\.json", word)):
            assert (ROOT / config).is_file(), config


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        other = path.parent / name if name else path
        assert other.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_documents_have_commands() -> None:
    scripts = {script for path in DOCUMENTS for script, _ in commands(path)}
    assert {"inference.py", "train.py", "cal_metrics.py", "scripts/demo.sh", "scripts/ablate.py"} <= scripts
    assert len(scripts) > 15
