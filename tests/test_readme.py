"""The README's commands, run one after another as it gives them, in a copy of the project with a little sound.

Networks and runs are small ones. The environment's programs are the ones that run this test; what needs a network, a
sound card or another hour is played by a script, or named below with the test that runs it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.commands import ROOT
from tests.fixtures.recordings import save
from tests.fixtures.signals import speech_like, with_noise
from tests.fixtures.training import SMALL, settings, write_noises

FEW_STEPS = shlex.join(
    ["--max_steps=1", "--quiet", *SMALL, *settings(train_batch_size=1, train_compile="false", train_bf16="false")]
)
SHORTER = {
    "--input_validation_file test.txt": f"--input_validation_file test.txt {FEW_STEPS}",
    "--nproc_per_node 8 train.py …": f"--nproc_per_node 2 train.py --checkpoint_path runs/two {FEW_STEPS}",
    "train.py --config configs/imse_mix.json": f"train.py {FEW_STEPS} --config configs/imse_mix.json",
    "--input_noise_dir NOISE --output_dir OUT": "--input_noise_dir NOISE --output_dir OUT --files 1 --seconds 1",
}
"""What is added so that a command takes seconds."""

ELSEWHERE = (
    "bash scripts/test.sh",  # what runs this test
    "bash scripts/reproduce.sh",  # tests/scripts/test_reproduce.py
    "bash scripts/train_default.sh",  # tests/scripts/test_train_default.py
    "python -m scripts.download_published",  # tests/scripts/test_download_published.py, with a server of its own
    "python -m tools.ablation",  # tests/scripts/test_ablate.py
    "python -m scripts.export_onnx --output imse.onnx",  # tests/models/test_onnx.py, with this network too
    "python -m tools.robustness --input_noisy_wavs_dir",  # tests/scripts/test_robustness.py, where DNSMOS is played
    "tensorboard --logdir",  # runs until it is stopped; tests/training/test_journal.py reads what it shows
)
"""How the commands begin that are not run here, and where they are tested."""

RESULTS = (
    *("enhanced/b.flac", "enhanced/below/a.wav", "enhanced.wav", "enhanced/samples", "enhanced/report/index.html"),
    *("VoiceBank+DEMAND/16k/clean_testset_wav/p232_1.wav", "enhanced/paper/p232_1.wav", "test_final.txt"),
    *("enhanced/scores/index.html", "training.txt", "test.txt", "runs/imse/best.safetensors", "runs/two/latest.pt"),
    *("runs/imse_mix/best.safetensors", "played.raw"),
    *("enhanced/pictures/attention.png", "OUT/robustness.md", "live.onnx"),
)


def commands() -> Iterator[str]:
    """Those in the README's blocks, in order, without comments; a pipe over several lines is one."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    text = re.sub(r"\s+#.*", "", "\n".join(blocks), flags=re.MULTILINE)
    text = re.sub(r" \\\n\s*", " ", re.sub(r"\|\n\s*", "| ", text))
    return (f"{line}\n" for line in text.splitlines() if line.strip())


def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "example.py").write_text(f"{example}\nassert len(enhanced) == len(noisy) and rate == 16_000\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, tmp_path / "example.py"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture
def project(tmp_path: Path, small_checkpoint: Path) -> Path:
    """A copy of the project as a user has it after the setup, with recordings, speech, noise and the test set."""
    others = ("__pycache__", "*.egg-info", "build", "runs", "enhanced", "VoiceBank+DEMAND")
    folder = shutil.copytree(ROOT, tmp_path / "imse", ignore=shutil.ignore_patterns(".*", *others))
    for name in ("default.safetensors", "published/g_best_pesq_3.373"):
        (folder / "checkpoints" / name).parent.mkdir(exist_ok=True)
        shutil.copy(small_checkpoint, folder / "checkpoints" / name)
    for name in ("noisy/below/a.wav", "noisy/b.flac", "noisy.wav"):
        save(folder / name, with_noise(speech_like(1), 5), container=Path(name).suffix[1:].upper())
    training = (f"trainset_28spk_wav/{speaker}_1" for speaker in ("p225", "p226", "p227"))
    for name in (*training, "testset_wav/p232_1"):
        clean = speech_like(1, rate=48_000, seed=sum(name.encode()))
        save(folder / f"VoiceBank+DEMAND/clean_{name}.wav", clean, rate=48_000)
        save(folder / f"VoiceBank+DEMAND/noisy_{name}.wav", with_noise(clean, 5), rate=48_000)
    for speaker in ("anna", "ben", "carl", "dora"):
        save(folder / f"SPEECH/{speaker}_1.wav", speech_like(1.5, seed=ord(speaker[0])))
    write_noises(folder / "NOISE")
    (folder / "live.raw").write_bytes(np.rint(8_000 * speech_like(1)).astype("<i2").tobytes())
    return folder


@pytest.fixture
def environment(project: Path) -> dict[str, str]:
    """Where the shell finds its programs: an environment that is set up, and a machine with a sound card."""
    python = f'exec {shlex.quote(sys.executable)} "$@"'
    for name, text in {
        "bin/python": python,
        ".venv/bin/python": f'[ "$2" = pip ] || {python}',
        "bin/pip": "",
        "bin/torchrun": 'exec python -m torch.distributed.run "$@"',
        "bin/arecord": "cat live.raw",
        "bin/aplay": "cat > played.raw",
    }.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
    return os.environ | {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def test_every_command_runs_and_leaves_what_it_promises(project: Path, environment: dict[str, str]) -> None:
    unused = set(SHORTER) | set(ELSEWHERE)
    for command in commands():
        if named := [start for start in ELSEWHERE if command.startswith(start)]:
            unused -= set(named)
            continue
        for text, longer in SHORTER.items():
            if text in command:
                command, unused = command.replace(text, longer), unused - {text}
        result = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=project, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{command}{result.stdout}{result.stderr}"
    assert unused == set()
    assert [path for path in RESULTS if not (project / path).exists()] == []
    assert (project / "played.raw").stat().st_size == (project / "live.raw").stat().st_size
