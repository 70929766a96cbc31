#!/usr/bin/env bash
# Fine-tune the released weights of IMSE for real recordings, on folders of clean speech and noise:
#     bash scripts/train_default.sh SPEECH NOISE [options of train.py]
# The released weights are downloaded and 400 rooms simulated (runs/rooms) if they are missing. Three runs follow each other, in
# runs/default/first, second and third, and are resumed if they exist. checkpoints/default.safetensors is then 40 % of the
# released weights and 30 % of the last ones of the second and of the third run. The variables RUN, OUTPUT and RELEASED replace
# the paths; ROOMS is a folder of other room responses.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: bash scripts/train_default.sh SPEECH NOISE [options of train.py]" >&2; exit 2; }
speech=$(realpath -- "$1") noise=$(realpath -- "$2")
shift 2
cd "$(dirname "$0")/.."
run=${RUN:-runs/default} output=${OUTPUT:-checkpoints/default.safetensors}
released=${RELEASED:-checkpoints/published/g_best_pesq_3.373} rooms=${ROOMS:-runs/rooms}

bash scripts/setup.sh train
[ -e "$released" ] || .venv/bin/python -m scripts.download_published
if [ -z "${ROOMS:-}" ] && [ ! -e "$rooms/room0399.wav" ]; then # the last one: the simulation may have been interrupted
    bash scripts/setup.sh rooms
    .venv/bin/python -m scripts.make_rooms "$rooms"
fi
train() { # RUN START [options]: start a run from the weights START, or resume it
    local start=(--fine_tune "$2" --teacher "$released")
    [ ! -e "$1/latest.pt" ] || start=(--resume)
    .venv/bin/python train.py --config configs/imse_real.json --input_clean_wavs_dir "$speech" --input_noise_dir "$noise" \
        --input_rooms_dir "$rooms" --checkpoint_path "$1" "${start[@]}" "${@:3}"
}
train "$run/first" "$released" "$@"
train "$run/second" "$run/first/latest.safetensors" --max_steps 1450 --set optim.learning_rate=2e-4 --set optim.warmup_steps=50 "$@"
train "$run/third" "$run/second/latest.safetensors" --max_steps 1400 --set optim.learning_rate=3e-4 --set optim.warmup_steps=50 \
    --set mix.filter_share=0.5 "$@"
interpolate=(.venv/bin/python -m scripts.interpolate)
"${interpolate[@]}" "$run/second/latest.safetensors" "$run/third/latest.safetensors" --share 0.5 --output "$run/mean.safetensors"
"${interpolate[@]}" "$released" "$run/mean.safetensors" --share 0.6 --output "$output"
echo "saved $output; describe it in checkpoints/README.md"
