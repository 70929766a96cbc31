#!/usr/bin/env bash
# From a fresh machine to enhanced speech: sets up .venv, enhances samples/noisy, prints the scores before and after.
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
echo "Listen: samples/noisy against enhanced/samples"
