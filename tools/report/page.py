"""Write the listening page of a set of recordings: `index.html`, which works from disk and without a network.

    problems = write_page(Path("out"), Content("enhanced", versions, ids, results, "published"), jobs=2)

A few short recordings are embedded in that file. Audio and images of larger sets are in `index_files/`, one script per
recording, which the page runs when the recording is opened: a page opened from disk may run scripts beside it but not
read files. Audio elements could load files, but cannot be synchronised to the sample.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from string import Template
from typing import Literal

import matplotlib
import numpy as np
from tqdm import tqdm

from metrics.composite import Variant
from metrics.score import METRICS, PairScores
from metrics.summary import VARIANT_NOTES, json_number
from tools.report.recording import Prepared, prepare
from tools.report.statistics import Scored, paired_tables, summary_table
from utils.atomic import write_text_atomically
from utils.plots import COLOR_MAP, RANGE_DB, check_plotting
from utils.processes import LostProcessError, run_in_processes

MAX_EMBEDDED_RECORDINGS = 8
MAX_EMBEDDED_BYTES = 10_000_000
"""Up to both limits all media are embedded, so that the page is one file."""

TEMPLATE = Path(__file__).parent / "template"
MEDIA_FOLDER = "index_files"
MIN_DIGITS = 2
"""Decimals in the list of files, whose single scores differ by less than those of a mean that is given with one."""

Role = Literal["noisy", "enhanced", "clean"]
ROLE_COLORS: Mapping[Role, str] = {"noisy": "#6e7781", "clean": "#1c2128"}
SYSTEM_COLORS = ("#0b5cad", "#b3450b", "#007a5a", "#9a3d8f", "#7a6200", "#00758f")
"""After Okabe and Ito, safe for color-blind readers, dark enough for white text."""


@dataclass(frozen=True)
class Version:
    """One version of all recordings: its display name, its role, and its files by recording id."""

    name: str
    role: Role
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Content:
    """The content of a page.

    subject: one line below the heading.
    ids: the recordings, which every version has.
    results: per version its scores in the order of `ids`; None for a version without scores (clean).
    variant: the composite measures of the scores.
    left_out: a message for each file that is not on the page.
    """

    subject: str
    versions: Sequence[Version]
    ids: Sequence[str]
    results: Sequence[Sequence[PairScores] | None]
    variant: Variant
    left_out: Sequence[str] = ()

    @property
    def colors(self) -> list[str]:
        """The color of each version."""
        systems = [version.name for version in self.versions if version.role == "enhanced"]
        return [
            ROLE_COLORS.get(version.role) or SYSTEM_COLORS[systems.index(version.name) % len(SYSTEM_COLORS)]
            for version in self.versions
        ]

    def scored(self, role: Role) -> list[Scored]:
        """Return the versions of this role that have scores."""
        return [
            Scored(version.name, color, results)
            for version, color, results in zip(self.versions, self.colors, self.results, strict=True)
            if results is not None and version.role == role
        ]

    def failures(self, index: int) -> list[str]:
        """Return the reasons for missing scores of a recording, each once with the versions concerned."""
        reasons: dict[str, list[str]] = {}
        for version, results in zip(self.versions, self.results, strict=True):
            if results is not None and (reason := results[index].reason) is not None:
                reasons.setdefault(reason, []).append(version.name)
        return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def write_page(folder: Path, content: Content, jobs: int, progress: bool = False) -> list[str]:
    """Write the page into `folder` with `jobs` processes; `progress` shows a bar on standard error.

    Returns a message for each file that cannot be shown, unless `content.failures` has it. An earlier page is removed
    first and the new `index.html` appears when it is complete; other files in the folder stay. Raises `OSError`, and
    `UserError` if a library is missing.
    """
    check_plotting()
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    page.unlink(missing_ok=True)
    for path in (folder / MEDIA_FOLDER).glob("[0-9][0-9][0-9][0-9]*.js"):
        path.unlink()

    tasks = [tuple(version.files[id_] for version in content.versions) for id_ in content.ids]
    prepared: dict[int, Prepared] = {}
    embedded: dict[int, str] = {}
    embed = len(tasks) <= MAX_EMBEDDED_RECORDINGS
    with tqdm(total=len(tasks), unit="file", desc="page", disable=not progress) as bar:
        for index, result in run_in_processes(prepare, tasks, jobs):
            bar.update()
            if isinstance(result, BaseException):
                kind = "" if isinstance(result, LostProcessError) else f"{type(result).__name__}: "
                result = Prepared(math.nan, None, (f"{content.ids[index]}: {kind}{result}",))
            prepared[index] = replace(result, media=None)
            if result.media is not None:
                embedded[index] = result.media
            embed = embed and sum(map(len, embedded.values())) <= MAX_EMBEDDED_BYTES
            while embedded and not embed:
                place, media = embedded.popitem()
                write_text_atomically(folder / media_name(place), f"receiveMedia({place}, {media});\n")

    recordings = [prepared[index] for index in range(len(tasks))]
    problems: list[list[str]] = []  # of each recording, beyond those of its scores
    for index, recording in enumerate(recordings):
        known = "; ".join(content.failures(index))
        problems.append([problem for problem in recording.problems if problem not in known])
    write_text_atomically(page, page_html(content, recordings, problems, embedded))
    return [problem for each in problems for problem in each]


def media_name(index: int) -> str:
    """Return the path of a recording's media below the folder of the page, independent of its name."""
    return f"{MEDIA_FOLDER}/{index + 1:04}.js"


def page_html(
    content: Content, recordings: Sequence[Prepared], problems: Sequence[Sequence[str]], embedded: Mapping[int, str]
) -> str:
    """Return the page: list of files and players first, statistics after it; `embedded` is media by index."""
    rows: list[dict[str, object]] = []
    notes = list(content.left_out)
    for index, (id_, recording) in enumerate(zip(content.ids, recordings, strict=True)):
        own_problems = [*content.failures(index), *problems[index]]
        notes += [f"{id_}: {problem}" for problem in own_problems]
        rows.append(
            {
                "name": id_,
                "seconds": json_number(recording.seconds, 4),
                "scores": [
                    results and [json_number(results[index].values[metric], 4) for metric in METRICS]
                    for results in content.results
                ],
                "playable": not math.isnan(recording.seconds),
                "file": None if index in embedded else media_name(index),
                "problem": "; ".join(own_problems),
            }
        )
    data = {
        "versions": [
            {"name": version.name, "role": version.role, "color": color, "scored": results is not None}
            for version, color, results in zip(content.versions, content.colors, content.results, strict=True)
        ],
        "metrics": [{"label": each.label, "digits": max(each.digits, MIN_DIGITS)} for each in METRICS.values()],
        "range_db": RANGE_DB,
        "recordings": rows,
    }
    if notes:
        title = "1 problem with a file" if len(notes) == 1 else f"{len(notes)} problems with files"
        lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
        file_notes = f'<details class="note"><summary>{title}</summary><ul>{lines}</ul></details>'
    else:
        file_notes = ""

    sections: dict[str, tuple[str, str]] = {}  # by id: title and body
    systems, noisy = content.scored("enhanced"), next(iter(content.scored("noisy")), None)
    if scored := [*([noisy] if noisy else []), *systems]:
        note = VARIANT_NOTES[content.variant]
        summary = f'{summary_table(scored)}<p class="note">{note[0].upper()}{note[1:]}.</p>'
        sections["summary"] = ("Summary", summary)
        sections["paired"] = ("Paired tests", paired_tables(noisy, systems))
    sections = {name: section for name, section in sections.items() if section[1]}
    links = {"files": "Files"} | {name: title for name, (title, _) in sections.items()}

    stops = np.asarray(matplotlib.colormaps[COLOR_MAP](np.linspace(0, 1, 9), bytes=True)).tolist()
    read = {path.name: path.read_text(encoding="utf-8") for path in TEMPLATE.iterdir() if path.is_file()}
    return Template(read["page.html"]).substitute(
        subject=escape(content.subject),
        links=" ".join(f'<a href="#{name}">{title}</a>' for name, title in links.items()),
        notes=file_notes,
        statistics="\n".join(
            f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{body}</section>'
            for name, (title, body) in sections.items()
        ),
        data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),  # "</script>" would end the element
        media="\n".join(
            f'<script type="application/json" id="media-{index}">{text}</script>' for index, text in embedded.items()
        ),
        page_css=read["page.css"],
        player_css=Template(read["player.css"]).substitute(
            color_stops=", ".join(f"rgb({red} {green} {blue})" for red, green, blue, _ in stops)
        ),
        player_js=read["player.js"],
        table_js=read["table.js"],
        page_js=read["page.js"],
    )
