"""VoiceBank+DEMAND from parquet files, as downsampling.py --hub reads them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import soundfile

import downsampling
from data.audio import read_audio
from tests.fixtures.commands import Result, call_main
from tests.fixtures.recordings import files_below

HTTPError = pytest.importorskip("huggingface_hub.errors").HTTPError
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

FOLDERS = {
    "train": ("clean_trainset_28spk_wav", "noisy_trainset_28spk_wav"),
    "test": ("clean_testset_wav", "noisy_testset_wav"),
}


def audio(seed: int, samples: int = 1600, rate: int = 16_000, container: str = "WAV") -> dict[str, Any]:
    """Return a recording as the hub stores it."""
    stream = io.BytesIO()
    values = np.random.default_rng(seed).integers(-(2**14), 2**14, samples).astype(np.int16)
    soundfile.write(stream, values, rate, format=container)
    return {"bytes": stream.getvalue(), "path": f"{seed}.wav"}


def row(name: object, seed: int = 0, **changes: object) -> dict[str, Any]:
    return {"id": name, "clean": audio(seed), "noisy": audio(seed + 1), **changes}


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write(tmp_path / "hub/data/train-00000-of-00002.parquet", row("p226_001"), row("p226_002", 2))
    write(tmp_path / "hub/data/train-00001-of-00002.parquet", row("p227_001", 4, noisy=audio(5, container="FLAC")))
    write(tmp_path / "hub/data/test-00000-of-00001.parquet", row("p232_001", 6))
    return tmp_path / "hub"


def convert(source: object, tmp_path: Path, *options: str) -> Result:
    return call_main(downsampling.main, "--hub", source, "--output_dir", tmp_path / "16k", *options)


def test_files_have_the_samples_of_the_rows(source: Path, tmp_path: Path) -> None:
    done = convert(source, tmp_path)
    assert (done.returncode, done.stdout) == (
        0,
        f"{tmp_path}/16k: 4 pairs written, 0 already there, 0 failed, 0 files unpaired\n",
    )
    names = {"train": ("p226_001", "p226_002", "p227_001"), "test": ("p232_001",)}
    expected = {f"{folder}/{name}.wav" for split, ids in names.items() for name in ids for folder in FOLDERS[split]}
    assert files_below(tmp_path / "16k") == expected
    samples, file_format = read_audio(tmp_path / "16k/noisy_trainset_28spk_wav/p227_001.wav")
    assert (file_format.rate, file_format.subtype) == (16_000, "PCM_16")
    values = np.random.default_rng(5).integers(-(2**14), 2**14, 1600)
    assert np.array_equal(samples[:, 0] * 2**15, values)


def test_unusable_rows_are_named_and_the_others_converted(tmp_path: Path) -> None:
    cut = audio(1)
    bad = [
        row("cut", noisy={"bytes": cut["bytes"][:-100], "path": None}),
        row("length", noisy=audio(1, 1599)),
        row("no_audio", noisy=None),
        row("../outside"),
        row("low", clean=audio(0, rate=8000)),
    ]
    path = tmp_path / "hub/test.parquet"
    write(path, *bad, row("good"))
    done = convert(tmp_path / "hub", tmp_path, "--quiet")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    words = ("cut short", "length: 1600 and 1599", "no audio", "file name", "8000 Hz")
    assert len(lines) == len(words)
    for line, bad_row, word in zip(lines, bad, words, strict=True):
        assert line.startswith(f"{path}, id {bad_row['id']}: ") and word in line, line
        assert "/tmp/tmp" not in line
    assert files_below(tmp_path) == {"hub/test.parquet"} | {f"16k/{name}/good.wav" for name in FOLDERS["test"]}


def test_unusable_parquet_files(source: Path, tmp_path: Path) -> None:
    path = source / "data/test-00000-of-00001.parquet"
    whole = path.read_bytes()
    write(path, {"id": "a", "clean": audio(0)})
    for content, word in ((path.read_bytes(), "no column noisy"), (whole[:1000], "not a complete parquet file")):
        path.write_bytes(content)
        done = convert(source, tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"{path}: {word}")
    assert not (tmp_path / "16k").exists()


def test_damaged_rows_do_not_end_the_run(source: Path, tmp_path: Path) -> None:
    path = source / "data/train-00000-of-00002.parquet"
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)
    done = convert(source, tmp_path, "--quiet")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{path}: ") and len(done.stderr.splitlines()) == 1
    assert len(files_below(tmp_path / "16k")) == 4


def test_without_network_or_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for name, word in (("nobody/nothing", "downloaded"), ("a b//", "downloaded"), (tmp_path, "train*.parquet")):
        done = convert(name, tmp_path)
        assert done.returncode == 2
        assert str(name) in done.stderr and word in done.stderr and len(done.stderr.splitlines()) == 1


def test_lost_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: object, **__: object) -> NoReturn:
        raise HTTPError("connection lost")

    monkeypatch.setattr("huggingface_hub.snapshot_download", lose)
    done = convert("some/set", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "some/set" in done.stderr and "connection lost" in done.stderr
