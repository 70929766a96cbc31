#!/usr/bin/env bash
# Print the scores of the released weights on the test set: set up .venv, download the weights if they are missing,
# enhance the noisy files with --protocol paper, score them.
#     bash scripts/reproduce.sh CLEAN NOISY [OUT]
# CLEAN and NOISY are the folders of the test set at 16 kHz, OUT is for the enhanced files (enhanced/reproduced).
set -euo pipefail
[ $# -eq 2 ] || [ $# -eq 3 ] || { echo "usage: bash scripts/reproduce.sh CLEAN NOISY [OUT]" >&2; exit 2; }
root=$(realpath -- "$(dirname "$0")/..")
clean=$(realpath -- "$1")
noisy=$(realpath -- "$2")
out=${3:-$root/enhanced/reproduced}
mkdir -p -- "$out"
out=$(realpath -- "$out")
weights=g_best_pesq_3.373 python=.venv/bin/python
cd "$root"

bash scripts/setup.sh
[ -e "checkpoints/published/$weights" ] || "$python" -m scripts.download_published "$weights"
"$python" inference.py --input_noisy_wavs_dir "$noisy" --output_dir "$out" \
    --checkpoint_file "checkpoints/published/$weights" --protocol paper
"$python" cal_metrics.py --clean_wav_dir "$clean" --noisy_wav_dir "$out"
