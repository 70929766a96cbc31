"""`inference.py` with what it cannot use: one line for each file, folder, option or checkpoint, nothing half done."""

from __future__ import annotations

import io
import os
import pickle
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from torch import nn

import inference
from config import Config
from enhance.enhancer import Enhancer
from enhance.files import enhance_files
from models import build
from models.checkpoint import save_checkpoint
from models.stft import Spectra
from tests.fixtures.commands import ROOT, run_script
from tests.fixtures.recordings import NOISY, QUANTISED, RATE, files_below, load, save
from tests.fixtures.signals import speech_like, with_noise

BAD_FILES = {
    "in/text.wav": "not an audio file that can be decoded",
    "in/empty.wav": "the file is empty",
    "in/header.wav": "cut short within the WAV header",
    "in/data.wav": "cut short: 1500 of 5000 samples a channel are there",
    "in/no_samples.wav": "holds no samples",
    "in/cut.flac": "broken or cut short",
    "in/nan.wav": "holds NaN or infinite samples (the first at sample 200)",
    "in/infinite.wav": "holds NaN or infinite samples (the first at sample 200)",
    "in/loud.wav": "holds overlarge samples (the first at sample 200)",
}
BAD_CHECKPOINTS = {
    "text": "not a checkpoint, or cut short",
    "empty": "not a checkpoint, or cut short",
    "cut.safetensors": "a safetensors file, but damaged or cut short",
    "cut_header.safetensors": "a safetensors file, but damaged or cut short",
    "cut_zip": "not a checkpoint, or cut short",
    "archive": "not a checkpoint, or cut short",
    "foreign": "holds another network's tensors",
    "no_generator": "a torch file without a 'generator' state dict",
    "pickle": "not a checkpoint, or cut short; nothing in it was executed",
    "zip_with_code": "not a checkpoint, or cut short; nothing in it was executed",
    "no_config.safetensors": "holds weights without a configuration",
    "bad_config.safetensors": "its configuration",
    "names.safetensors": "another network's weights",
    "shapes.safetensors": "has shape",
    "nan.safetensors": "'dense_encoder.widen.0.weight' holds NaN or infinite weights",
}


class NotANumber(nn.Module):
    """A network that has failed."""

    def forward(self, spectra: Spectra) -> Spectra:
        return spectra._replace(mag=spectra.mag * torch.nan)


def problems_of(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on standard error, each a plain message."""
    assert "Traceback" not in result.stderr
    assert "Warning" not in result.stderr
    return result.stderr.splitlines()


class TooLarge(nn.Module):
    """Needs more memory than there is."""

    def forward(self, _: Spectra) -> Spectra:
        raise torch.OutOfMemoryError("needs 100 GB")


@pytest.mark.parametrize(
    ("content", "output", "code", "words"),
    [
        (b"", "pipe", 1, "standard input: the file is empty\n"),
        (b"no sound at all", "pipe", 1, "standard input: not an audio file that can be decoded"),
        (None, "full", 1, "standard input or output: No space left on device\n"),
        (None, "closed", 1, ""),
    ],
)
def test_pipes_that_fail(
    tmp_path: Path, small_checkpoint: Path, content: bytes | None, output: str, code: int, words: str
) -> None:
    if content is None:
        stream = io.BytesIO()
        soundfile.write(stream, np.tile(QUANTISED, 3), RATE, format="WAV")
        content = stream.getvalue()
    (tmp_path / "in").write_bytes(content)
    script = [sys.executable, str(ROOT / "inference.py"), "--input_noisy_wavs_dir", "-"]
    reading, writing = os.pipe()
    if output == "closed":
        os.close(reading)
    with (tmp_path / "in").open("rb") as source, Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [*script, "--checkpoint_file", str(small_checkpoint)],
            stdin=source,
            stdout=full if output == "full" else writing,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            check=False,
        )
    os.close(writing)
    assert result.returncode == code
    assert result.stderr.startswith(words) if words else not result.stderr
    assert len(result.stderr.splitlines()) == bool(words)


def test_every_bad_file_is_named_and_the_others_are_done(tmp_path: Path, small_checkpoint: Path) -> None:
    folder = tmp_path / "in"
    save(folder / "good.wav", NOISY[:5000])
    save(folder / "last.wav", NOISY[:5000])
    whole = (folder / "good.wav").read_bytes()
    save(folder / "cut.flac", NOISY, container="FLAC")
    damaged = NOISY[:300].copy()
    contents = {
        "text.wav": b"Dear diary,\n",
        "empty.wav": b"",
        "header.wav": whole[:30],
        "data.wav": whole[:3044],
        "no_samples.wav": whole[:4] + b"\x24\0\0\0" + whole[8:40] + bytes(4),
        "cut.flac": (folder / "cut.flac").read_bytes()[:20_000],
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    for name, value in (("nan.wav", np.nan), ("infinite.wav", np.inf), ("loud.wav", 1e30)):
        damaged[200] = value
        soundfile.write(folder / name, damaged, RATE, subtype="FLOAT")
    (folder / "folder.wav").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/nan.wav").write_bytes(b"of an earlier run")

    arguments = ["--input_noisy_wavs_dir", "in", "--output_dir", "out", "--checkpoint_file", small_checkpoint]
    result = run_script("inference.py", *arguments, "--quiet", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    lines = dict(line.split(": ", 1) for line in problems_of(result))
    assert set(lines) == set(BAD_FILES)
    for name, words in BAD_FILES.items():
        assert lines[name].startswith(words)
    assert files_below(tmp_path / "out") == {"good.wav", "last.wav", "nan.wav"}
    assert len(load(tmp_path / "out/last.wav")) == 5000
    assert (tmp_path / "out/nan.wav").read_bytes() == b"of an earlier run"


def test_scores_and_what_cannot_be_scored(tmp_path: Path, small_checkpoint: Path) -> None:
    clean, noisy = speech_like(1.5), with_noise(speech_like(1.5), 10)
    for name in ("a/pair", "b/pair", "length", "rate", "no_noisy", "broken"):
        save(tmp_path / f"clean/{name}.flac", clean, container="FLAC")
    save(tmp_path / "noisy/a/pair.wav", noisy)
    save(tmp_path / "noisy/b/pair.wav", noisy)
    save(tmp_path / "noisy/b/pair.flac", noisy, container="FLAC")
    save(tmp_path / "noisy/length.wav", noisy[:-2000])
    save(tmp_path / "noisy/rate.wav", noisy, 8000)
    save(tmp_path / "noisy/no_clean.wav", noisy)
    (tmp_path / "noisy/broken.wav").write_text("no sound")
    arguments = ["--input_noisy_wavs_dir", "noisy", "--output_dir", "out", "--input_clean_wavs_dir", "clean"]
    result = run_script("inference.py", *arguments, "--checkpoint_file", small_checkpoint, "--quiet", cwd=tmp_path)
    assert result.returncode == 1
    # A file that could not be enhanced counts as failed in the table too.
    assert result.stdout.startswith("5 files, 3 failed")
    assert files_below(tmp_path / "out") == files_below(tmp_path / "noisy") - {"broken.wav"}
    lines = problems_of(result)
    assert len(lines) == 6
    for words in (
        "noisy/broken.wav: not an audio file",
        "clean/no_noisy.flac: has no noisy version",
        "out/no_clean.wav: has no clean version to score with",
        "length: the lengths differ: clean 24000, other 22000 samples",
        "rate: the rates differ: clean 16000 Hz, other 8000 Hz",
        "out/b/pair.wav: not scored: out/b/pair.flac has the same name 'b/pair'",
    ):
        assert any(line.startswith(words) for line in lines), (words, result.stderr)
    # The two pairs that can be scored.
    assert [line.split()[-1] for line in result.stdout.splitlines()[2:]] == ["2"] * 8


def test_a_result_that_cannot_be_scored_is_a_failure_where_all_are_enhanced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], small_checkpoint: Path
) -> None:
    for name in ("a", "b"):
        save(tmp_path / f"clean/{name}.wav", speech_like(1))
        save(tmp_path / f"noisy/{name}.wav", with_noise(speech_like(1), 10))
    monkeypatch.chdir(tmp_path)
    arguments = ["--input_noisy_wavs_dir=noisy", "--output_dir=out", "--input_clean_wavs_dir=clean", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["inference.py", *arguments, f"--checkpoint_file={small_checkpoint}"])
    assert (inference.main(), capfd.readouterr().err) == (0, "")
    (tmp_path / "clean/b.wav").unlink()
    assert inference.main() == 1
    assert capfd.readouterr().err == "out/b.wav: has no clean version to score with\n"


def run_main(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and standard error of the command in this process, for cases too many to start each anew."""
    monkeypatch.setattr(sys, "argv", ["inference.py", *map(str, arguments), "--quiet"])
    try:
        code = inference.main()
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    captured = capfd.readouterr()
    assert captured.out == ""
    return code, captured.err


@pytest.mark.parametrize(
    ("source", "output", "words"),
    [
        ("none", "out", "none: no such file or folder"),
        ("none.wav", "out", "none.wav: no such file or folder"),
        ("empty", "out", "empty: holds no audio files"),
        ("in", "in", "in: results would replace their inputs; choose another output folder"),
        ("in/a.wav", "in", "in: results would replace their inputs; choose another output folder"),
        ("in/sub/in", "in/sub", "in/sub: results would replace their inputs; choose another output folder"),
        ("in", "in/a.wav", "in/a.wav: cannot be written: File exists"),
        ("in", "in/a.wav/out", "in/a.wav/out: cannot be written: Not a directory"),
        ("in", "/proc/out", "/proc/out: cannot be written: No such file or directory"),
    ],
)
def test_folders_that_cannot_be_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    small_checkpoint: Path,
    source: str,
    output: str,
    words: str,
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("in/a.wav", "in/sub/in/a.wav", "in/sub/in/in/a.wav"):
        save(tmp_path / name, NOISY[:100])
    monkeypatch.chdir(tmp_path)
    before = files_below(tmp_path)
    arguments = ["--input_noisy_wavs_dir", source, "--output_dir", output]
    code, errors = run_main(monkeypatch, capfd, *arguments, "--checkpoint_file", small_checkpoint)
    assert (code, errors) == (2, f"{words}\n")
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: --input_noisy_wavs_dir"),
        (["--input_noisy_wavs_dir", "in"], "--output_dir is needed"),
        (["--input_noisy_wavs_dir", "-", "--input_clean_wavs_dir", "in"], "not with standard input"),
        (["--input_noisy_wavs_dir", "-", "--device", "gpu"], "--device gpu: cannot be used"),
        (["--input_noisy_wavs_dir", "-", "--protocol", "none"], "invalid choice: 'none'"),
        (["--input_noisy_wavs_dir", "-", "--checkpoint_file", "none"], "none: the checkpoint cannot be read"),
        (["--input_noisy_wavs_dir", "-", "--checkpoint_file", "none.onnx"], "none.onnx: the network cannot be read"),
        (["--input_noisy_wavs_dir", "-", "--resume"], "--resume: not with standard input"),
        (["--input_noisy_wavs_dir", "-", "--batch_size", "0"], "--batch_size, --num_threads: must be 1 or more"),
        (["--input_noisy_wavs_dir", "-", "--num_threads", "0"], "--batch_size, --num_threads: must be 1 or more"),
        (["--input_noisy_wavs_dir", "-", "--compile", "--protocol", "whole"], "--compile: not with --protocol whole"),
        (["--input_noisy_wavs_dir", "-", "--backend", "onnxruntime", "--bf16"], "--backend onnxruntime: computes on"),
        (
            ["--input_noisy_wavs_dir", "-", "--backend", "torch", "--checkpoint_file", "a.onnx"],
            "not with an .onnx file",
        ),
    ],
)
def test_wrong_command_lines(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, errors = run_main(monkeypatch, capfd, *arguments)
    assert code == 2
    assert words in errors
    assert len(errors.splitlines()) == 1


def test_standard_input_is_for_one_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for arguments in (["--input_noisy_wavs_dir", "-"], ["--stream"]):
        code, errors = run_main(monkeypatch, capfd, *arguments)
        assert code == 2
        assert errors.startswith("inference.py: standard input is for one process, not for torchrun")


def test_results_may_lie_within_or_above_the_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    small_checkpoint: Path,
) -> None:
    save(tmp_path / "in/sub/a.wav", NOISY[:100])
    monkeypatch.chdir(tmp_path)
    checkpoint = ["--checkpoint_file", small_checkpoint]
    # Twice: the results of the first time are no inputs of the second.
    for _ in range(2):
        within = ["--input_noisy_wavs_dir", "in", "--output_dir", "in/out"]
        assert run_main(monkeypatch, capfd, *within, *checkpoint) == (0, "")
        assert files_below(tmp_path) == {"in/sub/a.wav", "in/out/sub/a.wav"}
    above = ["--input_noisy_wavs_dir", "in/sub/a.wav", "--output_dir", "."]
    assert run_main(monkeypatch, capfd, *above, *checkpoint) == (0, "")
    assert files_below(tmp_path) == {"in/sub/a.wav", "in/out/sub/a.wav", "a.wav"}


def test_a_full_disk_fails_its_file_only(tmp_path: Path, identity: Enhancer) -> None:
    save(tmp_path / "in/a.wav", np.tile(NOISY, 2))
    save(tmp_path / "in/b.wav", NOISY[:100])
    jobs = [(tmp_path / "in" / name, tmp_path / "out" / name) for name in ("a.wav", "b.wav")]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
    try:
        failures = enhance_files(jobs, identity, "overlap")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    reason = f"{tmp_path}/out/a.wav: cannot be written as WAV PCM_16 (File too large)"
    assert failures == {tmp_path / "out/a.wav": reason}
    assert files_below(tmp_path / "out") == {"b.wav"}


def test_a_network_that_fails_is_no_result(tmp_path: Path, config: Config) -> None:
    save(tmp_path / "in.wav", NOISY[:100])
    jobs = [(tmp_path / "in.wav", tmp_path / "out/in.wav")]
    for network, words in (
        (
            NotANumber(),
            f"{tmp_path}/out/in.wav: not written: the result holds NaN or infinite samples",
        ),
        (TooLarge(), f"{tmp_path}/in.wav: too long for --protocol whole (needs 100 GB); use overlap"),
    ):
        assert enhance_files(jobs, Enhancer(network, config), "whole") == {tmp_path / "out/in.wav": words}
        assert files_below(tmp_path) == {"in.wav"}


class Code:
    """Unpickled, it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def bad_checkpoints(folder: Path, config: Config, small: Path) -> None:
    """Write those of `BAD_CHECKPOINTS`."""
    network = build(config)
    weights = network.state_dict()
    metadata = safetensors.safe_open(small, "pt").metadata()
    (folder / "text").write_text("These are not weights.\n", encoding="utf-8")
    (folder / "empty").touch()
    (folder / "cut.safetensors").write_bytes(small.read_bytes()[:-1000])
    (folder / "cut_header.safetensors").write_bytes(small.read_bytes()[:200])
    torch.save({"generator": weights}, folder / "foreign")
    (folder / "cut_zip").write_bytes((folder / "foreign").read_bytes()[:-1000])
    torch.save({"model": weights}, folder / "no_generator")
    with (folder / "pickle").open("wb") as stream:
        pickle.dump({"generator": Code(str(folder / "executed"))}, stream)
    torch.save({"generator": Code(str(folder / "executed"))}, folder / "zip_with_code")
    safetensors.torch.save_file(weights, folder / "no_config.safetensors")
    safetensors.torch.save_file(weights, folder / "bad_config.safetensors", {"config": "{]"})
    renamed = {f"other.{name}": tensor for name, tensor in weights.items()}
    safetensors.torch.save_file(renamed, folder / "names.safetensors", metadata)
    save_checkpoint(folder / "shapes.safetensors", network, replace(config, model=replace(config.model, channels=16)))
    next(iter(weights.values())).mul_(torch.nan)
    safetensors.torch.save_file(weights, folder / "nan.safetensors", metadata)
    with ZipFile(folder / "archive", "w") as archive:
        archive.writestr("notes.txt", "These are not weights.")


def test_checkpoints_that_cannot_be_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    small_config: Config,
    small_checkpoint: Path,
) -> None:
    bad_checkpoints(tmp_path, small_config, small_checkpoint)
    for name, words in BAD_CHECKPOINTS.items():
        path = tmp_path / name
        code, errors = run_main(monkeypatch, capfd, "--input_noisy_wavs_dir", "-", "--checkpoint_file", path)
        assert code == 2, name
        assert errors.startswith(str(path)), errors
        assert words in errors
        assert len(errors.splitlines()) == 1, errors
    assert not (tmp_path / "executed").exists()


def test_a_bad_checkpoint_has_no_traceback(tmp_path: Path) -> None:
    with (tmp_path / "pickle").open("wb") as stream:
        pickle.dump({"generator": Code(str(tmp_path / "executed"))}, stream)
    arguments = ["--input_noisy_wavs_dir", "in", "--output_dir", "out", "--checkpoint_file", "pickle"]
    result = run_script("inference.py", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert [line.split(":")[0] for line in problems_of(result)] == ["pickle"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pickle"]
