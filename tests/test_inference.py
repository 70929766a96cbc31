"""`inference.py` as a user runs it: odd recordings come out whole, bad ones are named, none is half done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch import nn

from config import Config
from data.audio import AudioFormat, read_audio, write_audio
from enhance.enhancer import Enhancer
from enhance.files import enhance_file
from enhance.windows import PROTOCOLS
from metrics.pesq import wideband_pesq
from metrics.si_sdr import si_sdr
from models.checkpoint import DEFAULT_CHECKPOINT
from models.stft import Spectra
from tests.fixtures.commands import ROOT, run_script
from tests.fixtures.recordings import NOISY, QUANTISED, RATE, files_below, load, save

UNKNOWN_SIZE = b"\xff" * 4


class Magnified(nn.Module):
    """Multiplies all magnitudes."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, spectra: Spectra) -> Spectra:
        return spectra._replace(mag=spectra.mag * self.factor)


def odd_recordings() -> dict[str, tuple[np.ndarray, AudioFormat]]:
    """Files that must work, by their path in the input folder: samples `[N, channels]` and format."""
    quiet = QUANTISED[:, None].astype(np.float32) / 4
    surround = np.concatenate([np.roll(quiet, 1000 * i, axis=0) for i in range(6)], axis=1)[:6000]
    surround[:, 3] = 0
    fast = NOISY[: RATE // 2, None]
    return {
        "one sample.wav": (np.full((1, 1), 0.5), AudioFormat(RATE, 1)),
        "one sample at 48 kHz.wav": (np.full((1, 2), 0.5), AudioFormat(48_000, 2)),
        "silence.wav": (np.zeros((40_000, 1)), AudioFormat(RATE, 1)),
        "silence at 44.1 kHz.wav": (np.zeros((20_000, 2)), AudioFormat(44_100, 2, "WAV", "PCM_24")),
        "rates/8.wav": (fast, AudioFormat(8000, 1)),
        "rates/44.wav": (fast, AudioFormat(44_100, 1)),
        "rates/96.wav": (fast, AudioFormat(96_000, 1, "WAV", "PCM_24")),
        "formats/float.wav": (4 * quiet, AudioFormat(RATE, 1, "WAV", "FLOAT")),
        "formats/double.wav": (4 * quiet, AudioFormat(RATE, 1, "WAV", "DOUBLE")),
        "formats/16.wav": (4 * quiet, AudioFormat(RATE, 1, "WAV", "PCM_16")),
        "formats/24.wav": (4 * quiet, AudioFormat(RATE, 1, "WAV", "PCM_24")),
        "formats/8.wav": (4 * quiet, AudioFormat(RATE, 1, "WAV", "PCM_U8")),
        "formats/c.flac": (4 * quiet, AudioFormat(RATE, 1, "FLAC", "PCM_16")),
        "formats/beyond full scale.wav": (64 * quiet, AudioFormat(RATE, 1, "WAV", "FLOAT")),
        "formats/surround.wav": (surround, AudioFormat(RATE, 6, "WAV", "PCM_24")),
        "formats/channel 2.wav": (surround[:, 2:3], AudioFormat(RATE, 1, "WAV", "PCM_24")),
        "formats/a.ogg": (fast, AudioFormat(RATE, 1, "OGG", "VORBIS")),
        "formats/b.mp3": (fast, AudioFormat(RATE, 1, "MP3", "MPEG_LAYER_III")),
        'naïve/it\'s "quoted" 鳥.flac': (fast, AudioFormat(RATE, 1, "FLAC", "PCM_24")),
        "naïve/deep/x.FLAC": (fast, AudioFormat(RATE, 1, "FLAC", "PCM_16")),
    }


def test_odd_recordings_come_out_whole(tmp_path: Path, small_checkpoint: Path) -> None:
    recordings = odd_recordings()
    for name, (samples, audio_format) in recordings.items():
        write_audio(tmp_path / "in" / name, samples, audio_format)
    (tmp_path / "in/notes.txt").write_text("not audio, and not called so", encoding="utf-8")
    arguments = ["--input_noisy_wavs_dir", "in", "--output_dir", "out", "--checkpoint_file", small_checkpoint]
    result = run_script("inference.py", *arguments, "--quiet", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    out = tmp_path / "out"
    assert files_below(out) == set(recordings)
    for name, (_, audio_format) in recordings.items():
        noisy, enhanced = load(tmp_path / "in" / name), load(out / name)
        assert read_audio(out / name)[1] == audio_format, name
        assert enhanced.shape == noisy.shape, name
        if "sample" not in name and "silence" not in name:
            assert np.abs(enhanced).max() > 1e-3, name
            assert np.abs(enhanced - noisy).max() > 1e-3, name
    assert not load(out / "silence.wav").any()
    assert not load(out / "silence at 44.1 kHz.wav").any()

    exact = load(out / "formats/float.wav")
    assert np.array_equal(load(out / "formats/double.wav"), exact)
    assert np.abs(exact).max() < 1
    np.testing.assert_allclose(load(out / "formats/16.wav"), exact, rtol=0, atol=0.51 / 2**15)
    np.testing.assert_allclose(load(out / "formats/24.wav"), exact, rtol=0, atol=0.51 / 2**23)
    np.testing.assert_allclose(load(out / "formats/c.flac"), exact, rtol=0, atol=0.51 / 2**15)
    # A level that is a power of two away changes no digit.
    np.testing.assert_allclose(load(out / "formats/beyond full scale.wav"), 16 * exact, rtol=1e-5)
    assert 16 * np.abs(exact).max() > 1

    surround = load(out / "formats/surround.wav")
    assert np.array_equal(surround[:, 2:3], load(out / "formats/channel 2.wav"))
    assert not surround[:, 3].any()


def test_peaks_are_clipped_not_wrapped(tmp_path: Path, config: Config) -> None:
    enhancer = Enhancer(Magnified(4**config.stft.compress_factor), config)
    noisy = QUANTISED[:8000]
    for subtype, bits in (("FLOAT", 0), ("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 24)):
        save(tmp_path / "in.wav", noisy, subtype=subtype)
        enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", enhancer, "overlap")
        loud = 4 * load(tmp_path / "in.wav")
        assert np.abs(loud).max() > 1.2
        if bits:
            loud = np.clip(loud, -1, 1 - 2.0 ** (1 - bits))
        error = np.abs(load(tmp_path / "out.wav") - loud).max()
        assert error < 1e-4 + (2.0**-bits if bits else 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("samples", [1, 255, 256, 30_699, 30_700, 30_701, 61_400, 100_001])
def test_no_seams(tmp_path: Path, identity: Enhancer, samples: int, protocol: str) -> None:
    noise = np.random.default_rng(samples).uniform(-0.5, 0.5, samples)
    save(tmp_path / "in.wav", noise, subtype="FLOAT")
    enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", identity, protocol)
    np.testing.assert_allclose(load(tmp_path / "out.wav"), load(tmp_path / "in.wav"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("samples", [3 * 30_700 - 1, 3 * 30_700, 3 * 30_700 + 1, 300_001])
def test_no_seams_at_another_rate(tmp_path: Path, identity: Enhancer, samples: int, protocol: str) -> None:
    seconds = np.arange(samples) / 48_000
    random = np.random.default_rng(samples)
    tones = [0.05 * np.sin(2 * np.pi * f * seconds + f) for f in random.uniform(50, 6500, 10)]
    # Nothing above the network's 8 kHz, and no edge that has something there.
    fade = np.sin(np.pi / 2 * np.clip(np.minimum(seconds, seconds[::-1]) / 0.1, 0, 1)) ** 2
    stereo = fade[:, None] * np.stack([np.sum(tones[:5], axis=0), np.sum(tones[5:], axis=0)], axis=1)
    save(tmp_path / "in.wav", stereo, 48_000, subtype="FLOAT")
    enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", identity, protocol)
    result = load(tmp_path / "out.wav")
    assert result.shape == stereo.shape
    np.testing.assert_allclose(result, stereo, rtol=0, atol=1e-4)


MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
from torch import nn
from config import load_config
from data.audio import AudioFormat, AudioWriter
from enhance.enhancer import Enhancer
from enhance.files import enhance_file

folder, seconds = Path(sys.argv[1]), int(sys.argv[2])
noise = np.random.default_rng(0).uniform(-0.1, 0.1, (48_000, 2)).astype(np.float32)
with AudioWriter(folder / "in.wav", AudioFormat(48_000, 2)) as writer:
    for _ in range(seconds):
        writer.write(noise)
enhancer = Enhancer(nn.Identity(), load_config(Path(sys.argv[3])))
enhance_file(folder / "in.wav", folder / "out.wav", enhancer, "overlap")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    peaks: list[int] = []
    for minutes in (2, 10):
        arguments = [str(tmp_path), str(60 * minutes), str(ROOT / "configs/imse.json")]
        result = subprocess.run(
            [sys.executable, "-c", MEMORY_SCRIPT, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(result.stdout))
        assert soundfile.info(str(tmp_path / "out.wav")).frames == 60 * minutes * 48_000
    # In kB. The 8 minutes more are 184,000 kB as 32-bit samples, and a third of that at the network's rate.
    assert peaks[1] - peaks[0] < 20_000


def test_standard_input_to_standard_output(tmp_path: Path, small_checkpoint: Path) -> None:
    save(tmp_path / "in.wav", NOISY)
    piped = bytearray((tmp_path / "in.wav").read_bytes())
    piped[4:8] = piped[40:44] = UNKNOWN_SIZE
    common = ["--quiet", "--checkpoint_file", str(small_checkpoint)]
    result = subprocess.run(
        [sys.executable, ROOT / "inference.py", "--input_noisy_wavs_dir", "-", *common],
        input=piped,
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    # One file, whose folder is not a result's; the same samples as through the pipe.
    filed = run_script("inference.py", "--input_noisy_wavs_dir", "in.wav", "--output_dir", "out", *common, cwd=tmp_path)
    assert (filed.returncode, filed.stdout, filed.stderr) == (0, "", "")
    assert result.stdout == (tmp_path / "out/in.wav").read_bytes()


def test_the_embedded_checkpoint_is_small_and_cleans_the_samples(tmp_path: Path) -> None:
    assert DEFAULT_CHECKPOINT.stat().st_size < 2 * 2**20
    arguments = ["--input_noisy_wavs_dir", ROOT / "samples" / "noisy", "--output_dir", tmp_path / "enhanced"]
    result = run_script("inference.py", *arguments, "--quiet", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    for noisy in sorted((ROOT / "samples" / "noisy").iterdir()):
        folders = ROOT / "samples" / "clean", noisy.parent, tmp_path / "enhanced"
        clean, before, after = (load(folder / noisy.name)[:, 0] for folder in folders)
        assert wideband_pesq(clean, after) > wideband_pesq(clean, before)
        assert si_sdr(clean, after) > si_sdr(clean, before)
