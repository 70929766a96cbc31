"""The test mixes: held-out files, the same crops and noises for all conditions, exact levels and ratios."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cli import UserError
from config import Config, MixConfig
from data.dataset import AudioCache
from data.degradations import CODECS, RATE, clip_share, find_delay, narrowband, telephone, through_codec
from data.mixing import in_room, room_response
from tests.fixtures.recordings import save
from tests.fixtures.signals import level_of, speech_like
from tools.robustness.conditions import ALL, BASE, Condition
from tools.robustness.mixes import (
    _ROOM,
    DIRECT_TO_REVERBERANT,
    MAX_CATEGORIES,
    Material,
    find_pool,
    make_mix,
    noise_categories,
)
from training.data import read_mixes


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Speech of twelve speakers in `a` and one in `b`, two utterances each; noise of two kinds."""
    root = tmp_path_factory.mktemp("material")
    for number in range(12):
        for take in range(2):
            save(root / f"speech/a/{number:02}-{take}.wav", 0.5 * speech_like(2, seed=10 * number + take))
    save(root / "speech/b/solo-0.wav", 0.5 * speech_like(1.4, seed=500))
    save(root / "speech/b/solo-1.wav", 0.5 * speech_like(1.4, seed=501))
    for kind in ("rain", "street"):
        for number in range(6):
            noise = np.random.default_rng([number, len(kind)]).uniform(-0.3, 0.3, 8000 + 8000 * number)
            save(root / f"noise/{kind}/{number}.wav", noise)
    return root / "speech", root / "noise"


def material_of(folders: tuple[Path, Path], held_out: int | None = None, files: int = 4) -> Material:
    material = Material(find_pool(*folders, held_out), files, 1.0, seed=3)
    material.add_groups()
    return material


def test_pool_is_what_training_holds_out(folders: tuple[Path, Path], config: Config) -> None:
    """The files of the validation mixes of a training run with the same seed."""
    mix = MixConfig(5, 5, 0, 0, 0, validation_mixes=200)
    recordings = AudioCache(16_000, keep=True)
    judged = read_mixes(*folders, None, replace(config, mix=mix), recordings, workers=1, quiet=True).validation
    names = {example.id.split("_", 1)[1] for example in judged}
    pool = find_pool(*folders, config.train.seed)
    base = material_of(folders, config.train.seed, files=100)
    assert {Path(id_).name for id_ in base.utterances[ALL]} == names
    assert 0 < len(names) < 26
    assert len(pool.noise) == 1  # a tenth of twelve
    # That noise, and no other, is in those examples.
    noise = recordings.samples(next(iter(pool.noise.values())))
    added = (judged[0].noisy - judged[0].clean)[:1000]
    pieces = np.lib.stride_tricks.sliding_window_view(np.resize(noise, 2 * len(noise)), 1000)
    likeness = pieces @ added / np.linalg.norm(pieces, axis=1) / np.linalg.norm(added)
    assert np.max(likeness) > 0.999


def test_all_files_without_a_seed(folders: tuple[Path, Path]) -> None:
    pool = find_pool(*folders, None)
    assert (len(pool.speech), len(pool.noise), pool.seen) == (26, 12, frozenset())
    assert material_of(folders).utterances[ALL] == ["a/00-0", "a/04-0", "a/08-1", "b/solo-1"]


def test_noise_categories() -> None:
    assert noise_categories(["rain/a", "rain/b/c", "street/a"]) == {
        "rain": ["rain/a", "rain/b/c"],
        "street": ["street/a"],
    }
    assert noise_categories(["DKITCHEN_ch01", "DKITCHEN_ch02", "bus2", "7"]) == {
        "DKITCHEN": ["DKITCHEN_ch01", "DKITCHEN_ch02"],
        "bus": ["bus2"],
        "7": ["7"],
    }
    many = [f"{chr(97 + number)}/{take}" for number in range(20) for take in range(1 + (number == 19))]
    assert len(noise_categories(many)) == MAX_CATEGORIES
    assert "t" in noise_categories(many)


def test_conditions_change_one_property(folders: tuple[Path, Path]) -> None:
    material = material_of(folders)

    def trial(**changes: object) -> tuple[np.ndarray, np.ndarray]:
        made = make_mix(material, replace(BASE, **changes), 1)
        assert made.id == "a/04-0"
        return made.reference, made.noisy

    clean, noisy = trial()
    assert clean.shape == noisy.shape == (16_000,)
    assert level_of(noisy) == pytest.approx(-26)
    assert level_of(clean) - level_of(noisy - clean) == pytest.approx(5, abs=1e-6)
    for snr in (-10.0, 20.0):
        other_clean, other = trial(snr=snr)
        assert level_of(other_clean) - level_of(other - other_clean) == pytest.approx(snr, abs=1e-6)
        assert np.corrcoef(other - other_clean, noisy - clean)[0, 1] == pytest.approx(1)
        assert np.corrcoef(other_clean, clean)[0, 1] == pytest.approx(1)
    assert trial(level=-46.0)[1] == pytest.approx(0.1 * noisy)
    assert trial(level=-46.0)[0] == pytest.approx(0.1 * clean)
    assert np.array_equal(trial(clipped=0.05)[1], clip_share(noisy, 0.05))
    assert np.array_equal(trial(clipped=0.05)[0], clean)
    for band, filtered in (("narrow", narrowband), ("telephone", telephone)):
        reference, heard = trial(band=band)
        assert np.corrcoef(reference, filtered(clean))[0, 1] == pytest.approx(1)
        assert np.corrcoef(heard - reference, filtered(noisy - clean))[0, 1] == pytest.approx(
            1
        )  # the noise is filtered too
        assert level_of(reference) - level_of(heard - reference) == pytest.approx(5, abs=1e-6)
    for name in ("µ-law (G.711), 8 kHz, 64 kbit/s", "Opus, 8 kbit/s"):
        reference, heard = trial(codec=name)
        assert np.array_equal(reference, narrowband(clean))  # limited to the band of the codec
        assert np.array_equal(heard, through_codec(noisy, CODECS[name]))
    silent_clean, silent = trial(snr=None)
    assert np.array_equal(silent_clean, silent)


def test_rooms_add_late_reflections_without_delay(folders: tuple[Path, Path]) -> None:
    material = material_of(folders)
    for snr in (None, 5.0):
        made = make_mix(material, replace(BASE, t60=0.5, snr=snr), 0)
        dry = make_mix(material, replace(BASE, snr=None), 0).reference
        assert find_delay(dry, made.reference) == find_delay(dry, made.noisy) == 0
        # Direct sound and early reflections have more than half of the energy.
        distance = level_of(made.reference) - level_of(made.noisy - made.reference)
        assert 0 < distance < 15


def test_rooms_reverberate_the_speech_before_the_crop(folders: tuple[Path, Path]) -> None:
    material = material_of(folders)
    crop = material.speech(ALL, 0, RATE // 2)
    assert len(crop.before) > 1000
    made = make_mix(material, replace(BASE, t60=0.5, snr=None), 0)
    response = room_response(np.random.default_rng([3, 0, _ROOM]), RATE, 0.5, DIRECT_TO_REVERBERANT)
    heard, cut_off = (in_room(before, crop.samples, *response)[1] for before in (crop.before, crop.before[:0]))
    # Up to the level.
    assert np.corrcoef(made.noisy, heard)[0, 1] == pytest.approx(1, abs=1e-9)
    assert np.corrcoef(made.noisy, cut_off)[0, 1] < 0.9999


@pytest.mark.parametrize("kind", ["rain", "street", "white", "pink", "babble"])
def test_noises_are_reproducible(folders: tuple[Path, Path], kind: str) -> None:
    condition = Condition(noise=kind)
    first, again = (make_mix(material_of(folders), condition, 2).noisy for _ in range(2))
    assert np.array_equal(first, again)
    other = make_mix(material_of(folders), BASE, 2).noisy
    assert np.corrcoef(first, other)[0, 1] < 0.999
    assert level_of(first) == pytest.approx(-26)


def test_unusable_files_are_reported_and_replaced(tmp_path: Path) -> None:
    save(tmp_path / "speech/x.wav", speech_like(1.2))
    (tmp_path / "speech/y.wav").write_bytes(b"RIFF")
    save(tmp_path / "noise/silent.wav", np.zeros(8000))
    (tmp_path / "noise/broken.wav").write_bytes(b"")
    material = Material(find_pool(tmp_path / "speech", tmp_path / "noise", None), 5, 1.0, 0)
    assert material.utterances[ALL] == ["x"]
    with pytest.raises(UserError, match="no noise file of 'all' can be used"):
        material.read_noises()
    assert {Path(path).name for path in material.problems} == {"y.wav", "silent.wav", "broken.wav"}
    save(tmp_path / "noise/good.wav", np.random.default_rng(0).uniform(-1, 1, 8000))
    better = Material(find_pool(tmp_path / "speech", tmp_path / "noise", None), 5, 1.0, 0)
    better.read_noises()
    assert better.noises == ["white", "pink"]  # no categories with one category, no babble with one speaker
    assert level_of(make_mix(better, BASE, 0).noisy) == pytest.approx(-26)
