"""VoiceBank+DEMAND from the Hugging Face hub: parquet files with the columns `id`, `clean` and `noisy`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cli import UserError
from data.audio import AudioError
from data.file_lists import Utterance
from data.voicebank import convert_pair

COLUMNS = ("id", "clean", "noisy")


def find_parquet(name: str) -> dict[str, list[Path]]:
    """Return the parquet files of the splits "train" and "test" of a data set, and check their columns.

    name: a folder, or a data set of the hub, which is downloaded to the cache of huggingface_hub; an interrupted
        download is continued. File names begin with the name of the split.

    Raises `UserError`.
    """
    if not (find_spec("huggingface_hub") and find_spec("pyarrow")):
        raise UserError("--hub: huggingface_hub and pyarrow are not installed: pip install -e '.[hub]'")
    from huggingface_hub import snapshot_download  # late: optional packages
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage] (of its HTTP library)
    from pyarrow import parquet

    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, repo_type="dataset", allow_patterns="*.parquet"))
        except (HTTPError, OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"--hub {name}: no such folder, and it cannot be downloaded ({reason})") from error
    splits = {split: sorted(folder.rglob(f"{split}*.parquet")) for split in ("train", "test")}
    if not any(splits.values()):
        raise UserError(f"--hub {name}: no files train*.parquet or test*.parquet")
    for path in splits["train"] + splits["test"]:
        try:
            names = parquet.read_schema(path).names
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a complete parquet file; remove it and try again") from error
        if missing := [column for column in COLUMNS if column not in names]:
            raise UserError(f"{path}: no column {', '.join(missing)}")
    return splits


def count_rows(paths: list[Path]) -> int:
    """Return the number of pairs in parquet files."""
    from pyarrow import parquet

    return sum(parquet.read_metadata(path).num_rows for path in paths)


def convert_rows(paths: list[Path], targets: list[Path]) -> Iterator[tuple[str, bool | Exception]]:
    """Write the pairs of parquet files to the folders `targets`, clean and noisy, as `convert_pair` does.

    Yields a name for messages and the result of `convert_pair`, or its exception.
    """
    from pyarrow import parquet

    for path in paths:
        try:
            for batch in parquet.ParquetFile(path).iter_batches(batch_size=16, columns=list(COLUMNS)):
                for row in batch.to_pylist():
                    yield f"{path}, id {row['id']}", convert_row(row, targets)
        except (OSError, ValueError) as error:
            yield str(path), AudioError(" ".join(str(error).split()))


def convert_row(row: dict[str, Any], targets: list[Path]) -> bool | AudioError:
    """Write a pair to the folders `targets`; return False if it is there already, or why it cannot be converted."""
    if Path(str(row["id"])).name != row["id"]:
        return AudioError("its id is not a file name")
    if not all(isinstance(row[column], dict) and isinstance(row[column].get("bytes"), bytes) for column in COLUMNS[1:]):
        return AudioError("has no audio")
    with TemporaryDirectory() as folder:
        source = Utterance(row["id"], *(Path(folder, column) for column in COLUMNS[1:]))
        source.clean.write_bytes(row["clean"]["bytes"])
        source.noisy.write_bytes(row["noisy"]["bytes"])
        try:
            return convert_pair(
                (source, Utterance(row["id"], *(each / f"{row['id']}.wav" for each in targets))), "soxr"
            )
        except AudioError as error:
            return AudioError(str(error).replace(f"{folder}/", ""))
