"""The committed samples are what samples/README.md says, and make_samples.py makes the same ones again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from scripts.make_samples import RATE, RECIPES, coloured
from tests.fixtures.commands import ROOT, run_module

SCRIPT = "scripts.make_samples"
SAMPLES = ROOT / "samples"
LARGEST_BYTES = 1_500_000


def snr_db(clean: np.ndarray, noisy: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(clean**2) / np.sum((noisy - clean) ** 2)))


def read_pair(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    clean, noisy = (soundfile.read(folder / kind / f"{name}.flac")[0] for kind in ("clean", "noisy"))
    return clean, noisy


def write_prompts(folder: Path) -> None:
    """Stand-ins for the prompts: notes with pauses, of several lengths, some named as the script needs."""
    generator = np.random.default_rng(5)
    names = [recipe.prompt for recipe in RECIPES] + [f"fr_CA_f_June/prompt {number}" for number in range(8)]
    for number, name in enumerate(names):
        seconds = np.arange(int((3.0 + 0.13 * number) * RATE)) / RATE
        voice = np.sin(2 * np.pi * (150 + 40 * number) * seconds) + 0.01 * generator.standard_normal(len(seconds))
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * voice * (np.sin(2 * np.pi * 1.5 * seconds) > 0), RATE)


def test_the_readme_lists_exactly_the_committed_samples() -> None:
    listed = re.findall(
        r"^\| `(\w+)` \|.* (\d+) dB \| ([\d.]+) s \|$", (SAMPLES / "README.md").read_text("utf-8"), re.M
    )
    assert {(name, float(snr)) for name, snr, _ in listed} == {(recipe.name, recipe.snr_db) for recipe in RECIPES}
    for name, _, seconds in listed:
        assert len(read_pair(SAMPLES, name)[0]) / RATE == pytest.approx(float(seconds), abs=0.05)
    for kind in ("clean", "noisy"):
        assert {path.stem for path in (SAMPLES / kind).iterdir()} == {recipe.name for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_committed_pair_has_the_rate_length_and_ratio_it_claims(recipe) -> None:
    for kind in ("clean", "noisy"):
        info = soundfile.info(str(SAMPLES / kind / f"{recipe.name}.flac"))
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")
    clean, noisy = read_pair(SAMPLES, recipe.name)
    assert len(clean) == len(noisy)
    assert 2 <= len(clean) / RATE <= 4
    assert snr_db(clean, noisy) == pytest.approx(recipe.snr_db, abs=0.2)
    assert max(np.abs(clean).max(), np.abs(noisy).max()) < 0.95


def test_the_samples_are_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < LARGEST_BYTES


def test_the_same_prompts_and_seed_give_the_same_samples(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts")
    for output, seed in (("one", 0), ("two", 0), ("other", 1)):
        options = ("--prompts_dir", "prompts", "--output_dir", output, "--seed", seed)
        done = run_module(SCRIPT, *options, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    for recipe in RECIPES:
        one, two, other = (read_pair(tmp_path / folder, recipe.name) for folder in ("one", "two", "other"))
        assert np.array_equal(one, two)
        assert not np.array_equal(one[1], other[1])
        assert snr_db(*one) == pytest.approx(recipe.snr_db, abs=0.05)
        assert np.abs(one[1]).max() <= 0.91


def test_prompts_that_do_not_suffice_get_one_line(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts")
    (tmp_path / "empty").mkdir()
    some = tmp_path / "prompts" / f"{RECIPES[1].prompt}.wav"
    whole = some.read_bytes()
    some.write_bytes(whole[:-100])
    cut = run_module(SCRIPT, "--prompts_dir", "prompts", "--output_dir", "out", cwd=tmp_path)
    some.unlink()
    missing = run_module(SCRIPT, "--prompts_dir", "prompts", "--output_dir", "out", cwd=tmp_path)
    soundfile.write(some, np.zeros(4 * RATE), RATE)
    silent = run_module(SCRIPT, "--prompts_dir", "prompts", "--output_dir", "out", cwd=tmp_path)
    empty = run_module(SCRIPT, "--prompts_dir", "empty", "--output_dir", "out", cwd=tmp_path)
    cases = [
        (cut, "cut short"),
        (missing, RECIPES[1].prompt),
        (silent, "is silent"),
        (empty, "no audio files"),
    ]
    for done, words in cases:
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("exponent", "fall"), [(1.0, 10.0), (2.0, 20.0)])
def test_coloured_noise_falls_by_10_db_a_decade_and_exponent(exponent: float, fall: float) -> None:
    power = np.abs(np.fft.rfft(coloured(16 * RATE, exponent, np.random.default_rng(1)))) ** 2
    hz = np.fft.rfftfreq(16 * RATE, 1 / RATE)
    low, high = (10 * np.log10(np.mean(power[(hz > f * 0.9) & (hz < f * 1.1)])) for f in (400, 4_000))
    assert low - high == pytest.approx(fall, abs=1.0)
    assert power[hz < 29].max() < 1e-12 * power.max()
