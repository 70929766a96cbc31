"""Every network through the commands: training, resuming after a stop, and enhancing files of any length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

import inference
from tests.fixtures.commands import ROOT, call_main
from tests.fixtures.recordings import NOISY, RATE, save
from tests.fixtures.training import assert_equal_states, curves_of, settings, train_here, write_pairs

SHORT_STFT = {"stft_n_fft": 254, "stft_win_size": 254, "stft_hop_size": 127, "data_segment_size": 4800}
SHORT_CROPS = {"data_segment_size": 8000, "train_batch_size": 2, "optim_schedule": "exponential"}
# Small crops and widths, so that 35 steps take seconds.
SETTINGS = {
    "imse": {"model_channels": 8, **SHORT_STFT},
    "imse_live": {"model_name": "imse_live", "data_normalize_level": "false", "model_channels": 8, **SHORT_STFT},
    "muse": {"model_channels": 8, **SHORT_STFT},
    "lite_rtse": {"data_segment_size": 8000, "train_batch_size": 2},
    "cnunet": {"data_segment_size": 2400, "train_batch_size": 2, "stft_hop_size": 200},
    "dccrn": {"data_segment_size": 2400, "train_batch_size": 2, "stft_hop_size": 200},
    "dpcrn": {**SHORT_CROPS, "data_segment_size": 16_000},
    "dpcrn_ac": SHORT_CROPS,
    "dpcrn_cf": {"model_label_epochs": 2, **SHORT_CROPS},
    "mpsenet": {"model_channels": 8, **SHORT_STFT, "stft_n_fft": 256, "train_batch_size": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("network", SETTINGS)
def test_network_learns_resumes_and_enhances_any_length(network: str, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    recipe = "imse" if network == "imse_live" else network  # the recipe of IMSE live is for mixtures
    arguments = ["--config", ROOT / f"configs/{recipe}.json", "--device=cpu", "--quiet", "--training_epochs=20"]
    arguments += settings(**SETTINGS[network], optim_learning_rate=0.005, optim_warmup_steps=5)

    def steps(run: str, count: int, *more: str) -> None:
        options = f"--checkpoint_path={run}", f"--max_steps={count}", "--validation_interval=3", *more
        ended = train_here(tmp_path, *arguments, *options)
        assert ended.returncode == 0, ended.stderr

    steps("stopped", 3)
    steps("stopped", 5, "--resume")
    steps("run", 5)
    assert_equal_states(tmp_path / "stopped", tmp_path / "run")
    steps("run", 30, "--resume", "--validation_interval=30")
    losses = dict(curves_of(tmp_path / "run")["validation/loss"])
    assert losses[30] < 0.95 * losses[3]

    lengths = {"one": 1, "frame": 130, "short": 1601, "long": 3 * 8000 + 77}
    for name, length in lengths.items():
        save(tmp_path / "any" / f"{name}.wav", NOISY[-length:])
    checkpoint = tmp_path / "run" / "best.safetensors"
    folders = ("--input_noisy_wavs_dir", "any", "--output_dir", "enhanced")
    done = call_main(inference.main, *folders, "--checkpoint_file", checkpoint, "--quiet", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for name, length in lengths.items():
        enhanced, rate = soundfile.read(tmp_path / "enhanced" / f"{name}.wav")
        assert (len(enhanced), rate) == (length, RATE)
        assert np.isfinite(enhanced).all()
        assert name == "one" or np.abs(enhanced).max() > 0
