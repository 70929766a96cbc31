"""The scores of many pairs in short: means with confidence intervals, as a table, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from metrics.composite import Variant
from metrics.score import METRICS, PairScores
from utils.atomic import write_text_atomically

VARIANT_NOTES: dict[Variant, str] = {
    "published": "composite measures 'published': with the lineage's 1/32768 before the WSS",
    "loizou": "composite measures 'loizou': without the 1/32768 before the WSS",
}
"""What each version of the composite measures is, in a line."""


@dataclass(frozen=True)
class Mean:
    """A mean over the files that have the score, half its 95 % confidence interval, and their number."""

    mean: float
    ci95: float
    files: int


def summarise(results: Sequence[PairScores]) -> dict[str, Mean]:
    """Mean of each metric over the pairs that have it; NaN where none has, or one alone (no interval).

    The interval is Student's t for the mean of independent files.
    """
    return {name: mean_with_interval(np.array([result.values[name] for result in results])) for name in METRICS}


def mean_with_interval(values: np.ndarray) -> Mean:
    """The mean of the values `[N]` that are not NaN, with its interval as in `summarise`."""
    values = values[~np.isnan(values)]
    count = len(values)
    if count == 0:
        return Mean(math.nan, math.nan, 0)
    if count == 1:
        return Mean(float(values[0]), math.nan, 1)
    quantile = float(stdtrit(count - 1, 0.975))
    return Mean(float(values.mean()), quantile * float(values.std(ddof=1)) / math.sqrt(count), count)


def format_table(results: Sequence[PairScores], variant: Variant) -> str:
    """The table as text, a line a metric; its heading names the composite version and counts the files."""
    failed = sum(result.reason is not None for result in results)
    lines = [
        f"{len(results)} files, {failed} failed; {VARIANT_NOTES[variant]}",
        f"{'metric':<10}{'mean':>9}{'95 % CI':>11}{'files':>8}",
    ]
    for name, score in summarise(results).items():
        mean = f"{score.mean:.4f}" if score.files else "-"
        interval = f"± {score.ci95:.4f}" if score.files > 1 else "-"
        lines.append(f"{METRICS[name].label:<10}{mean:>9}{interval:>11}{score.files:>8}")
    return "\n".join(lines)


def write_report(folder: Path, results: Sequence[PairScores], variant: Variant, unpaired: Sequence[Path] = ()) -> None:
    """Write `scores.csv` (a row a file, full precision, NaN where there is no score) and `summary.json`.

    Each appears under its name only when it is whole. JSON has no NaN: null stands for it. Raises
    `OSError`.
    """
    write_text_atomically(folder / "scores.csv", _csv(results))
    summary = {
        "composite": variant,
        "files": len(results),
        "failed": {result.id: result.reason for result in results if result.reason is not None},
        "unpaired": [str(path) for path in unpaired],
        "metrics": {
            name: {"mean": json_number(score.mean), "ci95": json_number(score.ci95), "files": score.files}
            for name, score in summarise(results).items()
        },
    }
    write_text_atomically(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def _csv(results: Sequence[PairScores]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *METRICS])
    for result in results:
        values = (result.values[name] for name in METRICS)
        writer.writerow([result.id, *("NaN" if math.isnan(value) else repr(value) for value in values)])
    return text.getvalue()


def json_number(value: float) -> float | None:
    """The value as JSON can hold it: null, None here, for NaN."""
    return None if math.isnan(value) else value
