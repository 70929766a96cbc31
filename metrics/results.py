"""The scores of a run's results against the clean recordings: which file belongs to which, and the table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data.file_lists import pair_by_id
from metrics.score import score_pairs, without_scores
from metrics.summary import format_table
from utils.processes import available_cores


def print_scores(
    clean: Mapping[str, Path], targets: Mapping[Path, Path], failed: Mapping[Path, str], whole: bool
) -> list[str]:
    """Score results against their clean versions and print the table; returns a line for each problem.

    `clean`: by id; `targets`: the results, with their paths below the output folder; `failed`: those that are not
    there, with the reason; `whole`: there should be a result for each clean recording.
    """
    problems: list[str] = []
    ids: dict[str, Path] = {}
    for target, below in targets.items():
        name = below.with_suffix("").as_posix()
        if ids.setdefault(name, target) != target:
            problems.append(f"{target}: not scored: {ids[name]} has the same name '{name}'")
    pairing = pair_by_id(clean, ids)
    problems += [f"{path}: has no clean version to score with" for path in pairing.noisy_only]
    if whole:
        problems += [f"{path}: has no noisy version" for path in pairing.clean_only]
    there = [pair for pair in pairing.pairs if pair.noisy not in failed]
    results = score_pairs(there, "published", available_cores())
    problems += [f"{result.id}: {result.reason}" for result in results if result.reason is not None]
    results += [without_scores(pair, failed[pair.noisy]) for pair in pairing.pairs if pair.noisy in failed]
    print(format_table(results, "published"))
    return problems
