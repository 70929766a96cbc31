#!/usr/bin/env bash
# The scores of the released weights, from nothing: sets up .venv, fetches the weights unless they are there, enhances
# the test set in the paper's way, and prints the table.
#     bash scripts/reproduce.sh CLEAN NOISY [OUT]
# CLEAN and NOISY are the folders of the test set at 16 kHz. OUT (enhanced/reproduced) gets the files and their list.
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
"$python" inference.py --input_noisy_wavs_dir "$noisy" --output_dir "$out/enhanced" \
    --checkpoint_file "checkpoints/published/$weights" --protocol paper
"$python" create_test_list.py --test_dir_to_scan "$out/enhanced" --output_file "$out/test_final.txt"
"$python" cal_metrics.py --clean_wav_dir "$clean" --noisy_wav_dir "$out/enhanced" \
    --input_test_file "$out/test_final.txt"
