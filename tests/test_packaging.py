"""Dependencies (pyproject.toml, environment.yml, constraints.txt, imports) and the layers of the code."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.fixtures.commands import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REQUIRED = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]

LAYERS = {
    "cli": set(),
    "config": {"cli"},
    "utils": {"cli"},
    "data": {"utils"},
    "metrics": {"data", "utils"},
    "models": {"utils"},
    "enhance": {"models", "data", "metrics", "utils"},
    "training": {"enhance", "models", "data", "metrics", "utils"},
}
"""The packages that each one may import, besides `cli` and `config`. Entry points and tools may import all of them."""


def names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {match[0].lower().replace("_", "-") for match in found if match}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Return the top-level packages that a module imports, or only those that it imports when it is loaded."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def modules_of(name: str) -> list[Path]:
    return [ROOT / f"{name}.py"] if (ROOT / f"{name}.py").exists() else sorted((ROOT / name).rglob("*.py"))


def test_environment_yml_has_the_dependencies_and_the_extras_for_users() -> None:
    extras = [requirement for extra in ("train", "report", "onnx", "torchaudio") for requirement in EXTRAS[extra]]
    lines = (ROOT / "environment.yml").read_text(encoding="utf-8").split("- pip:")[1].splitlines()
    assert {line.strip().removeprefix("- ") for line in lines if line.strip()} == {*REQUIRED, *extras}


def test_constraints_pin_what_setup_installs() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    assert names([*REQUIRED, *EXTRAS["dev"], *EXTRAS["train"], *EXTRAS["report"], *EXTRAS["onnx"]]) <= names(pins)


def test_dev_includes_the_extras_that_tests_need() -> None:
    assert {*EXTRAS["train"], *EXTRAS["report"], *EXTRAS["onnx"]} <= set(EXTRAS["dev"])


def test_modules_of_the_core_import_only_required_packages_when_loaded() -> None:
    paths = [
        path for name in ("cli", "config", "utils", "data", "metrics", "models", "enhance") for path in modules_of(name)
    ]
    foreign = {name.replace("_", "-") for path in paths for name in imports(path, top_level_only=True)}
    foreign -= {*LAYERS, *sys.stdlib_module_names, "--future--"}
    assert foreign - {"matplotlib", "librosa", "onnx"} <= names(REQUIRED)
    assert {"torch", "soundfile", "soxr", "pesq", "pystoi"} <= foreign


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_only_lower_layers(layer: str) -> None:
    local = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    for path in modules_of(layer):
        higher = imports(path) & local - LAYERS[layer] - {layer, "cli", "config"}
        assert not higher, f"{path.relative_to(ROOT)} imports {', '.join(higher)}"


def test_only_tests_import_tests() -> None:
    folders = ("utils", "data", "metrics", "models", "enhance", "training", "tools", "scripts")
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in modules_of(folder))]
    assert [path for path in paths if "tests" in imports(path) and "benchmark" not in path.parts] == []
