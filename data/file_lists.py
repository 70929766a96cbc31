"""Which audio files belong together: folders searched, clean and noisy paired by name, file lists read.

A file list holds one utterance a line: `id|clean path|noisy path`. The shorter forms `id|clean path` and `id`
are completed from the folders given beside the list. Names pair whatever their extension, so that an enhanced
`p232_001.wav` meets its clean `p232_001.flac`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from cli import UserError

# fmt: off
AUDIO_SUFFIXES = frozenset([
    ".wav", ".wave", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3",
    ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph", ".nist",
])
# fmt: on

LARGEST_LIST = 2**28
"""Bytes: a million utterances and more. Beyond it is no list, but a recording or a device without an end."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Utterance:
    """One recording: its clean version and the other one (noisy or enhanced)."""

    id: str
    clean: Path
    noisy: Path


@dataclass(frozen=True)
class Pairing:
    """Two folders matched by name: the pairs, and the files of either without a twin."""

    pairs: list[Utterance]
    clean_only: list[Path]
    noisy_only: list[Path]


def find_audio(folder: Path) -> list[Path]:
    """All audio files under `folder`, by extension, sorted; hidden ones and hidden folders are left out.

    Raises `UserError` where the folder is missing or holds none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file() and not _is_hidden(path.relative_to(folder))
    )
    if not files:
        raise UserError(f"{folder}: holds no audio files")
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def plan_outputs(source: Path, output_dir: Path) -> list[tuple[Path, Path]]:
    """The audio files under `source`, or itself, and where each result goes: the same tree in `output_dir`.

    Makes that folder. Raises `UserError` where there are no files, the folder cannot be written, or a
    result would replace an input.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    files, root = ([source], source.parent) if source.is_file() else (find_audio(source), source)
    inside = output_dir.resolve()
    if root.resolve() in inside.parents:  # results of an earlier run are not inputs
        files = [path for path in files if inside not in path.resolve().parents]
    if not files:
        raise UserError(f"{source}: holds no audio files beside earlier results")
    outputs = [(path, output_dir / path.relative_to(root)) for path in files]
    if {path.resolve() for path in files} & {target.resolve() for _, target in outputs}:
        raise UserError(f"{output_dir}: results would replace their inputs; choose another output folder")
    make_output_dir(output_dir)
    return outputs


def make_output_dir(folder: Path) -> None:
    """Make the folder; raises `UserError` where nothing can be written into it, once, before every file would."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items in their order, the first and the last among them; all where there are not more."""
    places = np.linspace(0, len(items) - 1, min(len(items), count))
    return [items[round(float(place))] for place in places]


def pair_folders(clean_dir: Path, noisy_dir: Path) -> Pairing:
    """Match the files under two folders by their relative path without extension.

    Raises `UserError` where a folder is missing or empty, or has two files of one name.
    """
    return pair_by_id(audio_by_id(clean_dir), audio_by_id(noisy_dir))


def require_pairs(clean_dir: Path, noisy_dir: Path) -> Pairing:
    """As `pair_folders`; raises `UserError` also where no file has a twin."""
    pairing = pair_folders(clean_dir, noisy_dir)
    if not pairing.pairs:
        raise UserError(f"{noisy_dir}: no file has a twin in {clean_dir}")
    return pairing


def pair_by_id(clean: Mapping[str, Path], noisy: Mapping[str, Path]) -> Pairing:
    """Match clean and noisy files that are known by their ids."""
    return Pairing(
        pairs=[Utterance(name, clean[name], noisy[name]) for name in clean if name in noisy],
        clean_only=[path for name, path in clean.items() if name not in noisy],
        noisy_only=[path for name, path in noisy.items() if name not in clean],
    )


def audio_by_id(folder: Path) -> dict[str, Path]:
    """The audio files under `folder`, sorted, by their id: the relative path without extension.

    Raises `UserError` where the folder is missing or empty, or has two files of one id.
    """
    found: dict[str, Path] = {}
    for path in find_audio(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{folder}: {found[name].name} and {path.name} have the same name '{name}'")
        found[name] = path
    return found


def file_list_line(*fields: str) -> str:
    """One line of a file list, without its line end, that `read_file_list` gives back as these fields.

    Raises `UserError` for a field that the format cannot hold: with `|`, with a line break, with blanks
    at an end, empty, with a character that no path has or that marks the start of a file, or not in Unicode.
    """
    for field in fields:
        if any(mark in field for mark in "|\0\ufeff") or [field.strip()] != field.splitlines(keepends=True):
            raise UserError(f"{field!r}: cannot stand in a file list (no '|', no line break, no blank at an end)")
        try:
            field.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{field!r}: cannot stand in a file list (the name is not in Unicode)") from error
    return "|".join(fields)


def read_file_list(path: Path, clean_dir: Path | None = None, noisy_dir: Path | None = None) -> list[Utterance]:
    """Read a file list; in a folder given here files are looked up by their ids, whatever path the list names.

    So the list of the noisy test set also serves for the enhanced one. Raises `UserError` for a missing,
    undecodable, endless or empty list, for a line that cannot be completed or names an id twice, and for a folder
    that cannot be used. Whether the audio files exist is for their reader to say.
    """
    try:
        with path.open("rb") as stream:  # may be a pipe
            content = stream.read(LARGEST_LIST + 1)
        if len(content) > LARGEST_LIST:
            raise UserError(f"{path}: not a file list: larger than {LARGEST_LIST} bytes")
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8") from error
    if "\0" in text:  # which no path can hold
        raise UserError(f"{path}: not a text file: it holds a NUL")
    clean, noisy = _Folder("clean", clean_dir), _Folder("noisy", noisy_dir)
    utterances: dict[str, Utterance] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        fields = [field.strip() for field in line.split("|")]
        if len(fields) > 3 or not all(fields):
            raise UserError(f"{where}: expected 'id|clean path|noisy path', found '{line}'")
        name, listed = fields[0], dict(enumerate(fields))
        if name in utterances:
            raise UserError(f"{where}: '{name}' stands in the list twice")
        utterances[name] = Utterance(
            id=name,
            clean=clean.find(name, listed.get(1), where),
            noisy=noisy.find(name, listed.get(2), where),
        )
    if not utterances:
        raise UserError(f"{path}: holds no utterances")
    return list(utterances.values())


class _Folder:
    """Where a list's clean or noisy files are looked up; without a folder the list's own paths count."""

    def __init__(self, kind: str, folder: Path | None) -> None:
        self._kind = kind
        self._folder = folder
        self._files = audio_by_id(folder) if folder else {}

    def find(self, name: str, listed: str | None, where: str) -> Path:
        """The file of the utterance `name`, for which the list gives the path `listed`; raises `UserError`."""
        if self._folder:
            stem = name.removesuffix(suffix) if (suffix := Path(name).suffix).lower() in AUDIO_SUFFIXES else name
            return self._files.get(stem, self._folder / f"{stem}.wav")
        if listed:
            return Path(listed)
        raise UserError(f"{where}: names no {self._kind} file for '{name}'; give the folder of {self._kind} files")
