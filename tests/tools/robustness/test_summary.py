"""Tables, CSV and JSON of scores that were made up, against figures worked by hand; the picture; parts of a run."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metrics.score import METRICS
from tests.fixtures.signals import speech_like, with_noise
from tools.robustness import measure as measuring
from tools.robustness.blind import BlindScores, blind_csv, blind_json, blind_markdown
from tools.robustness.chart import draw
from tools.robustness.measure import Job, TrialScores, measure, score
from tools.robustness.mixes import Trial
from tools.robustness.plan import AXES, BASE, Axis, Condition, all_conditions, make_axes
from tools.robustness.summary import as_csv, as_json, as_markdown, harms, speaker_gains

LOUD = replace(BASE, snr=10.0)
AXIS = Axis("noise", "noise", {"all files": BASE, "loud": LOUD})


def scored(id_: str, noisy: float, enhanced: float) -> TrialScores:
    """All metrics alike."""
    return TrialScores(id_, dict.fromkeys(METRICS, noisy), {"net": dict.fromkeys(METRICS, enhanced)})


# Gains 1, 2, 3, 4: mean 2.5, deviation sqrt(5/3), t of three degrees of freedom 3.1824: ± 2.0543.
BETTER = [scored(f"p{number}-x", 1, 1 + number) for number in (1, 2, 3, 4)]
WORSE = [scored(f"p{number}-x", 3, 1.9 + number / 25) for number in (1, 2, 3, 4)]
RESULTS = {BASE: BETTER, LOUD: WORSE}


def test_the_tables() -> None:
    text = as_markdown([AXIS], RESULTS, ["net"], ["A note."])
    assert text.startswith("A note.\n\n**PESQ**")
    assert "| noise | all files | 1.00 | +2.50 ± 2.05 |\n|  | loud | 3.00 | -1.00 ± 0.08 |\n" in text
    assert "| noise | all files | 1.000 | +2.500 ± 2.054 |" in text
    # Means over both conditions: (1 − 1.06) / 2, (2 − 1.02) / 2, (3 − 0.98) / 2, (4 − 0.94) / 2.
    assert "| net | 4 | +0.13 | +0.75 | +1.37 | p1 -0.03, p2 +0.49, p3 +1.01 |" in text
    assert "- net: noise loud: PESQ -1.00 ± 0.08, STOI -1.000 ± 0.082" in text


def test_harm_is_what_is_certain() -> None:
    assert {(one.label, one.metric) for one in harms([AXIS], RESULTS, "net")} == {
        ("loud", metric) for metric in ("pesq", "stoi", "si_sdr")
    }
    uncertain = {BASE: BETTER, LOUD: [scored("a", 2, 1.5), scored("b", 2, 2.1), scored("c", 2, 1.5)]}
    assert harms([AXIS], uncertain, "net") == []


def test_speakers_are_sorted_and_those_without_a_score_left_out() -> None:
    results = {BASE: [scored("b-1", 1, 3), scored("a-1", 1, 1.5), scored("a-2", 1, 1.7), scored("c-1", 1, math.nan)]}
    axis = Axis("snr", "SNR", {"5": BASE})
    assert speaker_gains([axis], results, "net", "pesq") == pytest.approx({"a": 0.6, "b": 2})
    assert "Speakers" not in as_markdown([axis], results, ["net"], [])


def test_json_and_csv_have_all() -> None:
    results = {BASE: BETTER, LOUD: [scored("q", math.nan, 1)]}
    content = json.loads(json.dumps(as_json([AXIS], results, ["net"], {"seed": 0}), allow_nan=False))
    assert content["settings"] == {"seed": 0}
    good = content["axes"]["noise"]["all files"]
    assert good["files"] == 4
    assert good["noisy"]["stoi"] == 1
    assert good["net"]["pesq"] == {"mean": 3.5, "gain": 2.5, "ci95": 2.0543, "files": 4}
    assert content["axes"]["noise"]["loud"]["net"]["pesq"] == {"mean": 1, "gain": None, "ci95": None, "files": 0}
    rows = list(csv.DictReader(io.StringIO(as_csv([AXIS], results, ["net"]))))
    assert len(rows) == 5
    assert rows[0]["condition"] == "all files"
    assert (rows[1]["file"], rows[1]["noisy_pesq"], rows[1]["enhanced_si_sdr"]) == ("p2-x", "1", "3")
    assert rows[4]["noisy_pesq"] == "NaN"


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_picture_has_a_panel_for_each_axis_and_metric(kind: str) -> None:
    axes = [AXIS, Axis("snr", "SNR, dB", {"5": BASE, "10": LOUD})]
    picture = draw(axes, RESULTS, ["net"], kind)
    assert picture == draw(axes, RESULTS, ["net"], kind)
    if kind == "png":
        assert picture.startswith(b"\x89PNG")
    else:
        text = picture.decode()
        for label, count in (("SNR, dB", 1), ("PESQ", 2), ("STOI", 2), ("all files", 1), ("noisy", 1), ("net", 1)):
            assert len(re.findall(f">{label}</text>", text)) == count, label


def test_axes_have_what_there_is() -> None:
    axes = make_axes(AXES, ["rain"], [], {"en": "all"})
    assert [axis.name for axis in axes] == ["snr", "noise", "reverb", "reverb_alone", "level", "clipping", "band"]
    conditions = all_conditions(axes)
    assert conditions[0] == BASE
    assert len(set(conditions)) == len(conditions)
    assert all(BASE in axis.conditions.values() for axis in axes if axis.name != "reverb_alone")
    assert [axis.name for axis in make_axes(["group", "codec"], [], ["c"], {"en": "en"})] == ["codec", "group"]


def test_scores_of_a_trial() -> None:
    clean = speech_like(1)
    noisy = with_noise(clean, 5)
    same = score(Job("x", clean, clean, {"net": noisy}))
    assert math.isnan(same.noisy["si_sdr"])
    assert same.noisy["pesq"] > 4.5
    assert same.enhanced["net"]["si_sdr"] == pytest.approx(5, abs=0.5)
    assert same.reason == ""
    silent = score(Job("x", clean, noisy, {"net": np.zeros(16_000)}))
    assert "net: the other signal is silent" in silent.reason
    assert math.isnan(silent.enhanced["net"]["pesq"])
    assert silent.noisy["pesq"] > 1


def test_a_run_goes_on_behind_the_parts_that_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Condition, int]] = []

    def one_by_one(*arguments: Any) -> Iterator[tuple[int, object]]:
        items: Sequence = arguments[1]
        for index in reversed(range(len(items))):  # they may finish in any order
            yield index, scored(items[index].id, 0, 1)

    def make(condition: Condition, index: int) -> Trial:
        if condition == LOUD and broken:
            raise OSError("the disk is full")
        made.append((condition, index))
        return Trial(str(index), np.ones(10), np.ones(10))

    def run(settings: object = 1) -> dict[Condition, list[TrialScores]]:
        return measure({LOUD: 2, BASE: 3}, make, {}, tmp_path, settings, 1, quiet=True)

    monkeypatch.setattr(measuring, "run_in_processes", one_by_one)
    broken = True
    with pytest.raises(OSError, match="full"):
        run()
    assert len(made) == 3
    assert len(list(tmp_path.iterdir())) == 1
    broken = False
    first = run()
    assert made[3:] == [(LOUD, 1), (LOUD, 0)]
    assert {condition: [each.id for each in rows] for condition, rows in first.items()} == {
        LOUD: ["0", "1"],
        BASE: ["0", "1", "2"],
    }
    assert run() == first
    assert len(made) == 5
    next(tmp_path.iterdir()).write_text('{"fingerprint": "cut off')
    assert run() == first
    assert len(made) in (7, 8)
    run(settings=2)
    assert len(made) in (12, 13)


def test_recordings_without_a_clean_version() -> None:
    def scores(value: float) -> dict[str, float]:
        return {"ovrl_mos": value, "sig_mos": value, "bak_mos": value, "p808_mos": value}

    rows = [BlindScores(f"r{number}", scores(1), {"net": scores(1 + number)}) for number in (1, 2, 3, 4)]
    text = blind_markdown(rows, ["net"])
    assert "**DNSMOS** of 4 files" in text
    assert "| overall | 1.00 | +2.50 ± 2.05 |" in text
    assert blind_json(rows, ["net"])["net"]["bak_mos"] == {"gain": 2.5, "ci95": 2.0543}
    assert blind_json(rows[:1], ["net"])["net"]["bak_mos"] == {"gain": 1, "ci95": None}
    assert blind_csv(rows, ["net"]).splitlines()[1] == "r1,net,1,1,1,1,2,2,2,2"
