#!/usr/bin/env bash
# Set up .venv and run all checks: style, types, tests.
#     bash scripts/test.sh [--all] [options of pytest]
# --all includes the slow tests.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = --all ]; then
    shift
    set -- -m "" "$@"
fi

bash scripts/setup.sh dev
.venv/bin/ruff check
.venv/bin/ruff format --check
.venv/bin/basedpyright
# Two processes with one thread each: most tests are too small for several threads.
OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile "$@"
