"""Our scores of real files against those that the published lineage's own code gave them."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import pytest

from data.file_lists import Utterance, audio_by_id
from metrics.composite import VARIANTS, Variant
from metrics.score import score_pair, score_pairs
from metrics.summary import summarise
from tests.fixtures.commands import ROOT
from utils.processes import available_cores

SHARED = ROOT.parent / "shared"
TOLERANCES = {"pesq": 1e-6, "csig": 1e-3, "cbak": 1e-3, "covl": 1e-3, "ssnr": 1e-3, "stoi": 5e-3}
NOISY_MEANS: dict[Variant, dict[str, float]] = {
    "published": {"csig": 3.4881, "cbak": 2.5542, "covl": 2.7430},
    "loizou": {"csig": 3.3461, "cbak": 2.4425, "covl": 2.6316},
}
MEANS_OF_BOTH = {"pesq": 1.9705, "ssnr": 1.6803, "stoi": 0.9210}
SUFFIXES: dict[Variant, str] = {"published": "", "loizou": "_loizou"}
# The first and last of both speakers, some between, and those with a frame at STOI's threshold of silence.
SAMPLE = ["p232_001", "p232_046", "p232_105", "p232_210", "p232_305", "p232_415"]
SAMPLE += ["p257_001", "p257_090", "p257_192", "p257_331", "p257_373", "p257_434"]

needs_reference = pytest.mark.skipif(
    not (SHARED / "vbd_test").is_dir(), reason="the reference files are not beside the repository"
)


def reference(table: Path) -> dict[str, dict[str, float]]:
    with table.open(encoding="utf-8", newline="") as stream:
        return {
            Path(row["file"]).stem: {name: float(row[name]) for name in TOLERANCES} for row in csv.DictReader(stream)
        }


def utterances(folder: Path, names: list[str] | None = None) -> list[Utterance]:
    clean, other = audio_by_id(SHARED / "vbd_test/clean"), audio_by_id(folder)
    return [Utterance(name, clean[name], other[name]) for name in names or other]


@needs_reference
@pytest.mark.parametrize("variant", VARIANTS)
def test_noisy_files(variant: Variant) -> None:
    expected = reference(SHARED / f"reference/metrics_noisy{SUFFIXES[variant]}.csv")
    for utterance in utterances(SHARED / "vbd_test/noisy", SAMPLE):
        check(score_pair(utterance, variant), expected)


@needs_reference
@pytest.mark.parametrize("variant", VARIANTS)
def test_enhanced_files(variant: Variant) -> None:
    expected = reference(SHARED / f"reference/imse/metrics_enhanced_3.373{SUFFIXES[variant]}.csv")
    results = list(map(partial(score_pair, variant=variant), utterances(SHARED / "reference/imse/enhanced_3.373")))
    assert len(results) == 8
    for result in results:
        check(result, expected)


@needs_reference
@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_whole_noisy_test_set(variant: Variant) -> None:
    expected = reference(SHARED / f"reference/metrics_noisy{SUFFIXES[variant]}.csv")
    results = score_pairs(utterances(SHARED / "vbd_test/noisy"), variant, available_cores())
    assert {result.id for result in results} == expected.keys()
    for result in results:
        check(result, expected)
    summary = summarise(results)
    for name, mean in {**NOISY_MEANS[variant], **MEANS_OF_BOTH}.items():
        assert round(summary[name].mean, 4) == mean
        assert summary[name].files == 824


def check(result, expected: dict[str, dict[str, float]]) -> None:
    assert result.reason is None
    for name, tolerance in TOLERANCES.items():
        value = expected[result.id][name]
        assert result.values[name] == pytest.approx(value, rel=0, abs=tolerance), (result.id, name)
