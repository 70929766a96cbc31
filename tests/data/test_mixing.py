"""Dynamic mixing: SNRs and gains, synthetic rooms, silence, and repeatability."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import data.mixing
from cli import UserError
from config import DataConfig, MixConfig
from data.dataset import AudioCache, Sound, split_long
from data.levels import mean_power
from data.mixing import (
    MixedDataset,
    MixedUtterances,
    Mixer,
    add_noise,
    check_sounds,
    random_filter,
    room_response,
)
from tests.fixtures.recordings import NOISE, RATE, save
from tests.fixtures.signals import speech_like

SEGMENT = 1000
DATA = DataConfig(RATE, SEGMENT)
PLAIN = MixConfig(snr_low=7, snr_high=7, gain_low=0, gain_high=0, reverb_share=0, validation_mixes=4)
WILD = MixConfig(snr_low=-5, snr_high=20, gain_low=-6, gain_high=6, reverb_share=0.5, validation_mixes=4)
SPEECH = speech_like(0.4)
SILENCE = np.zeros(1500)


def save_all(folder: Path, kind: str, signals: Sequence[np.ndarray]) -> list[Sound]:
    sounds = [Sound(folder / f"{kind}{index}.wav") for index in range(len(signals))]
    for sound, signal in zip(sounds, signals, strict=True):
        save(sound.path, signal)
    return sounds


def dataset(
    folder: Path,
    speech: Sequence[np.ndarray],
    noise: Sequence[np.ndarray],
    mix: MixConfig = PLAIN,
    keep: bool = True,
    normalize_level: bool = True,
) -> MixedDataset:
    """Return a dataset with seed 1 of files with these signals."""
    files = save_all(folder, "speech", speech), save_all(folder, "noise", noise)
    config, cache = replace(DATA, normalize_level=normalize_level), AudioCache(RATE, keep)
    return MixedDataset(files[0], Mixer(*files, [], cache, mix, RATE), cache, config, mix, 1)


def snr_of(clean: np.ndarray, noisy: np.ndarray) -> float:
    """Return the SNR in dB of float32 signals."""
    return 10 * np.log10(mean_power(clean) / mean_power(noisy.astype(np.float64) - clean))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("snr", [-10.0, 0.0, 5.0, 20.0])
def test_add_noise_scales_to_the_snr_and_keeps_the_dtype(snr: float, kind: type) -> None:
    noise = np.random.default_rng(0).uniform(-3, 3, len(SPEECH)).astype(kind)
    noisy = add_noise(SPEECH.astype(kind), noise, snr)
    assert noisy.dtype == kind
    added = noisy - SPEECH.astype(kind)
    assert 10 * np.log10(mean_power(SPEECH) / mean_power(added)) == pytest.approx(snr, abs=1e-5)
    assert np.corrcoef(added, noise)[0, 1] == pytest.approx(1)


def test_snrs_and_gains_fill_their_ranges(tmp_path: Path) -> None:
    source = dataset(tmp_path, [SPEECH], [NOISE], replace(WILD, reverb_share=0))
    crops = [source.crop(epoch, 0) for epoch in range(200)]
    snrs = [snr_of(*crop[:2]) for crop in crops]
    gains = [10 * np.log10(mean_power(crop.noisy)) for crop in crops]
    assert (min(snrs), max(snrs)) == pytest.approx((-5, 20), abs=1)
    assert (min(gains), max(gains)) == pytest.approx((-6, 6), abs=0.5)
    assert abs(np.corrcoef(snrs, gains)[0, 1]) < 0.2


def test_the_gain_is_applied_after_normalisation(tmp_path: Path) -> None:
    mix, gain = replace(PLAIN, gain_low=6, gain_high=6), 10 ** (6 / 20)
    plain = dataset(tmp_path, [SPEECH], [NOISE]).crop(2, 0)
    louder = dataset(tmp_path, [SPEECH], [NOISE], mix).crop(2, 0)
    assert plain.clean.dtype == plain.noisy.dtype == np.float32
    assert mean_power(plain.noisy) == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(louder[:2], np.multiply(plain[:2], gain), rtol=1e-6)
    clean = dataset(tmp_path, [np.full(1500, 0.125)], [NOISE], mix, normalize_level=False).crop(2, 0).clean
    np.testing.assert_allclose(clean, np.full(SEGMENT, 0.125 * gain), rtol=1e-6)


def test_short_speech_is_padded(tmp_path: Path) -> None:
    clean, noisy, _ = dataset(tmp_path, [np.full(600, 0.25)], [NOISE]).crop(0, 0)
    assert clean[0] > 0
    assert np.array_equal(clean, np.repeat([clean[0], 0], [600, 400]))
    assert noisy[600:].all()


def test_short_noise_is_repeated_from_a_random_position(tmp_path: Path) -> None:
    period = np.arange(1, 301) / 1000
    source = dataset(tmp_path, [np.full(1500, 0.25)], [period])
    starts: set[int] = set()
    for epoch in range(20):
        clean, noisy, _ = source.crop(epoch, 0)
        noise = noisy - clean
        np.testing.assert_allclose(noise[300:], noise[:-300], atol=1e-5)
        starts.add(int(np.argmin(noise[:300])))
    assert len(starts) > 15
    assert max(starts) > 250


def test_noises_are_drawn_by_length_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.mixing, "LONGEST_NOISE", 0.3)
    # 0.1 s of positive noise, and 1 s of negative noise that counts as 0.3 s.
    source = dataset(tmp_path, [SPEECH], [np.full(1600, 0.5), np.full(16_000, -0.5)])
    drawn = [np.subtract(crop.noisy, crop.clean).mean() > 0 for crop in (source.crop(epoch, 0) for epoch in range(400))]
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.07)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize(
    ("speech", "noise"), [(SILENCE, NOISE), (SPEECH, SILENCE), (SILENCE, SILENCE), (SILENCE[:5], NOISE[:5])]
)
def test_silence_gives_finite_crops(tmp_path: Path, speech: np.ndarray, noise: np.ndarray, share: float) -> None:
    source = dataset(tmp_path, [speech], [noise], replace(WILD, reverb_share=share))
    for epoch in range(3):
        crop = source.crop(epoch, 0)
        assert np.isfinite(crop[:2]).all()
        assert crop.clean.any() == speech.any()
        assert crop.noisy.any() == (speech.any() or noise.any())


def test_nearly_silent_segments_are_redrawn(tmp_path: Path) -> None:
    # 40 % of the positions have sound: eleven draws miss it once in 250 times.
    speech = np.concatenate([SPEECH[:2000], np.full(4000, 1e-4)])
    noise = np.concatenate([NOISE[:2000, 0], np.zeros(4000)])
    source = dataset(tmp_path, [speech], [noise])
    crops = [source.crop(epoch, 0) for epoch in range(30)]
    # The level is normalised, so that the faint part is recognised by being constant.
    constant = [np.ptp(crop.clean) < 1e-3 for crop in crops]
    without_noise = [np.array_equal(*crop[:2]) for crop in crops]
    assert sum(constant) <= 1
    assert sum(without_noise) <= 1


def test_reverberation_of_earlier_speech_reaches_into_the_crop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An early echo after 20 samples, which belongs to the target, and a late one after 300.
    whole = np.zeros(301, np.float32)
    whole[[0, 20, 300]] = 1, 0.5, -0.25
    monkeypatch.setattr(data.mixing, "room_response", lambda *_: (whole, whole[:100]))
    mix = replace(PLAIN, snr_low=100, snr_high=100, reverb_share=1)
    speech = np.round(SPEECH * 32_768) / 32_768
    echoed = {"clean": np.convolve(speech, whole[:100]), "noisy": np.convolve(speech, whole)}
    source = dataset(tmp_path, [speech], [NOISE], mix)
    for epoch in range(5):
        crop = source.crop(epoch, 0)
        # Find the start of the crop by correlation.
        overlap = np.correlate(echoed["noisy"], crop.noisy)
        energy = np.convolve(echoed["noisy"] ** 2, np.ones(SEGMENT), "valid")
        start = int(np.argmax(overlap / np.sqrt(energy)))
        factor = 1 / np.sqrt(mean_power(echoed["noisy"][start : start + SEGMENT]))
        for name, expected in echoed.items():
            piece = factor * expected[start : start + SEGMENT]
            np.testing.assert_allclose(getattr(crop, name), piece, atol=1e-3)


def test_the_proportion_and_range_of_rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[tuple[int, float, float]] = []

    def spy(random: np.random.Generator, rate: int, decay: float, ratio: float) -> tuple[np.ndarray, np.ndarray]:
        rooms.append((rate, decay, ratio))
        return room_response(random, rate, decay, ratio)

    monkeypatch.setattr(data.mixing, "room_response", spy)
    source = dataset(tmp_path, [SPEECH], [NOISE], replace(WILD, reverb_share=0.25))
    for epoch in range(400):
        source.crop(epoch, 0)
    assert 70 <= len(rooms) <= 130
    rates, decays, ratios = zip(*rooms, strict=True)
    assert set(rates) == {RATE}
    assert (min(decays), max(decays)) == pytest.approx((0.1, 0.6), abs=0.03)
    assert (min(ratios), max(ratios)) == pytest.approx((-5, 15), abs=1)


def test_room_responses_decay_exponentially() -> None:
    for seed, (decay, ratio) in enumerate(product([0.1, 0.25, 0.6], [-5, 0, 15])):
        whole, early = room_response(np.random.default_rng(seed), RATE, decay, ratio)
        tail = whole[1:].astype(np.float64)
        assert whole[0] == 1
        assert whole.dtype == np.float32
        assert np.array_equal(early, whole[: 1 + RATE // 20])
        assert len(tail) == decay * RATE
        assert -10 * np.log10(np.sum(tail**2)) == pytest.approx(ratio, abs=1e-5)
        # 60 dB over the whole length: 20 dB from one third to the next.
        thirds = [mean_power(third) for third in np.array_split(tail, 3)]
        assert 10 * np.log10(thirds[0] / thirds[1]) == pytest.approx(20, abs=3)
        assert 10 * np.log10(thirds[1] / thirds[2]) == pytest.approx(20, abs=3)


def test_a_crop_follows_from_epoch_and_index(tmp_path: Path) -> None:
    sides = [SPEECH, SPEECH], [NOISE, NOISE[::2]]
    kept, anew = dataset(tmp_path, *sides, WILD), dataset(tmp_path, *sides, WILD, keep=False)
    assert len(kept) == 2
    crops = {(epoch, index): kept.crop(epoch, index) for epoch in range(3) for index in range(2)}
    for (epoch, index), crop in reversed(crops.items()):
        assert np.array_equal(anew.crop(epoch, index)[:2], crop[:2])
    assert len({crop.noisy.tobytes() for crop in crops.values()}) == 6


def test_validation_mixes_are_fixed_and_spread_over_the_snr_range(tmp_path: Path) -> None:
    speech = save_all(tmp_path, "speech", [speech_like(0.2, seed=seed) for seed in range(3)])
    noise = save_all(tmp_path, "noise", [NOISE[:5000], NOISE[5000:]])
    recordings = AudioCache(RATE, True)
    mix = replace(WILD, snr_low=0, snr_high=8, reverb_share=0)
    mixer = Mixer(speech, noise, [], recordings, mix, RATE)
    first, again, other = (list(MixedUtterances(speech, mixer, recordings, mix, seed)) for seed in (1, 1, 2))
    assert [snr_of(mixed.clean, mixed.noisy) for mixed in first] == pytest.approx([1, 3, 5, 7], abs=1e-3)
    names = [mixed.id.split("_")[1] for mixed in first]
    assert sorted(names[:3]) == ["speech0", "speech1", "speech2"]
    assert names[3] == names[0]
    assert [mixed.id[0] for mixed in first] == list("0123")
    for name, mixed, same, different in zip(names, first, again, other, strict=True):
        assert np.array_equal(mixed.clean, recordings.samples(tmp_path / f"{name}.wav"))
        assert np.array_equal(mixed.noisy, same.noisy)
        assert not np.array_equal(mixed.noisy, different.noisy)


def test_silent_files_alone_are_rejected(tmp_path: Path) -> None:
    sound, silent = save_all(tmp_path, "x", [NOISE, SILENCE])
    recordings = AudioCache(RATE, True)
    missing = Sound(tmp_path / "missing.wav")  # not read
    check_sounds([silent, sound, missing], "SPEECH", recordings)
    with pytest.raises(UserError, match="SPEECH: every file is silent: 1 "):
        check_sounds([silent, silent], "SPEECH", recordings)


def test_a_single_speaker_has_no_babble(tmp_path: Path) -> None:
    source = dataset(tmp_path, [SPEECH], [NOISE], replace(PLAIN, babble_share=1.0))
    crop = source.crop(0, 0)
    assert snr_of(crop.clean, crop.noisy) == pytest.approx(7, abs=1e-3)


def test_crops_without_noise(tmp_path: Path) -> None:
    source = dataset(tmp_path, [SPEECH], [NOISE], replace(PLAIN, noise_free_share=0.3))
    crops = [source.crop(epoch, 0) for epoch in range(200)]
    without = [np.array_equal(crop.clean, crop.noisy) for crop in crops]
    assert 40 <= sum(without) <= 80
    assert [crop.dry for crop in crops] == [not each for each in without]


def test_band_limits_hold_for_target_and_mixture(tmp_path: Path) -> None:
    source = dataset(tmp_path, [SPEECH], [NOISE], replace(PLAIN, band_share=1))
    lowest: set[bool] = set()
    for epoch in range(20):
        crop = source.crop(epoch, 0)
        assert crop.clean.dtype == crop.noisy.dtype == np.float32
        for signal in crop[:2]:
            power = np.abs(np.fft.rfft(signal * np.hanning(SEGMENT))) ** 2
            assert power[int(4200 / RATE * SEGMENT) :].sum() < 1e-3 * power.sum()
        power = np.abs(np.fft.rfft(crop.noisy * np.hanning(SEGMENT))) ** 2
        lowest.add(bool(power[: int(150 / RATE * SEGMENT)].max() < 1e-2 * power.max()))
        # At an SNR of 7 dB the correlation is 0.91; the bands remove noise.
        assert np.corrcoef(*crop[:2])[0, 1] > 0.85
    assert lowest == {False, True}


def test_clipping_limits_the_loudest_samples(tmp_path: Path) -> None:
    source = dataset(tmp_path, [SPEECH], [NOISE], replace(PLAIN, clip_share=1))
    shares: list[float] = []
    for epoch in range(50):
        noisy = np.abs(source.crop(epoch, 0).noisy)
        shares.append(float(np.mean(noisy >= noisy.max() * (1 - 1e-6))))
    assert 0.001 <= min(shares) < 0.003
    assert 0.1 < max(shares) <= 0.2


def test_codecs_keep_level_and_position(tmp_path: Path) -> None:
    mix = replace(PLAIN, snr_low=60, snr_high=60, codec_share=1)
    source = dataset(tmp_path, [speech_like(1.0)], [NOISE], mix)
    source._data = replace(DATA, segment_size=RATE // 2)
    for epoch in range(20):
        clean, noisy, _ = source.crop(epoch, 0)
        assert not np.allclose(clean, noisy, atol=1e-3)
        assert np.dot(clean, noisy) / np.dot(clean, clean) == pytest.approx(1, abs=0.3)
        assert np.corrcoef(clean, noisy)[0, 1] > 0.7


def test_babble_has_voices_of_other_speakers_only(tmp_path: Path) -> None:
    # Each speaker is a tone; the crop's own one is 1000 Hz.
    tones = [np.sin(2 * np.pi * hertz * np.arange(RATE // 4) / RATE) / 4 for hertz in (1000, 2000, 4000)]
    files = [Sound(tmp_path / f"{name}_1.wav") for name in "abc"]
    for sound, tone in zip(files, tones, strict=True):
        save(sound.path, tone)
    (noise,) = save_all(tmp_path, "noise", [NOISE])
    cache, mix = AudioCache(RATE, True), replace(PLAIN, babble_share=1)
    mixer = Mixer(files, [noise], [], cache, mix, RATE)
    for seed in range(10):
        clean, noisy, dry = mixer.mix(np.random.default_rng(seed), files[0], cache.samples(files[0]), 0, SEGMENT)
        assert dry
        spectrum = np.abs(np.fft.rfft(noisy - clean))
        loud = {int(bin) * RATE // SEGMENT for bin in np.flatnonzero(spectrum > 1e-2 * spectrum.max())}
        assert loud <= {2000, 4000}
        assert snr_of(clean, noisy) == pytest.approx(7, abs=1e-3)


def test_a_second_noise_is_added(tmp_path: Path) -> None:
    tones = [np.sin(2 * np.pi * hertz * np.arange(RATE // 4) / RATE) / 4 for hertz in (2000, 4000)]
    source = dataset(tmp_path, [SPEECH], tones, replace(PLAIN, second_noise_share=1))
    kinds: set[frozenset[int]] = set()
    for epoch in range(20):
        clean, noisy, _ = source.crop(epoch, 0)
        assert snr_of(clean, noisy) == pytest.approx(7, abs=1e-3)
        spectrum = np.abs(np.fft.rfft(noisy - clean))
        kinds.add(frozenset(int(bin) * RATE // SEGMENT for bin in np.flatnonzero(spectrum > 0.1 * spectrum.max())))
    assert frozenset([2000, 4000]) in kinds


def test_random_filters_keep_the_power_and_change_the_spectrum_smoothly() -> None:
    impulse = np.zeros(4096)
    impulse[100] = 1
    rng, again = np.random.default_rng(1), np.random.default_rng(1)
    for _ in range(100):
        b1, b2, a1, a2 = again.uniform(-0.375, 0.375, 4)
        filtered = random_filter(rng, impulse)
        z = np.exp(-2j * np.pi * np.arange(2049) / 4096)
        expected = np.abs((1 + b1 * z + b2 * z**2) / (1 + a1 * z + a2 * z**2))
        response = np.abs(np.fft.rfft(filtered))
        np.testing.assert_allclose(response / response.max(), expected / expected.max(), rtol=0, atol=1e-5)
        assert np.sum(np.square(filtered, dtype=np.float64)) == pytest.approx(1, abs=1e-5)
    assert not random_filter(rng, np.zeros(100)).any()


def test_speech_and_noise_are_filtered(tmp_path: Path) -> None:
    low, high = (np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE) / 4 for hertz in (480, 6000))
    source = dataset(tmp_path, [low + high], [low + high], replace(PLAIN, filter_share=0.5))
    filtered = Counter[tuple[bool, ...]]()
    for epoch in range(100):
        clean, noisy, dry = source.crop(epoch, 0)
        assert dry
        assert snr_of(clean, noisy) == pytest.approx(7, abs=1e-3)
        spectra = [np.abs(np.fft.rfft(signal * np.hanning(SEGMENT))) for signal in (clean, noisy - clean)]
        ratios = [spectrum[6000 * SEGMENT // RATE] / spectrum[480 * SEGMENT // RATE] for spectrum in spectra]
        filtered[tuple(abs(ratio - 1) > 0.01 for ratio in ratios)] += 1
    assert len(filtered) == 4  # speech and noise independently
    assert min(filtered.values()) >= 12


def test_speed_changes_the_pitch(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE) / 2
    source = dataset(tmp_path, [tone], [NOISE], replace(PLAIN, speed_share=0.5))
    pitches: list[float] = []
    for epoch in range(60):
        spectrum = np.abs(np.fft.rfft(source.crop(epoch, 0).clean * np.hanning(SEGMENT), 2**15))
        pitches.append(spectrum.argmax() * RATE / 2**15)
    changed = [pitch for pitch in pitches if abs(pitch - 1000) > 1]
    assert 18 <= len(changed) <= 42
    assert 850 <= min(changed) < 900
    assert 1130 < max(changed) <= 1181


@pytest.mark.parametrize("delay", [0, 960])  # 60 ms: the target is not what lies before the direct sound
def test_rooms_from_files(tmp_path: Path, delay: int) -> None:
    response = np.zeros(2000 + delay)
    response[delay + np.array([0, 100, 1500])] = 1, 0.5, -0.25  # 1500 samples are more than 50 ms
    rooms = save_all(tmp_path, "room", [response * 0.999])
    speech, noise = save_all(tmp_path, "speech", [SPEECH]), save_all(tmp_path, "noise", [NOISE])
    cache, mix = AudioCache(RATE, True), replace(PLAIN, reverb_share=1, noise_free_share=1)
    samples = cache.samples(speech[0])
    start = 2500
    target, noisy, dry = Mixer(speech, noise, rooms, cache, mix, RATE).mix(
        np.random.default_rng(0), speech[0], samples, start, SEGMENT
    )
    assert not dry
    expected = 0.999 * np.convolve(samples, response)[start : start + SEGMENT]
    early = 0.999 * np.convolve(samples, response[: delay + 800])[start : start + SEGMENT]
    np.testing.assert_allclose(noisy, expected, atol=1e-4)
    np.testing.assert_allclose(target, early, atol=1e-4)


def test_a_share_of_the_rooms_is_synthetic(tmp_path: Path) -> None:
    """The room file leaves the speech as it is, only half as loud."""
    rooms, speech = save_all(tmp_path, "room", [np.array([0.5])]), save_all(tmp_path, "speech", [SPEECH])
    noise = save_all(tmp_path, "noise", [NOISE])
    mix = replace(PLAIN, reverb_share=1, noise_free_share=1, synthetic_room_share=0.3)
    cache = AudioCache(RATE, True)
    mixer, samples = Mixer(speech, noise, rooms, cache, mix, RATE), cache.samples(speech[0])
    drawn = [mixer.mix(np.random.default_rng(seed), speech[0], samples, 0, SEGMENT).noisy for seed in range(200)]
    from_file = [np.allclose(noisy, 0.5 * samples[:SEGMENT], atol=1e-4) for noisy in drawn]
    assert 120 <= sum(from_file) <= 160


def test_long_noise_is_drawn_like_short_one(tmp_path: Path) -> None:
    """A file of five parts has the share of a file of 60 s, whichever its parts are, and any part may be drawn."""
    save(tmp_path / "long.wav", np.repeat(np.arange(1, 6) / 8, 40 * RATE))
    save(tmp_path / "short.wav", np.full(60 * RATE, -0.5))
    parts = split_long([tmp_path / "long.wav", tmp_path / "short.wav"])
    assert [len(each) for each in parts] == [5, 2]
    noises = [sound for each in parts for sound in each]
    cache = AudioCache(RATE, False)
    mixer = Mixer([Sound(tmp_path / "short.wav")], noises, [], cache, PLAIN, RATE)
    drawn = Counter(
        round(float(np.median(mixer._noise.draw(np.random.default_rng(seed), 100))), 3)  # pyright: ignore[reportPrivateUsage]
        for seed in range(300)
    )
    assert set(drawn) == {-0.5, 0.125, 0.25, 0.375, 0.5, 0.625}
    assert 115 <= drawn[-0.5] <= 185
