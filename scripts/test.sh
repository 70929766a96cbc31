#!/usr/bin/env bash
# Sets up .venv and runs everything that must hold: style, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/setup.sh dev
.venv/bin/ruff check
.venv/bin/ruff format --check
.venv/bin/basedpyright
# Two processes of one thread each: most tests are too small for PyTorch to share.
OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile "$@"
