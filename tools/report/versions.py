"""The versions of recordings on a listening page, matched by file name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Role = Literal["noisy", "enhanced", "clean"]


@dataclass(frozen=True)
class Version:
    """One version of all recordings: its display name, its role, and its files by recording id."""

    name: str
    role: Role
    files: Mapping[str, Path]


def common_ids(versions: Sequence[Version]) -> tuple[list[str], list[str]]:
    """Return the ids that all versions have, in order, and a message for each file of any other id."""
    ids = [name for name in versions[0].files if all(name in version.files for version in versions)]
    kept = set(ids)
    problems: list[str] = []
    for version in versions:
        for name, path in version.files.items():
            if name not in kept:
                missing = " and ".join(f"'{other.name}'" for other in versions if name not in other.files)
                problems.append(f"{path}: left out: has no partner in {missing}")
    return ids, problems
