"""Means, confidence intervals, the table and the report files."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from metrics.score import METRICS, PairScores
from metrics.summary import format_table, summarise, write_report


def scores(name: str, value: float, reason: str | None = None) -> PairScores:
    return PairScores(name, dict.fromkeys(METRICS, value), reason)


THREE_AND_A_FAILURE = [scores("a", 1.0), scores("b", 2.0), scores("c", math.nan, "silent"), scores("d", 3.0)]


def test_mean_and_interval_by_hand() -> None:
    # Standard deviation 1, t(0.975; 2) = 4.302653, √3 files.
    pesq = summarise(THREE_AND_A_FAILURE)["pesq"]
    assert (pesq.mean, pesq.files) == (2.0, 3)
    assert pesq.ci95 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)


def test_one_file_has_no_interval_and_none_no_mean() -> None:
    one = summarise([scores("a", 1.5)])["stoi"]
    assert (one.mean, one.files) == (1.5, 1)
    assert math.isnan(one.ci95)
    none = summarise([scores("a", math.nan, "silent")])["stoi"]
    assert math.isnan(none.mean)
    assert none.files == 0


def test_table_names_the_version_and_counts_the_files() -> None:
    lines = format_table(THREE_AND_A_FAILURE, "loizou").splitlines()
    assert lines[0].startswith("4 files, 1 failed; composite measures 'loizou': without the 1/32768")
    assert [line.split()[0] for line in lines[2:]] == [
        *("PESQ", "CSIG", "CBAK", "COVL", "SSNR", "STOI", "ESTOI", "SI-SDR")
    ]
    assert lines[2].split() == ["PESQ", "2.0000", "±", "2.4841", "3"]
    assert "'published': with the lineage's 1/32768" in format_table(THREE_AND_A_FAILURE, "published")


def test_table_without_any_score_has_dashes() -> None:
    assert format_table([scores("a", math.nan, "silent")], "published").splitlines()[2].split() == [
        *("PESQ", "-", "-", "0")
    ]


def test_report_files(tmp_path: Path) -> None:
    third = 1 / 3
    results = [scores("sub/a, b", third), scores("c", math.nan, "silent")]
    write_report(tmp_path / "new" / "report", results, "published", [Path("x.wav")])
    folder = tmp_path / "new" / "report"
    assert sorted(path.name for path in folder.iterdir()) == ["scores.csv", "summary.json"]
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == ["sub/a, b", "c"]
    assert list(rows[0]) == ["file", *METRICS]
    assert float(rows[0]["pesq"]) == third
    assert rows[1]["pesq"] == "NaN"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["composite"] == "published"
    assert (summary["files"], summary["failed"], summary["unpaired"]) == (2, {"c": "silent"}, ["x.wav"])
    assert summary["metrics"]["pesq"] == {"mean": third, "ci95": None, "files": 1}
