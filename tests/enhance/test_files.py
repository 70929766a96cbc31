"""Files through a network in three threads: batches, failures and memory."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn
from torch.nn import functional

from config import Config
from data.audio import AudioError, AudioFormat, write_audio
from enhance.enhancer import Enhancer
from enhance.files import enhance_file, enhance_files, is_done
from enhance.windows import PROTOCOLS
from models.stft import Spectra
from tests.enhance.test_enhancer import Recording
from tests.fixtures.commands import ROOT, run_python
from tests.fixtures.networks import one_pass, random_network
from tests.fixtures.recordings import NOISY, RATE, files_below, load, save


def mixed_jobs(folder: Path, out: str) -> list[tuple[Path, Path]]:
    """Write files of several rates, channel counts and lengths, with float samples to compare results exactly."""
    stereo = np.stack([NOISY, NOISY[::-1]], axis=1)
    recordings = {
        "a.wav": (NOISY[:14_000, None], RATE),
        "b.wav": (stereo[:9000], RATE),
        "c.wav": (NOISY[:700, None], RATE),
        "d.wav": (stereo[:20_000], 48_000),
        "e.wav": (NOISY[5000:5001, None], 8000),
        "f.wav": (NOISY[:8000, None], 8000),
        "g.wav": (0 * NOISY[:5000, None], RATE),
        "h.wav": (NOISY[100:700, None], RATE),
    }
    for name, (samples, rate) in recordings.items():
        write_audio(folder / "in" / name, samples, AudioFormat(rate, samples.shape[1], "WAV", "FLOAT"))
    return [(folder / "in" / name, folder / out / name) for name in recordings]


class Blur(nn.Module):
    """A stand-in for a network: a fixed convolution of the magnitudes."""

    def forward(self, spectra: Spectra) -> Spectra:
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [3, 2, 1]])[None, None] / 18
        return spectra._replace(mag=functional.conv2d(spectra.mag[:, None], kernel, padding=1)[:, 0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batches_give_what_single_files_give(tmp_path: Path, quick_config: Config, protocol: str) -> None:
    network = Blur()
    for source, target in mixed_jobs(tmp_path, "alone"):
        enhance_file(source, target, Enhancer(network, quick_config), protocol)
    for batch_size in (1, 16):
        jobs = mixed_jobs(tmp_path, f"batch {batch_size}")
        assert enhance_files(jobs, Enhancer(network, quick_config, batch_size), protocol) == {}
        for _, target in jobs:
            alone, together = load(tmp_path / "alone" / target.name), load(target)
            assert alone.shape == together.shape
            assert np.abs(alone).max() > 1e-4 or target.name == "g.wav"
            np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5, err_msg=str(target))
    signal = load(tmp_path / "in/a.wav")[:, 0]
    in_memory = Enhancer(network, quick_config).enhance_signal(signal, protocol)
    np.testing.assert_allclose(load(tmp_path / "alone/a.wav")[:, 0], in_memory, rtol=0, atol=1e-6)


def test_batches_span_files(tmp_path: Path, quick_config: Config) -> None:
    for number in range(6):
        save(tmp_path / f"in/{number}.wav", NOISY[: 12_000 if number < 5 else 4000])
    jobs = [(path, tmp_path / "out" / path.name) for path in sorted((tmp_path / "in").iterdir())]
    network = Recording()
    assert enhance_files(jobs, Enhancer(network, quick_config, batch_size=5), "paper") == {}
    assert [rows for rows, _ in network.passes] == [5, 5, 5, 1]  # five files of three segments and one of one


def test_bad_files_fail_alone(tmp_path: Path, quick_config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{number}.wav" for number in range(40)]
    for name in names:
        save(tmp_path / "in" / name, NOISY[:9000], subtype="FLOAT")
    bad = ["3.wav", *(f"{number}.wav" for number in range(20, 39))]
    for name in bad:
        (tmp_path / "in" / name).write_bytes(b"")
    damaged = NOISY[:9000].copy()
    damaged[8990] = np.nan
    soundfile.write(tmp_path / "in/7.wav", damaged, RATE, subtype="FLOAT")
    (tmp_path / "out/9.wav").mkdir(parents=True)  # cannot be replaced by a file
    jobs = [(tmp_path / "in" / name, tmp_path / "out" / name) for name in names]
    # No memory for two windows: each is enhanced alone.
    failures = enhance_files(jobs, Enhancer(Recording(rows=1), quick_config, batch_size=16), "paper")
    failed = [name for name in names if name in bad or name in ("7.wav", "9.wav")]
    assert [target.name for target in failures] == failed
    assert capsys.readouterr().err.splitlines() == list(failures.values())
    done = set(names) - set(failed)
    assert files_below(tmp_path / "out") == done
    for name in done:
        np.testing.assert_allclose(load(tmp_path / "out" / name), load(tmp_path / "in" / name), rtol=0, atol=1e-4)


def test_a_file_too_long_for_the_memory_fails_alone(tmp_path: Path, quick_config: Config) -> None:
    for name, samples in (("a.wav", 9000), ("b.wav", 30_000), ("c.wav", 9000)):
        save(tmp_path / "in" / name, NOISY[:samples])
    jobs = [(path, tmp_path / "out" / path.name) for path in sorted((tmp_path / "in").iterdir())]
    failures = enhance_files(jobs, Enhancer(Recording(frames=200), quick_config, 16), "whole")
    assert [target.name for target in failures] == ["b.wav"]
    (reason,) = failures.values()
    assert reason.startswith(f"{tmp_path}/in/b.wav: ")
    assert "--protocol whole (needs 100 GB)" in reason
    assert files_below(tmp_path / "out") == {"a.wav", "c.wav"}


class Wasteful(nn.Module):
    """Lacks memory for two rows; records how many tensors of failed passes are still held in the other passes."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: list[weakref.ref[Tensor]] = []
        self.held: list[int] = []

    def forward(self, spectra: Spectra) -> Spectra:
        if len(spectra.mag) > 1:
            self.failed.append(weakref.ref(spectra.mag))
            raise torch.OutOfMemoryError("needs 100 GB")
        self.held.append(sum(tensor() is not None for tensor in self.failed))
        return spectra


def test_a_failed_batch_frees_its_memory_before_its_windows_are_enhanced_alone(
    tmp_path: Path, quick_config: Config
) -> None:
    save(tmp_path / "in.wav", NOISY[:9000])
    network = Wasteful()
    assert not enhance_files([(tmp_path / "in.wav", tmp_path / "out.wav")], Enhancer(network, quick_config, 4), "paper")
    assert network.failed
    assert not any(network.held)


class Failing(nn.Module):
    """Raises an error, or gives NaN."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error

    def forward(self, spectra: Spectra) -> Spectra:
        if self.error:
            raise self.error
        return spectra._replace(mag=spectra.mag * torch.nan)


def test_live_networks_take_files_of_any_kind(tmp_path: Path) -> None:
    network, config = random_network("lite_rtse")
    jobs = mixed_jobs(tmp_path, "out")
    (tmp_path / "in/c.wav").write_bytes(b"no sound")
    failures = enhance_files(jobs, Enhancer(network, config), "whole", report=False)
    assert list(failures) == [tmp_path / "out/c.wav"]
    assert "in/c.wav" in failures[tmp_path / "out/c.wav"]
    for source, target in jobs:
        if target in failures:
            continue
        assert soundfile.info(target).samplerate == soundfile.info(source).samplerate
        noisy, enhanced = (np.atleast_2d(load(path).T) for path in (source, target))
        assert enhanced.shape == noisy.shape
        if soundfile.info(source).samplerate == RATE:
            for channel, result in zip(noisy, enhanced, strict=True):
                np.testing.assert_allclose(result, one_pass(network, config, channel), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("error", "batch_size"), [(ValueError("a fault"), 1), (KeyboardInterrupt(), 2)])
def test_a_fault_in_the_network_ends_the_run(
    tmp_path: Path, quick_config: Config, error: Exception, batch_size: int
) -> None:
    jobs = mixed_jobs(tmp_path, "out")
    with pytest.raises(type(error)):
        enhance_files(jobs, Enhancer(Failing(error), quick_config, batch_size), "overlap")
    assert files_below(tmp_path / "out") == set()


def test_nan_is_not_written(tmp_path: Path, config: Config) -> None:
    save(tmp_path / "in.wav", NOISY[:100])
    with pytest.raises(AudioError, match=r"out/in\.wav: .* NaN"):
        enhance_file(tmp_path / "in.wav", tmp_path / "out/in.wav", Enhancer(Failing(None), config), "overlap")
    assert files_below(tmp_path) == {"in.wav"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("samples", [1, 256, 30_701, 100_001])
def test_identity_network_leaves_no_seam(tmp_path: Path, identity: Enhancer, samples: int, protocol: str) -> None:
    noise = np.random.default_rng(samples).uniform(-0.5, 0.5, samples)
    save(tmp_path / "in.wav", noise, subtype="FLOAT")
    enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", identity, protocol)
    np.testing.assert_allclose(load(tmp_path / "out.wav"), load(tmp_path / "in.wav"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_seam_at_another_rate(tmp_path: Path, identity: Enhancer, protocol: str) -> None:
    samples = 3 * 30_700 + 1
    seconds = np.arange(samples) / 48_000
    frequencies = np.random.default_rng(samples).uniform(50, 6500, 10)  # below the network's 8 kHz
    tones = [0.05 * np.sin(2 * np.pi * f * seconds + f) for f in frequencies]
    fade = np.sin(np.pi / 2 * np.clip(np.minimum(seconds, seconds[::-1]) / 0.1, 0, 1)) ** 2
    stereo = fade[:, None] * np.stack([np.sum(tones[:5], axis=0), np.sum(tones[5:], axis=0)], axis=1)
    save(tmp_path / "in.wav", stereo, 48_000, subtype="FLOAT")
    enhance_file(tmp_path / "in.wav", tmp_path / "out.wav", identity, protocol)
    result = load(tmp_path / "out.wav")
    assert result.shape == stereo.shape
    np.testing.assert_allclose(result, stereo, rtol=0, atol=1e-4)


def test_is_done(tmp_path: Path) -> None:
    source, target = tmp_path / "in.wav", tmp_path / "out.wav"
    save(source, NOISY[:500])
    assert not is_done(source, target)
    save(target, NOISY[:500])
    assert is_done(source, target)
    for samples, rate, subtype in ((499, RATE, "PCM_16"), (500, 8000, "PCM_16"), (500, RATE, "PCM_24")):
        save(target, NOISY[:samples], rate, subtype=subtype)
        assert not is_done(source, target)
    save(target, NOISY[:500])
    os.utime(target, (0, 0))
    assert not is_done(source, target)
    target.write_text("no sound")
    assert not is_done(source, target)


MEMORY_SCRIPT = """
import resource, sys
from pathlib import Path
import numpy as np
from torch import Tensor, nn
from torch.nn import functional
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


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    peaks: list[int] = []
    for minutes in (2, 10):
        result = run_python("-c", MEMORY_SCRIPT, tmp_path, 60 * minutes, ROOT / "configs/imse.json", cwd=ROOT)
        peaks.append(int(result.stdout))
        assert soundfile.info(str(tmp_path / "out.wav")).frames == 60 * minutes * 48_000
    # In kB. The additional 8 minutes are 184,000 kB as float32, and a third of that at the network's rate.
    assert peaks[1] - peaks[0] < 20_000
