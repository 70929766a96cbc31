#!/usr/bin/env bash
# Makes .venv in the project's root with the tested versions. `bash scripts/setup.sh dev` adds the tools for testing.
# PYTHON chooses the interpreter (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
# Installing again is quick when nothing has changed, and right when something has.
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".${1:+[$1]}"
