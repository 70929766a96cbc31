"""The documents: links lead somewhere, commands have the options that they use, and those of the README work."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.commands import ROOT, call_main, run_python
from tests.fixtures.recordings import save
from tests.fixtures.signals import speech_like, with_noise
from tests.fixtures.training import SMALL, settings, write_noises

README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("[A-Z]*.md")), *sorted(ROOT.glob("*/README.md")), *sorted(ROOT.glob("docs/*.md"))]


def commands(path: Path) -> list[str]:
    """Return the commands in the shell blocks of a page, without comments; those over several lines are joined."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
    text = re.sub(r"\s+#.*", "", text, flags=re.MULTILINE)
    text = re.sub(r" \\\n\s*", " ", re.sub(r"\|\n\s*", "| ", text))
    return [line for line in text.splitlines() if line.strip()]


def python_calls(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield module and arguments of each Python command of a page, also of those between backticks."""
    text = path.read_text(encoding="utf-8")
    inline = re.findall(r"`((?:python|torchrun) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    for command in [*commands(path), *inline]:
        for call in re.findall(r"(?:^|[ /])(?:python|torchrun) (?!-c )([^|<>;&]+)", " ".join(command.split())):
            words = shlex.split(re.sub(r"[…\[\]]", " ", call))
            if words[0] == "-m":
                yield words[1], words[2:]
            elif script := next((word for word in words if word.endswith(".py")), None):
                yield script.removesuffix(".py").replace("/", "."), words[words.index(script) + 1 :]


@cache
def options_of(module: str, *subcommand: str) -> set[str]:
    """Return the options in the help of a command."""
    package = (ROOT / module.replace(".", "/")).is_dir()
    main = importlib.import_module(f"{module}.__main__" if package else module).main
    result = call_main(main, *subcommand, "--help")
    assert result.returncode == 0, result.stderr
    return set(re.findall(r"--\w+", result.stdout))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_have_the_options_that_pages_use(path: Path) -> None:
    for module, arguments in python_calls(path):
        own = arguments[: arguments.index("--")] if "--" in arguments else arguments  # the rest is for train.py
        subcommand = own[:1] if module.startswith("tools.") and own and not own[0].startswith("-") else []
        used = {word.partition("=")[0] for word in own if word.startswith("--")}
        assert used <= options_of(module, *subcommand), f"{module} {' '.join(arguments)}"
        assert {word.partition("=")[0] for word in arguments[len(own) + 1 :] if word.startswith("--")} <= options_of(
            "train"
        )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_pages_name_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"(?:configs|scripts)/[a-z_/0-9]+\.(?:json|sh)", text):
        assert (ROOT / name).is_file(), name
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        other = path.parent / name if name else path
        assert other.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_commands_are_found() -> None:
    modules = {module for path in PAGES for module, _ in python_calls(path)}
    assert {"inference", "train", "cal_metrics", "tools.report", "tools.benchmark", "scripts.export_onnx"} <= modules


def test_the_code_page_names_modules_that_exist() -> None:
    text = (ROOT / "docs/CODE.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py)`", text):
        assert (ROOT / name).exists(), name
    for module, attribute in re.findall(r"`([a-z]+\.[a-z_]+)\.([A-Za-z_]+)`", text):
        if (ROOT / f"{module.replace('.', '/')}.py").exists():
            assert hasattr(importlib.import_module(module), attribute), f"{module}.{attribute}"


def test_the_python_example_of_the_readme(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "example.py").write_text(f"{example}\nassert len(enhanced) == len(noisy) and rate == 16_000\n")
    result = run_python(tmp_path / "example.py", cwd=ROOT, minutes=2)
    assert (result.returncode, result.stderr) == (0, "")


FEW_STEPS = shlex.join(
    ["--max_steps=1", "--quiet", *SMALL, *settings(train_batch_size=1, train_compile="false", train_bf16="false")]
)
CHANGED = {
    "--input_validation_file test.txt": f"--input_validation_file test.txt {FEW_STEPS}",
    "--nproc_per_node 8 train.py …": f"--nproc_per_node 2 train.py --checkpoint_path runs/two {FEW_STEPS}",
    "train.py --config configs/imse_mix.json": f"train.py {FEW_STEPS} --config configs/imse_mix.json",
}
"""Parts of the README's commands and what replaces them, so that a command takes seconds."""

NOT_RUN = (
    "bash scripts/train_default.sh",  # tests/scripts/test_shell_scripts.py
    "python -m scripts.download_published",  # tests/scripts/test_download_published.py
    "tensorboard --logdir",  # runs until it is stopped
)

RESULTS = (
    *("enhanced/b.flac", "enhanced/below/a.wav", "enhanced.wav", "enhanced/released/b.flac"),
    *("enhanced/samples", "enhanced/report/index.html"),
    *(
        "VoiceBank+DEMAND/16k/clean_testset_wav/p232_1.wav",
        "enhanced/reproduced/p232_1.wav",
        "enhanced/paper/p232_1.wav",
    ),
    *("enhanced/scores/index.html", "training.txt", "test.txt", "runs/imse/best.safetensors", "runs/two/latest.pt"),
    *("runs/imse_mix/best.safetensors", "played.raw"),
)


@pytest.fixture
def project(tmp_path: Path, small_checkpoint: Path) -> Path:
    """A copy of the project with a small checkpoint, recordings, speech, noise, a test set and a fake sound card."""
    unneeded = (".*", "__pycache__", "*.egg-info", "build", "runs", "enhanced", "VoiceBank+DEMAND")
    folder = shutil.copytree(ROOT, tmp_path / "imse", ignore=shutil.ignore_patterns(*unneeded))
    for name in ("default.safetensors", "published/g_best_pesq_3.373"):
        (folder / "checkpoints" / name).parent.mkdir(exist_ok=True)
        shutil.copy(small_checkpoint, folder / "checkpoints" / name)
    for name in ("noisy/below/a.wav", "noisy/b.flac", "noisy.wav"):
        save(folder / name, with_noise(speech_like(1), 5), container=Path(name).suffix[1:].upper())
    for name in (*(f"trainset_28spk_wav/{speaker}_1" for speaker in ("p225", "p226", "p227")), "testset_wav/p232_1"):
        clean = speech_like(1, rate=48_000, seed=sum(name.encode()))
        save(folder / f"VoiceBank+DEMAND/clean_{name}.wav", clean, rate=48_000)
        save(folder / f"VoiceBank+DEMAND/noisy_{name}.wav", with_noise(clean, 5), rate=48_000)
    for speaker in ("anna", "ben", "carl", "dora"):
        save(folder / f"SPEECH/{speaker}_1.wav", speech_like(1.5, seed=ord(speaker[0])))
    write_noises(folder / "NOISE")
    (folder / "live.raw").write_bytes(np.rint(8_000 * speech_like(1)).astype("<i2").tobytes())
    python = f'exec {shlex.quote(sys.executable)} "$@"'
    for name, text in {
        "bin/python": python,
        ".venv/bin/python": f'[ "$2" = pip ] || {python}',  # setup.sh must not install anything
        ".venv/bin/activate": "",
        "bin/pip": "",
        "bin/torchrun": 'exec python -m torch.distributed.run "$@"',
        "bin/arecord": "head -c 100000 /dev/zero; sleep 30; cat live.raw",  # the network loads within this time
        "bin/aplay": "cat > played.raw",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
    return folder


@pytest.mark.slow
def test_the_commands_of_the_readme_run_one_after_another(project: Path) -> None:
    environment = os.environ | {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    unused = {*CHANGED, *NOT_RUN}
    for command in commands(README):
        if skipped := [start for start in NOT_RUN if command.startswith(start)]:
            unused -= {*skipped}
            continue
        for text, replacement in CHANGED.items():
            if text in command:
                command, unused = command.replace(text, replacement), unused - {text}
        result = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=project, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False,
        )  # fmt: skip
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    assert unused == set()
    assert [path for path in RESULTS if not (project / path).exists()] == []
    assert (project / "played.raw").stat().st_size == (project / "live.raw").stat().st_size
