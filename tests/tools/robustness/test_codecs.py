"""Codecs: G.711 against its table, and that what comes back is in time with what went in."""

from __future__ import annotations

import numpy as np
import pytest

import tools.robustness.codecs
from cli import UserError
from tests.fixtures.signals import level_of, speech_like
from tools.robustness.codecs import CODECS, Codec, available_codecs, code, delay_of, shifted, through_codec
from tools.robustness.degradations import narrowband

MU_LAW = next(codec for codec in CODECS.values() if codec.coding == "ULAW")
NAMES = list(CODECS)
SPEECH = 0.3 * speech_like(2)


def test_mu_law_is_that_of_the_recommendation() -> None:
    """ITU-T G.711, table 2: sixteen values in each of eight segments, in steps of 8, 16, … 1024 of 32768."""
    ramp = np.arange(-32_768, 32_768) / 32_768
    values = np.unique(np.rint(np.abs(code(ramp, MU_LAW)) * 32_768))
    expected = [((2 * step + 33) * 2**segment - 33) * 4 for segment in range(8) for step in range(16)]
    assert values.tolist() == expected
    assert expected[:3] == [0, 8, 16]
    assert expected[-1] == 32_124


def test_mu_law_follows_its_formula() -> None:
    """In the companded domain F(x) = ln(1 + 255·|x|) / ln 256 the error is about half of one of 128 steps."""
    samples = np.linspace(0.001, 0.97, 5000)
    companded = [np.log1p(255 * x) / np.log(256) for x in (samples, code(samples, MU_LAW))]
    errors = np.abs(companded[1] - companded[0])
    assert np.max(errors) < 0.8 / 128
    assert np.max(errors) > 0.4 / 128


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_back_is_in_time(name: str) -> None:
    codec = CODECS[name]
    if name not in available_codecs()[0]:
        pytest.skip(f"{name} is not in this libsndfile")
    received = through_codec(SPEECH, codec)
    assert received.shape == SPEECH.shape
    assert delay_of(SPEECH, received) == 0
    expected = narrowband(SPEECH) if codec.rate == 8000 else SPEECH
    assert np.corrcoef(expected, received)[0, 1] > 0.8
    assert not np.allclose(received, expected, atol=1e-4)


def test_the_delay_of_an_mp3_is_taken_out() -> None:
    """Without the delay it would be noise: the encoder and the decoder together have over a thousand samples."""
    codec = CODECS["MP3, 24 kbit/s"]
    if "MP3, 24 kbit/s" not in available_codecs()[0]:
        pytest.skip("no MP3 in this libsndfile")
    raw = code(SPEECH, codec)
    delay = delay_of(SPEECH, raw)
    assert np.array_equal(through_codec(SPEECH, codec), shifted(raw, delay, len(SPEECH)))
    assert level_of(SPEECH - through_codec(SPEECH, codec)) < level_of(SPEECH) - 8
    if delay:
        assert level_of(SPEECH - raw[: len(SPEECH)]) > level_of(SPEECH) - 3


@pytest.mark.parametrize("delay", [-700, -1, 0, 1, 1105])
def test_delays_are_found_and_undone(delay: int) -> None:
    noise = np.random.default_rng(0).standard_normal(9000)
    late = shifted(noise, -delay, len(noise))
    assert delay_of(noise, late) == delay
    back = shifted(late, delay, len(noise))
    span = slice(max(-delay, 0), len(noise) - max(delay, 0))
    assert np.array_equal(back[span], noise[span])


def test_samples_beyond_full_scale_are_clipped_not_wrapped() -> None:
    loud = 4 * SPEECH / np.max(np.abs(SPEECH))
    received = through_codec(loud, MU_LAW)
    assert received @ loud > 0
    assert np.max(np.abs(received)) < 1.5


def test_what_the_library_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"plain": Codec("WAV", "PCM_16"), "missing": Codec("WAV", "MPEG_LAYER_III", 16_000, 0.5)}
    monkeypatch.setattr(tools.robustness.codecs, "CODECS", there)
    found, lines = available_codecs()
    assert list(found) == ["plain"]
    assert len(lines) == 1
    assert lines[0].startswith("missing: left out: WAV MPEG_LAYER_III: not in this libsndfile (")
    with pytest.raises(UserError, match="WAV MPEG_LAYER_III"):
        through_codec(SPEECH, there["missing"])
