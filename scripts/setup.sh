#!/usr/bin/env bash
# Makes .venv in the project's root with the tested versions. `bash scripts/setup.sh dev` adds the tools for testing.
# PYTHON chooses the interpreter (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt)
# On Linux, PyPI's PyTorch brings 3 GB of CUDA. Without an NVIDIA GPU, PyTorch's own index has it in 0.2 GB.
if [ "$(uname)" = Linux ] && ! command -v nvidia-smi > /dev/null; then
    "${install[@]}" --no-deps --retries 1 --index-url https://download.pytorch.org/whl/cpu torch 2> /dev/null ||
        echo "PyTorch's index for CPUs cannot be reached: taking PyPI's build" >&2
fi
# Installing again is quick when nothing has changed, and right when something has.
"${install[@]}" --editable ".${1:+[$1]}"
