#!/usr/bin/env bash
# From a fresh machine to enhanced speech: sets up .venv, enhances samples/noisy, prints the scores before and after.
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/setup.sh
python=.venv/bin/python

if [ ! -e checkpoints/default.safetensors ] && [ ! -e checkpoints/published/g_best_pesq_3.373 ]; then
    echo "Fetching the checkpoint that the authors of IMSE released …"
    "$python" scripts/download_published.py g_best_pesq_3.373 || {
        echo "Without a network: put the file g_best_pesq_3.373 of github.com/XinxXinTang/IMSE (paper_result/) into" \
            "checkpoints/published/ and run this again." >&2
        exit 1
    }
fi

"$python" inference.py --input_noisy_wavs_dir samples/noisy --output_dir enhanced/samples
echo
echo "Noisy:"
"$python" cal_metrics.py --clean_wav_dir samples/clean --noisy_wav_dir samples/noisy --quiet
echo
echo "Enhanced:"
"$python" cal_metrics.py --clean_wav_dir samples/clean --noisy_wav_dir enhanced/samples --quiet
echo
echo "Listen: samples/noisy against enhanced/samples"
