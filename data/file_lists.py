"""Find audio files, pair clean and noisy ones by name, and read and write file lists.

A file list has one utterance per line: `id|clean path|noisy path`. The shorter forms `id|clean path` and `id` are
completed with folders given by the caller. Files are paired by name without extension, so that an enhanced
`p232_001.wav` matches the clean `p232_001.flac`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from cli import UserError
from utils.atomic import write_text_atomically

# fmt: off
AUDIO_SUFFIXES = frozenset([
    ".wav", ".wave", ".w64", ".rf64", ".flac", ".ogg", ".oga", ".opus", ".mp3",
    ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph", ".nist",
    # libsndfile cannot decode these: they are found in order to be reported.
    ".m4a", ".aac", ".wma", ".amr", ".3gp", ".mp4", ".mov", ".mkv", ".webm",
])
# fmt: on

Item = TypeVar("Item")


@dataclass(frozen=True)
class Utterance:
    """A recording: its clean file and its noisy (or enhanced) file."""

    id: str
    clean: Path
    noisy: Path


@dataclass(frozen=True)
class Pairing:
    """Files of two folders matched by name: the pairs, and the files of each folder that are not in the other."""

    pairs: list[Utterance]
    clean_only: list[Path]
    noisy_only: list[Path]


def find_audio(folder: Path) -> list[Path]:
    """Return all audio files below `folder`, by extension, sorted, without hidden files and folders.

    Links are followed, except those to a folder they are in. Raises `UserError` if the folder does not exist, cannot
    be read or has no audio file.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    try:
        files = list(_audio_below(folder, frozenset()))
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not files:
        raise UserError(f"{folder}: holds no audio files")
    return files


def _audio_below(folder: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Yield the audio files below a folder, sorted. `above` are the folders it is in, without links."""
    above |= {folder.resolve()}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.resolve() not in above:
                yield from _audio_below(path, above)
        elif path.suffix.lower() in AUDIO_SUFFIXES and (path.is_file() or not path.exists()):  # or a broken link
            yield path


def plan_outputs(source: Path, output_dir: Path) -> list[tuple[Path, Path]]:
    """Return `(input, output)` paths for a file, or for all audio files below a folder, whose tree is mirrored.

    Creates `output_dir`. Raises `UserError` if there are no input files, if the folder cannot be written, or if an
    output would overwrite an input.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if not source.is_file() and not source.is_dir():
        raise UserError(f"{source}: neither a file nor a folder; - reads from standard input")
    files, root = ([source], source.parent) if source.is_file() else (find_audio(source), source)
    resolved_output = output_dir.resolve()
    if root.resolve() in resolved_output.parents:  # skip the results of an earlier run
        files = [path for path in files if resolved_output not in path.resolve().parents]
    if not files:
        raise UserError(f"{source}: holds no audio files beside earlier results")
    outputs = [(path, output_dir / path.relative_to(root)) for path in files]
    if {path.resolve() for path in files} & {target.resolve() for _, target in outputs}:
        raise UserError(f"{output_dir}: results would replace their inputs; choose another output folder")
    make_output_dir(output_dir)
    return outputs


def make_output_dir(folder: Path) -> None:
    """Create a folder and check that files can be written into it; raises `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error


def evenly_spaced(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` evenly spaced items including the first and the last, or all items if there are not more."""
    indices = np.linspace(0, len(items) - 1, min(len(items), count))
    return [items[round(float(index))] for index in indices]


def audio_by_id(folder: Path) -> dict[str, Path]:
    """Return the audio files below `folder`, sorted, by id: the relative path without extension.

    Raises `UserError` if the folder does not exist, is empty, or has two files with the same id.
    """
    files: dict[str, Path] = {}
    for path in find_audio(folder):
        id_ = path.relative_to(folder).with_suffix("").as_posix()
        if id_ in files:
            raise UserError(f"{folder}: {files[id_].name} and {path.name} have the same name '{id_}'")
        files[id_] = path
    return files


def pair_by_id(clean: Mapping[str, Path], noisy: Mapping[str, Path]) -> Pairing:
    """Match clean and noisy files by id."""
    return Pairing(
        pairs=[Utterance(id_, clean[id_], noisy[id_]) for id_ in clean if id_ in noisy],
        clean_only=[path for id_, path in clean.items() if id_ not in noisy],
        noisy_only=[path for id_, path in noisy.items() if id_ not in clean],
    )


def pair_folders(clean_dir: Path, noisy_dir: Path) -> Pairing:
    """Match the files below two folders by their relative path without extension; raises as `audio_by_id`."""
    return pair_by_id(audio_by_id(clean_dir), audio_by_id(noisy_dir))


def require_pairs(clean_dir: Path, noisy_dir: Path) -> Pairing:
    """Match the files below two folders; raises `UserError` also if there is no pair."""
    pairing = pair_folders(clean_dir, noisy_dir)
    if not pairing.pairs:
        raise UserError(f"{noisy_dir}: no file has the name of one in {clean_dir}")
    return pairing


def file_list_line(*fields: str) -> str:
    """Return a line of a file list, without line end.

    Raises `UserError` for a field that `read_file_list` would not return unchanged: empty, with `|`, a line break, NUL
    or a byte order mark, with white space at its ends, or not encodable in UTF-8.
    """
    for field in fields:
        if any(mark in field for mark in "|\0\ufeff") or [field.strip()] != field.splitlines(keepends=True):
            raise UserError(f"{field!r}: cannot stand in a file list (no '|', no line break, no blank at an end)")
        try:
            field.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{field!r}: cannot stand in a file list (the name is not in Unicode)") from error
    return "|".join(fields)


def write_file_list(path: Path, rows: Iterable[Sequence[str]]) -> tuple[int, list[str]]:
    """Write a file list atomically. Return the number of lines, and a message for each row that was left out.

    A row is left out if `file_list_line` rejects it. Raises `UserError` if the file cannot be written.
    """
    lines: list[str] = []
    problems: list[str] = []
    for row in rows:
        try:
            lines.append(file_list_line(*row) + "\n")
        except UserError as error:
            problems.append(str(error))
    try:
        write_text_atomically(path, "".join(lines))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    return len(lines), problems


def read_file_list(path: Path, clean_dir: Path | None = None, noisy_dir: Path | None = None) -> list[Utterance]:
    """Read a file list. Files are looked up by id in the folders given here, else at the paths in the list.

    A folder has precedence over a path, so that the list of the noisy test set also serves for an enhanced one. Raises
    `UserError` if the list cannot be read or is empty, if a line is malformed, incomplete or repeats an id, and for
    unusable folders. Does not check that the audio files exist.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8") from error
    folders = [
        ("clean", clean_dir, audio_by_id(clean_dir) if clean_dir else {}),
        ("noisy", noisy_dir, audio_by_id(noisy_dir) if noisy_dir else {}),
    ]
    utterances: dict[str, Utterance] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        id_, *listed = fields = [field.strip() for field in line.split("|")]
        if len(fields) > 3 or not all(fields):
            raise UserError(f"{path}, line {number}: expected 'id|clean path|noisy path', found '{line}'")
        if id_ in utterances:
            raise UserError(f"{path}, line {number}: '{id_}' stands in the list twice")
        suffix = Path(id_).suffix
        stem = id_.removesuffix(suffix) if suffix.lower() in AUDIO_SUFFIXES else id_
        files: list[Path] = []
        for index, (kind, folder, files_by_id) in enumerate(folders):
            if folder:
                files.append(files_by_id.get(id_) or files_by_id.get(stem, folder / f"{stem}.wav"))
            elif index < len(listed):
                files.append(Path(listed[index]))
            else:
                raise UserError(
                    f"{path}, line {number}: names no {kind} file for '{id_}'; give the folder of {kind} files"
                )
        utterances[id_] = Utterance(id_, *files)
    if not utterances:
        raise UserError(f"{path}: holds no utterances")
    return list(utterances.values())
