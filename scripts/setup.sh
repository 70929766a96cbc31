#!/usr/bin/env bash
# Create or update .venv with the tested versions of the dependencies.
#     bash scripts/setup.sh [EXTRA]      # EXTRA: one of pyproject.toml's, such as train or dev
# PYTHON selects the interpreter (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt)
# On Linux, PyPI's PyTorch comes with 3 GB of CUDA libraries. Without an NVIDIA GPU, take the CPU build (0.2 GB).
if [ "$(uname)" = Linux ] && ! command -v nvidia-smi > /dev/null; then
    "${install[@]}" --no-deps --retries 1 --index-url https://download.pytorch.org/whl/cpu torch 2> /dev/null ||
        echo "PyTorch's CPU index cannot be reached: installing the build from PyPI" >&2
fi
"${install[@]}" --editable ".${1:+[$1]}"
