#!/usr/bin/env bash
# Train IMSE as in the paper on VoiceBank+DEMAND and print the scores of its test set:
#     bash scripts/train_paper.sh [options of train.py]
# Data, run and enhanced files go to VoiceBank+DEMAND, runs/imse and enhanced/imse. Download and training continue where
# they were interrupted. To select on the test set, as the paper did, add --select_on test --input_validation_file
# test.txt. HUB replaces the data set of the Hugging Face hub.
set -euo pipefail
cd "$(dirname "$0")/.."
data=VoiceBank+DEMAND/16k run=runs/imse

bash scripts/setup.sh train,hub
.venv/bin/python downsampling.py --hub "${HUB:-JacobLinCool/VoiceBank-DEMAND-16k}"
.venv/bin/python make_file_list.py
resume=()
[ ! -e "$run/latest.pt" ] || resume=(--resume)
.venv/bin/python train.py --config configs/imse.json --checkpoint_path "$run" ${resume[@]+"${resume[@]}"} "$@"
.venv/bin/python inference.py --checkpoint_file "$run/best.safetensors" --protocol paper \
    --input_noisy_wavs_dir "$data/noisy_testset_wav" --output_dir enhanced/imse
.venv/bin/python cal_metrics.py --clean_wav_dir "$data/clean_testset_wav" --noisy_wav_dir enhanced/imse
