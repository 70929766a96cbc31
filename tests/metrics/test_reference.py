"""Scores of real files against reference values from the code of the published lineage."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from data.file_lists import Utterance, audio_by_id, evenly_spaced
from metrics.composite import VARIANTS, Variant
from metrics.score import PairScores, score_pair, score_pairs
from metrics.summary import summarise
from tests.fixtures.commands import ROOT
from utils.processes import available_cores

SHARED = ROOT.parent / "shared"
# The reference's STOI is another port of the algorithm, which finds other frames silent in some files.
TOLERANCES = {"pesq": 1e-6, "csig": 1e-3, "cbak": 1e-3, "covl": 1e-3, "ssnr": 1e-3, "stoi": 2e-2}
NOISY_MEANS: dict[Variant, dict[str, float]] = {
    "published": {"csig": 3.4881, "cbak": 2.5542, "covl": 2.7430},
    "loizou": {"csig": 3.3461, "cbak": 2.4425, "covl": 2.6316},
}
SUFFIXES: dict[Variant, str] = {"published": "", "loizou": "_loizou"}

pytestmark = pytest.mark.skipif(not (SHARED / "vbd_test").is_dir(), reason="no reference data beside the project")


def reference(table: str) -> dict[str, dict[str, float]]:
    with (SHARED / "reference" / table).open(encoding="utf-8", newline="") as stream:
        return {
            Path(row["file"]).stem: {name: float(row[name]) for name in TOLERANCES} for row in csv.DictReader(stream)
        }


def utterances(folder: str) -> list[Utterance]:
    clean = audio_by_id(SHARED / "vbd_test/clean")
    return [Utterance(id_, clean[id_], path) for id_, path in audio_by_id(SHARED / folder).items()]


def check(results: list[PairScores], expected: dict[str, dict[str, float]]) -> None:
    for result in results:
        assert result.reason is None
        for name, tolerance in TOLERANCES.items():
            value = expected[result.id][name]
            assert result.values[name] == pytest.approx(value, rel=0, abs=tolerance), (result.id, name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_noisy_files(variant: Variant) -> None:
    files = evenly_spaced(utterances("vbd_test/noisy"), 4)
    check([score_pair(file, variant) for file in files], reference(f"metrics_noisy{SUFFIXES[variant]}.csv"))


def test_enhanced_files() -> None:
    files = utterances("reference/imse/enhanced_3.373")
    assert len(files) == 8
    check([score_pair(file, "published") for file in files], reference("imse/metrics_enhanced_3.373.csv"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_whole_noisy_test_set(variant: Variant) -> None:
    expected = reference(f"metrics_noisy{SUFFIXES[variant]}.csv")
    results = score_pairs(utterances("vbd_test/noisy"), variant, available_cores())
    assert {result.id for result in results} == expected.keys()
    check(results, expected)
    summary = summarise(results)
    for name, mean in {"pesq": 1.9705, "ssnr": 1.6803, **NOISY_MEANS[variant]}.items():
        assert round(summary[name].mean, 4) == mean
        assert summary[name].files == 824
    assert summary["stoi"].mean == pytest.approx(0.9210, abs=1e-3)
    assert sum(abs(result.values["stoi"] - expected[result.id]["stoi"]) > 5e-3 for result in results) == 21
