#!/usr/bin/env bash
# Train the default checkpoint on folders of clean speech and noise:
#     bash scripts/train_default.sh SPEECH NOISE [options of train.py]
# The run is in runs/default and is resumed if it exists. When it ends, its best network is copied to
# checkpoints/default.safetensors. The variables RUN and OUTPUT replace the two paths.
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
echo "saved $output; describe it in checkpoints/README.md"
