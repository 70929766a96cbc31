#!/usr/bin/env bash
# Set up .venv, enhance samples/noisy with the default checkpoint, and print the scores before and after.
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/setup.sh
python=.venv/bin/python

"$python" inference.py --input_noisy_wavs_dir samples/noisy --output_dir enhanced/samples
echo
echo "Noisy:"
"$python" cal_metrics.py --clean_wav_dir samples/clean --noisy_wav_dir samples/noisy --quiet
echo
echo "Enhanced:"
"$python" cal_metrics.py --clean_wav_dir samples/clean --noisy_wav_dir enhanced/samples --quiet
echo
echo "Listen: samples/noisy and enhanced/samples"
