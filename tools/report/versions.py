"""Which versions of the recordings a page shows: noisy, enhanced by one system or several, clean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["noisy", "enhanced", "clean"]


@dataclass(frozen=True)
class Version:
    """One version of all recordings: what the page calls it, what it is, and its files by the recordings' ids."""

    name: str
    role: Role
    files: Mapping[str, Path]


def common_ids(versions: Iterable[Version]) -> tuple[list[str], list[str]]:
    """The ids of the recordings that all versions have, in order, and a line for each file of any other."""
    versions = list(versions)
    ids = [name for name in versions[0].files if all(name in version.files for version in versions)]
    kept = set(ids)
    problems: list[str] = []
    for version in versions:
        for name, path in version.files.items():
            if name not in kept:
                lacking = " and ".join(f"'{other.name}'" for other in versions if name not in other.files)
                problems.append(f"{path}: left out: has no partner in {lacking}")
    return ids, problems
