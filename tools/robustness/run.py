"""A whole run: what is chosen, measured and written; the command line is `tools.robustness.__main__`."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cli import UserError
from data.file_lists import audio_by_id, evenly_spaced
from enhance.enhancer import Enhancer
from tools.robustness.blind import blind_csv, blind_json, blind_markdown, measure_blind
from tools.robustness.codecs import available_codecs
from tools.robustness.dnsmos import load_dnsmos
from tools.robustness.material import Material, find_pool
from tools.robustness.measure import measure
from tools.robustness.mixes import make_trial
from tools.robustness.plan import ALL, BASE, NOT_HELD_OUT, Axis, all_conditions, make_axes
from tools.robustness.summary import Results, as_csv, as_json, as_markdown
from utils.atomic import atomic_open, write_text_atomically


@dataclass(frozen=True)
class Settings:
    """What is measured on mixes, and where it is written.

    checkpoints: the files of the networks; their contents tell one run from another.
    held_out_seed: of a training on these folders, to take only what it holds out; None to take all.
    files: utterances a condition; seconds: of each, at most.
    conditions: names of `plan.AXES`.
    seed: of crops, noises and rooms.
    jobs: processes that score.
    """

    speech_dir: Path
    noise_dir: Path
    output_dir: Path
    checkpoints: Sequence[Path]
    held_out_seed: int | None
    files: int
    seconds: float
    conditions: Sequence[str]
    seed: int
    jobs: int
    quiet: bool


def plan(material: Material, names: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """The axes, and a line for each thing that is left out."""
    left_out: list[str] = []
    groups: dict[str, str] = {}
    if "group" in names:
        material.add_groups()
        for group, ids in material.utterances.items():
            if group != ALL and ids:
                label = group + (NOT_HELD_OUT if group in material.pool.seen else "")
                groups[label] = ALL if ids == material.utterances[ALL] else group
    codecs, missing = available_codecs() if "codec" in names else ({}, [])
    left_out += missing
    axes = make_axes(names, material.noises, list(codecs), groups)
    left_out += [f"{name}: left out: only one" for name in names if name not in {axis.name for axis in axes}]
    return axes, left_out


def describe(settings: Settings, material: Material) -> dict[str, Any]:
    """All that decides on the numbers, without paths, as JSON has it."""
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in settings.checkpoints}
    return {
        "files": len(material.utterances[ALL]),
        "seconds": settings.seconds,
        "seed": settings.seed,
        "held_out": None if settings.held_out_seed is None else [settings.held_out_seed],
        "base": asdict(BASE),
        "checkpoints": digests,
        "noise_files": len(material.pool.noise),
    }


def note(settings: Settings, material: Material) -> str:
    """What was measured, in a line or two above the tables."""
    held = "not only held out from training" if settings.held_out_seed is None else "held out from training"
    text = (
        f"{len(material.utterances[ALL])} utterances a condition, {settings.seconds:g} s each at most, "
        f"{len(material.pool.noise)} noise files; {held}; seed {settings.seed}. "
        "Base: 5 dB, noise files in turn, no room, −26 dBFS (RMS of the mix), not clipped, full band, not coded."
    )
    if material.pool.seen.intersection(material.utterances):
        text += " Groups that are not held out are known to a checkpoint that was trained on these folders."
    return text


def write(folder: Path, axes: Sequence[Axis], results: Results, names: list[str], described: object, text: str) -> None:
    """All files of the output folder; raises `OSError`."""
    from tools.robustness.chart import draw  # late: matplotlib is an extra

    write_text_atomically(folder / "robustness.csv", as_csv(axes, results, names))
    content = json.dumps(as_json(axes, results, names, described), ensure_ascii=False)
    write_text_atomically(folder / "robustness.json", content.replace('}, "', '},\n"') + "\n")
    write_text_atomically(folder / "robustness.md", text)
    for kind in ("png", "svg"):
        with atomic_open(folder / f"robustness.{kind}") as stream:
            stream.write(draw(axes, results, names, kind))


def with_clean(settings: Settings, enhancers: Mapping[str, Enhancer]) -> list[str]:
    """Measure mixes; returns a line for each file that failed. Raises `UserError` and `OSError`."""
    pool = find_pool(settings.speech_dir, settings.noise_dir, settings.held_out_seed)
    material = Material(pool, settings.files, settings.seconds, settings.seed)
    if not material.utterances[ALL]:
        raise UserError("\n".join(material.problems.values()))
    material.read_noises()
    axes, left_out = plan(material, settings.conditions)
    for line in left_out:
        print(line, file=sys.stderr)
    described = describe(settings, material)
    names = list(enhancers)
    conditions = {condition: len(material.utterances[condition.group]) for condition in all_conditions(axes)}
    fingerprint = [described, material.utterances, list(pool.noise)]
    make = partial(make_trial, material, seed=settings.seed)
    parts = settings.output_dir / "parts"
    results = measure(conditions, make, enhancers, parts, fingerprint, settings.jobs, settings.quiet)
    text = as_markdown(axes, results, names, [note(settings, material)])
    write(settings.output_dir, axes, results, names, described, text)
    print(text, end="")
    reasons = [f"{each.id}: {each.reason}" for scores in results.values() for each in scores if each.reason]
    return [*material.problems.values(), *dict.fromkeys(reasons)]


def without_clean(
    noisy_dir: Path, output_dir: Path, count: int, enhancers: Mapping[str, Enhancer], quiet: bool
) -> list[str]:
    """Measure `count` recordings by DNSMOS; returns a line for each that failed.

    Raises as `with_clean`, and `ImportError`.
    """
    files = audio_by_id(noisy_dir)
    dnsmos = load_dnsmos()
    chosen = evenly_spaced(list(files), count)
    names = list(enhancers)
    scores, problems = measure_blind({id_: files[id_] for id_ in chosen}, enhancers, dnsmos, quiet)
    if scores:
        text = blind_markdown(scores, names)
        write_text_atomically(output_dir / "robustness.csv", blind_csv(scores, names))
        content = json.dumps(blind_json(scores, names), indent=1, ensure_ascii=False)
        write_text_atomically(output_dir / "robustness.json", content + "\n")
        write_text_atomically(output_dir / "robustness.md", text)
        print(text, end="")
    return problems
