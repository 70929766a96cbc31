"""The lists of packages, which stand in three files for three kinds of user, agree."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from tests.fixtures.commands import ROOT


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    return match[0].lower().replace("_", "-")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def imported_by(sources: Iterable[Path]) -> set[str]:
    """The top-level packages that any of them imports as it loads."""
    texts = (path.read_text(encoding="utf-8") for path in sources)
    return {match[1] for text in texts for match in re.finditer(r"^(?:import|from) (\w+)", text, re.MULTILINE)}


def test_environment_yml_lists_what_pyproject_lists() -> None:
    content = project()
    extras = content["optional-dependencies"]
    expected = set(content["dependencies"])
    own_use = ("dev", "alternatives", "dnsmos")  # testing, comparing with other packages, judging without clean files
    expected.update(requirement for extra, listed in extras.items() if extra not in own_use for requirement in listed)
    lines = (ROOT / "environment.yml").read_text(encoding="utf-8").split("- pip:")[1].splitlines()
    listed = {line.strip().removeprefix("- ") for line in lines if line.strip()} - {"--editable ."}
    assert listed == expected
    assert "name: imse" in (ROOT / "environment.yml").read_text(encoding="utf-8")


def test_constraints_pin_every_direct_dependency() -> None:
    content = project()
    wanted = {name_of(item) for item in [*content["dependencies"], *content["optional-dependencies"]["dev"]]}
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    assert wanted <= {name_of(name) for name in pinned}


def test_only_declared_packages_are_imported() -> None:
    content = project()
    # The package that draws is imported late, by those who ask for pictures.
    declared = {name_of(item) for item in [*content["dependencies"], *content["optional-dependencies"]["report"]]}
    sources = list(ROOT.glob("*.py"))
    own = {"data", "listening", "metrics", "models", "plain", "robustness", "training"}
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]) == own
    for folder in own:
        sources += (ROOT / folder).rglob("*.py")
    foreign = imported_by(sources) - own - {"cli", "config"} - sys.stdlib_module_names
    assert foreign <= declared
    assert {"torch", "soundfile", "soxr", "pesq", "pystoi"} <= foreign


def test_no_script_needs_the_tests_and_nothing_but_scripts_the_plain_transcriptions() -> None:
    sources = [path for path in ROOT.glob("[!.]*/**/*.py") if path.relative_to(ROOT).parts[0] not in ("tests", "build")]
    assert "tests" not in imported_by([*sources, *ROOT.glob("*.py")])
    others = [path for path in sources if path.relative_to(ROOT).parts[0] not in ("plain", "scripts")]
    assert "plain" not in imported_by([*others, *ROOT.glob("*.py")])


def test_the_console_of_ci_is_the_test_script() -> None:
    assert Path(ROOT, ".ci", "run").read_text().rstrip().endswith('scripts/test.sh"')


def test_no_page_has_a_gap_left_to_fill() -> None:
    pages = [page for folder in (".", "docs", "samples", "checkpoints") for page in (ROOT / folder).glob("*.md")]
    assert len(pages) >= 5
    assert [page.name for page in pages if re.search(r"@[A-Z]+@|TODO|FIXME", page.read_text(encoding="utf-8"))] == []
