"""Summaries of many scored pairs: means with confidence intervals as a table, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.file_lists import pair_by_id
from metrics.composite import Variant
from metrics.score import METRICS, PairScores, score_pairs, without_scores
from metrics.stats import Mean, mean_with_interval
from utils.atomic import write_text_atomically
from utils.processes import available_cores

VARIANT_NOTES: dict[Variant, str] = {
    "published": "composite measures 'published': WSS of signals divided by 32768, as in the code of MP-SENet and IMSE",
    "loizou": "composite measures 'loizou': WSS of unscaled signals, as in the code of Loizou",
}
"""One-line description of each variant of the composite measures, for tables and reports."""


def summarise(results: Sequence[PairScores]) -> dict[str, Mean]:
    """Return the mean of each metric over the pairs that have it, with its confidence interval."""
    return {name: mean_with_interval(np.array([result.values[name] for result in results])) for name in METRICS}


def format_table(results: Sequence[PairScores], variant: Variant) -> str:
    """Format the means as text, one metric per line; the heading counts files and names the composite variant."""
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
    """Write `scores.csv` (one row per file, full precision, NaN for missing scores) and `summary.json` atomically.

    JSON has no NaN and gets null instead. Raises `OSError`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", *METRICS])
    for result in results:
        values = (result.values[name] for name in METRICS)
        writer.writerow([result.id, *("NaN" if math.isnan(value) else repr(value) for value in values)])
    write_text_atomically(folder / "scores.csv", text.getvalue())
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


def json_number(value: float, digits: int | None = None) -> float | None:
    """Return `value`, rounded to `digits` if given, or None (null in JSON) for NaN and infinity."""
    if not math.isfinite(value):
        return None
    return value if digits is None else round(value, digits)


def print_scores(
    clean: Mapping[str, Path], targets: Mapping[Path, Path], failed: Mapping[Path, str], whole: bool, progress: bool
) -> list[str]:
    """Score enhanced files against their clean versions and print the table. Return one line per problem.

    clean: clean files by id.
    targets: enhanced files, with their paths relative to the output folder.
    failed: enhanced files that could not be made, with the reason. They count as failed in the table.
    whole: report clean files without an enhanced version.
    progress: show a bar on standard error.
    """
    problems: list[str] = []
    enhanced: dict[str, Path] = {}
    for target, relative in targets.items():
        id_ = relative.with_suffix("").as_posix()
        if enhanced.setdefault(id_, target) != target:
            problems.append(f"{target}: not scored: {enhanced[id_]} has the same name '{id_}'")
    pairing = pair_by_id(clean, enhanced)
    problems += [f"{path}: has no clean version to score with" for path in pairing.noisy_only]
    if whole:
        problems += [f"{path}: has no noisy version" for path in pairing.clean_only]
    done = [pair for pair in pairing.pairs if pair.noisy not in failed]
    results = score_pairs(done, "published", available_cores(), progress)
    problems += [f"{result.id}: {result.reason}" for result in results if result.reason is not None]
    results += [without_scores(pair, failed[pair.noisy]) for pair in pairing.pairs if pair.noisy in failed]
    print(format_table(results, "published"))
    return problems
