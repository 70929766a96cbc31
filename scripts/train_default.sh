#!/usr/bin/env bash
# Trains the checkpoint that the project carries, on any folder of clean speech and any folder of noise:
#     bash scripts/train_default.sh SPEECH NOISE [options of train.py]
# The run lies in runs/default; called again, it goes on where it was. At its end the network that was best on
# held-out speakers and noises becomes checkpoints/default.safetensors. RUN and OUTPUT name other places.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: bash scripts/train_default.sh SPEECH NOISE [options of train.py]" >&2; exit 2; }
speech=$(realpath -- "$1") noise=$(realpath -- "$2")
shift 2
cd "$(dirname "$0")/.."
run=${RUN:-runs/default} output=${OUTPUT:-checkpoints/default.safetensors}

bash scripts/setup.sh train
resume=()
[ ! -e "$run/latest.pt" ] || resume=(--resume)
.venv/bin/python train.py --config configs/imse_mix.json --input_clean_wavs_dir "$speech" --input_noise_dir "$noise" \
    --checkpoint_path "$run" "${resume[@]}" "$@"
cp "$run/best.safetensors" "$output"
echo "$output is there; describe it in checkpoints/README.md"
