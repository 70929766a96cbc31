"""Scores and their summaries from made-up results, with values derived by hand; the plot; interrupted runs; DNSMOS."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from metrics.score import METRICS
from metrics.signals import ScoreError
from tests.fixtures.signals import speech_like, with_noise
from tools.robustness import scoring, summary
from tools.robustness.conditions import AXES, BASE, Axis, Condition, make_axes
from tools.robustness.dnsmos import DNSMOS, load_dnsmos, summarise_dnsmos
from tools.robustness.mixes import Mix
from tools.robustness.scoring import Job, Scores, measure, score

LOUD = replace(BASE, snr=10.0)
AXIS = Axis("noise", "noise", {"all files": BASE, "loud": LOUD})


def scored(id_: str, noisy: float, enhanced: float, metrics: Sequence[str] = tuple(METRICS)) -> Scores:
    """The same value for all metrics."""
    return Scores(id_, dict.fromkeys(metrics, noisy), {"net": dict.fromkeys(metrics, enhanced)})


# Gains 1, 2, 3, 4: mean 2.5, deviation sqrt(5/3), t of three degrees of freedom 3.1824: ± 2.0543.
BETTER = [scored(f"p{number}-x", 1, 1 + number) for number in (1, 2, 3, 4)]
WORSE = [scored(f"p{number}-x", 3, 1.9 + number / 25) for number in (1, 2, 3, 4)]
RESULTS = {BASE: BETTER, LOUD: WORSE}


def test_markdown() -> None:
    text = summary.as_markdown([AXIS], RESULTS, ["net"], "A note.")
    assert text.startswith("A note.\n\n**PESQ**")
    # The whole interval is below 0.
    assert "| noise | all files | 1.00 | +2.50 ± 2.05 |\n|  | loud | 3.00 | **-1.00 ± 0.08** |\n" in text
    assert "| noise | all files | 1.000 | +2.500 ± 2.054 |" in text
    uncertain = {BASE: BETTER, LOUD: [scored("a", 2, 1.5), scored("b", 2, 2.1), scored("c", 2, 1.5)]}
    assert "|  | loud | 2.00 | -0.30 ± 0.86 |" in summary.as_markdown([AXIS], uncertain, ["net"], "")


def test_json_and_csv() -> None:
    results = {BASE: BETTER, LOUD: [scored("q", math.nan, 1)]}
    content = json.loads(json.dumps(summary.as_json([AXIS], results, ["net"], {"seed": 0}), allow_nan=False))
    assert content["settings"] == {"seed": 0}
    assert content["axes"]["noise"]["all files"]["files"] == 4
    assert content["axes"]["noise"]["all files"]["noisy"]["stoi"] == 1
    gain = content["axes"]["noise"]["all files"]["net"]["pesq"]
    assert gain == {"mean": 3.5, "gain": 2.5, "ci95": 2.0543, "files": 4}
    assert content["axes"]["noise"]["loud"]["net"]["pesq"] == {"mean": 1, "gain": None, "ci95": None, "files": 0}
    groups = [({"axis": "noise", "condition": label}, results[key]) for label, key in AXIS.conditions.items()]
    rows = list(csv.DictReader(io.StringIO(summary.as_csv(groups, ["net"]))))
    assert len(rows) == 5
    assert (rows[0]["axis"], rows[0]["condition"], rows[0]["checkpoint"]) == ("noise", "all files", "net")
    assert (rows[1]["file"], rows[1]["noisy_pesq"], rows[1]["enhanced_si_sdr"]) == ("p2-x", "1", "3")
    assert rows[4]["noisy_pesq"] == "NaN"


def test_dnsmos_summaries() -> None:
    rows = [scored(f"r{number}", 1, 1 + number, tuple(DNSMOS)) for number in (1, 2, 3, 4)]
    text = summarise_dnsmos(rows, ["net"])
    assert "DNSMOS of 4 files" in text
    assert "| overall | 1.00 | +2.50 ± 2.05 |" in text
    assert "| overall | 1.00 | +1.00 |" in summarise_dnsmos(rows[:1], ["net"])
    assert summary.as_csv([({}, rows)], ["net"]).splitlines()[1] == "r1,net,1,1,1,1,2,2,2,2"


def test_plot_has_a_panel_for_each_axis_and_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    chart = pytest.importorskip("tools.robustness.chart")
    figures: list[Any] = []
    monkeypatch.setattr(chart.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    axes = [AXIS, Axis("snr", "SNR, dB", {"5": BASE, "10": LOUD}, ordered=True)]
    chart.draw(axes, RESULTS, ["net"])
    panels = figures[0].axes
    assert [panel.get_title() for panel in panels] == ["noise", "SNR, dB", "", ""]
    assert [panel.get_ylabel() for panel in panels] == ["PESQ", "PESQ", "STOI", "STOI"]
    assert [label.get_text() for label in panels[3].get_xticklabels()] == ["5", "10"]
    assert [label.get_text() for label in figures[0].legends[0].get_texts()] == ["noisy", "net"]
    noisy, enhanced, *_ = panels[1].lines
    assert (noisy.get_ydata().tolist(), enhanced.get_ydata().tolist()) == ([1, 3], [3.5, 2])


def test_axes() -> None:
    axes = make_axes(AXES, ["rain"], [], {"en": "all"})
    assert [axis.name for axis in axes] == ["snr", "noise", "reverb", "reverb_alone", "level", "clipping", "band"]
    assert all(BASE in axis.conditions.values() for axis in axes if axis.name != "reverb_alone")
    assert [axis.name for axis in make_axes(["group", "codec"], [], ["c"], {"en": "en"})] == ["codec", "group"]


def test_score() -> None:
    clean = speech_like(1)
    noisy = with_noise(clean, 5)
    same = score(Job("x", clean, {"noisy": clean, "net": noisy}))
    assert math.isnan(same.noisy["si_sdr"])
    assert same.noisy["pesq"] > 4.5
    assert same.enhanced["net"]["si_sdr"] == pytest.approx(5, abs=0.5)
    assert same.reason == ""
    silent = score(Job("x", clean, {"noisy": noisy, "net": np.zeros(16_000)}))
    assert silent.reason.startswith("net: ")
    assert math.isnan(silent.enhanced["net"]["pesq"])
    assert silent.noisy["pesq"] > 1


def test_scores_are_in_order_of_condition_and_utterance(monkeypatch: pytest.MonkeyPatch) -> None:
    def in_reverse(*arguments: Any) -> Iterator[tuple[int, object]]:  # results may come in any order
        items: Sequence = arguments[1]
        for index in reversed(range(len(items))):
            yield index, RuntimeError("it\ndied") if items[index].id == "5 1" else scored(items[index].id, 0, 1)

    def make(condition: Condition, index: int) -> Mix:
        return Mix(f"{condition.snr:g} {index}", np.ones(10), np.ones(10))

    monkeypatch.setattr(scoring, "run_in_processes", in_reverse)
    results = measure({LOUD: 2, BASE: 3}, make, {}, 1, quiet=True)
    names = {condition: [row.id for row in rows] for condition, rows in results.items()}
    assert names == {LOUD: ["10 0", "10 1"], BASE: ["5 0", "5 1", "5 2"]}
    assert [row.reason for row in results[BASE]] == ["", "it died", ""]
    assert math.isnan(results[BASE][1].noisy["pesq"])


def test_dnsmos_gets_samples_in_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[np.ndarray] = []

    def run(sample: np.ndarray, sr: int) -> dict[str, float]:
        assert sr == 16_000
        given.append(sample)
        return {name: float(place) for place, name in enumerate(DNSMOS)} | {"other": 9}

    package = ModuleType("speechmos.dnsmos")
    monkeypatch.setattr(package, "run", run, raising=False)
    monkeypatch.setitem(sys.modules, "speechmos", ModuleType("speechmos"))
    monkeypatch.setitem(sys.modules, "speechmos.dnsmos", package)
    dnsmos = load_dnsmos()
    assert dnsmos(np.array([0.5, -2, 3])) == {"ovrl_mos": 0, "sig_mos": 1, "bak_mos": 2, "p808_mos": 3}
    assert given[0].tolist() == [0.5, -1, 1]
    for bad in (np.zeros(100), np.array([0, np.nan])):
        with pytest.raises(ScoreError, match="DNSMOS"):
            dnsmos(bad)
    assert len(given) == 1
