#!/usr/bin/env bash
# Create or update .venv with the tested versions of the dependencies.
#     bash scripts/setup.sh [EXTRA]      # EXTRA: of pyproject.toml, such as dev or train,hub
# PYTHON selects the interpreter (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3} usable='import pip, sys; sys.exit(sys.version_info < (3, 11))'
if ! .venv/bin/python -c "$usable" 2> /dev/null; then
    "$python" -c "${usable/pip, /}" || { echo "$python: Python 3.11 or newer is needed; name one in PYTHON" >&2; exit 2; }
    "$python" -m venv --clear .venv
fi
install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt)
# On Linux, PyPI's PyTorch comes with 3 GB of CUDA libraries. Without an NVIDIA GPU, take the CPU build (0.2 GB).
if command -v nvidia-smi > /dev/null; then
    cpu_build='from importlib.metadata import version; raise SystemExit(not version("torch").endswith("+cpu"))'
    if .venv/bin/python -c "$cpu_build" 2> /dev/null; then # installed before there was a GPU
        .venv/bin/python -m pip uninstall --quiet --yes torch
    fi
elif [ "$(uname)" = Linux ]; then
    "${install[@]}" --no-deps --retries 1 --index-url https://download.pytorch.org/whl/cpu torch 2> /dev/null ||
        echo "PyTorch's CPU build cannot be installed: installing the build from PyPI" >&2
fi
"${install[@]}" --editable ".${1:+[$1]}"
