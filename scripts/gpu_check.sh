#!/usr/bin/env bash
# Set up .venv, compare this machine's GPU with its CPU, measure it, and write docs/GPU.md:
#     bash scripts/gpu_check.sh [options of python -m tools.gpu_check]
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh train
.venv/bin/python -m tools.gpu_check "$@"
