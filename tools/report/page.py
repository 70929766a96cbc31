"""Write the listening page of a set of recordings: `index.html`, which needs nothing but what lies beside it.

    problems = write_page(Path("out"), Content("enhanced", versions, ids, results, "published"), jobs=2)

A few small recordings are all in that one file. Of more, sounds and pictures lie in `index_files/`, a script a
recording, which the page runs when the recording is opened: a page opened from disk may not read files, but it may
run scripts. Audio elements would need no such wrapping, but cannot be kept in step to the sample.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from tqdm import tqdm

from metrics.composite import Variant
from metrics.score import METRICS, PairScores
from metrics.summary import VARIANT_NOTES
from tools.report.charts import Series, histogram, scatter
from tools.report.pictures import RANGE_DB, colour_stops
from tools.report.recording import Prepared, Recording, prepare
from tools.report.tables import Scored, paired_tables, summary_table, swatch
from tools.report.versions import Role, Version
from utils.atomic import write_text_atomically
from utils.processes import LostProcessError, run_in_processes

INLINE_RECORDINGS = 8
INLINE_BYTES = 10_000_000
"""Up to both of these all sounds and pictures are in the one HTML file, which can then be sent as it is."""

_TEMPLATE = Path(__file__).parent / "template"
_MEDIA_FOLDER = "index_files"
_ROLE_COLOURS: Mapping[Role, str] = {"noisy": "#6e7781", "clean": "#1c2128"}
_SYSTEM_COLOURS = ("#0b5cad", "#b3450b", "#007a5a", "#9a3d8f", "#7a6200", "#00758f")
"""Of Okabe and Ito's kind, for all eyes, and dark enough for white letters on them."""
_PAIRED_NOTE = """<p class="note">The p-values are two-sided, and each stands for itself: of twenty comparisons without
any difference, one lies below 0.05 by chance.</p>"""
_MIN_DIGITS = 2
"""The list of files shows single scores, in which a tenth of a dB is coarse."""


@dataclass(frozen=True)
class Content:
    """What a page shows.

    `subject`: a line that says what it is about; `ids`: of the recordings, which each version has; `results`: the
    scores of each version in the order of `ids`, None for one without (clean), or for all where there is no clean;
    `left_out`: a line for each file that is not on the page.
    """

    subject: str
    versions: Sequence[Version]
    ids: Sequence[str]
    results: Sequence[Sequence[PairScores] | None]
    variant: Variant
    left_out: Sequence[str] = ()

    @property
    def colours(self) -> list[str]:
        """One a version, in order."""
        systems = iter(range(len(self.versions)))
        return [
            _ROLE_COLOURS.get(version.role) or _SYSTEM_COLOURS[next(systems) % len(_SYSTEM_COLOURS)]
            for version in self.versions
        ]

    def scored(self, *roles: Role) -> list[Scored]:
        """The versions of these roles that have scores."""
        return [
            Scored(version.name, colour, results)
            for version, colour, results in zip(self.versions, self.colours, self.results, strict=True)
            if results is not None and version.role in roles
        ]

    def failures(self, index: int) -> list[str]:
        """Why versions of a recording have no score, each reason once with the versions that it holds for."""
        reasons: dict[str, list[str]] = {}
        for version, results in zip(self.versions, self.results, strict=True):
            if results is not None and (reason := results[index].reason) is not None:
                reasons.setdefault(reason, []).append(version.name)
        return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]


def write_page(folder: Path, content: Content, jobs: int, progress: bool = False) -> list[str]:
    """Write the page into `folder`, with `jobs` processes; `progress` shows a bar on standard error.

    Returns a line for each file that cannot be shown and whose scores do not say why. An earlier page goes first and
    the new one appears when it is whole; other files in the folder stay. Raises `OSError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    page.unlink(missing_ok=True)
    for path in (folder / _MEDIA_FOLDER).glob("[0-9][0-9][0-9][0-9]*.js"):
        path.unlink()
    recordings: dict[int, Prepared] = {}
    media: dict[int, str] = {}  # what is in the page itself
    inline = len(content.ids) <= INLINE_RECORDINGS
    for index, recording in _prepare_all(content, jobs, progress):
        recordings[index] = replace(recording, media=None)
        if recording.media is not None:
            media[index] = recording.media
        inline = inline and sum(map(len, media.values())) <= INLINE_BYTES
        while media and not inline:
            place, text = media.popitem()
            write_text_atomically(folder / _media_name(place), f"receiveMedia({place}, {text});\n")
    in_order = [recordings[index] for index in range(len(content.ids))]
    write_text_atomically(page, _html(content, in_order, media))
    return [problem for index, recording in enumerate(in_order) for problem in _unsaid(content, index, recording)]


def _prepare_all(content: Content, jobs: int, progress: bool) -> Iterator[tuple[int, Prepared]]:
    """Read and draw all recordings, and yield them with their numbers as they are done."""
    roles = [version.role for version in content.versions]
    noisy, clean = (roles.index(role) if role in roles else None for role in ("noisy", "clean"))
    tasks = [
        Recording(tuple(version.files[name] for version in content.versions), noisy, clean) for name in content.ids
    ]
    with tqdm(total=len(tasks), unit="file", desc="page", disable=not progress) as bar:
        for index, result in run_in_processes(prepare, tasks, jobs):
            if isinstance(result, BaseException):
                kind = "" if isinstance(result, LostProcessError) else f"{type(result).__name__}: "
                result = Prepared(math.nan, math.nan, None, (f"{content.ids[index]}: {kind}{result}",))
            yield index, result
            bar.update()


def _media_name(index: int) -> str:
    """Where the media of a recording lie below the page's folder: a number, which no file's name can upset."""
    return f"{_MEDIA_FOLDER}/{index + 1:04}.js"


def _html(content: Content, recordings: Sequence[Prepared], media: Mapping[int, str]) -> str:
    sections = _sections(content, recordings)
    titles = {"summary": "Summary", "distributions": "Distributions", "paired": "Paired tests", "files": "Files"}
    shown = [title for title in titles.items() if title[0] in (*sections, "files")]
    return _template("page.html").substitute(
        subject=escape(content.subject),
        links=" ".join(f'<a href="#{name}">{title}</a>' for name, title in shown),
        sections="\n".join(_section(name, titles[name], body) for name, body in sections.items()),
        notes=_notes(content, recordings),
        data=_json_element("data", json.dumps(_data(content, recordings, media), allow_nan=False)),
        media="\n".join(
            f'<script type="application/json" id="media-{index}">{text}</script>' for index, text in media.items()
        ),
        page_css=_read("page.css"),
        player_css=_template("player.css").substitute(colour_stops=", ".join(colour_stops())),
        player_js=_read("player.js"),
        table_js=_read("table.js"),
        page_js=_read("page.js"),
    )


def _sections(content: Content, recordings: Sequence[Prepared]) -> dict[str, str]:
    """The parts above the list of files, as HTML by name; those that have something to show."""
    scored, systems, noisy = content.scored("noisy", "enhanced"), content.scored("enhanced"), content.scored("noisy")
    if not scored:
        return {}
    note = f'<p class="note">{VARIANT_NOTES[content.variant][0].upper()}{VARIANT_NOTES[content.variant][1:]}.</p>'
    sections = {"summary": summary_table(scored) + note}
    if charts := _charts(scored, systems, noisy, [recording.snr_db for recording in recordings]):
        legend = "".join(f"<li>{swatch(version.colour)}{escape(version.name)}</li>" for version in scored)
        sections["distributions"] = f'<ul class="legend">{legend}</ul><div class="charts">{charts}</div>'
    if paired := paired_tables(noisy[0] if noisy else None, systems):
        sections["paired"] = paired + _PAIRED_NOTE
    return sections


def _charts(scored: Sequence[Scored], systems: Sequence[Scored], noisy: Sequence[Scored], snr_db: list[float]) -> str:
    """PESQ gain against input SNR, then a histogram of each metric, as images within the page."""
    charts: dict[str, bytes | None] = {}
    if noisy:
        gains = [
            Series(np.subtract(system.values("pesq"), noisy[0].values("pesq")).tolist(), system.colour)
            for system in systems
        ]
        charts["PESQ gain over noisy, of each file, against input SNR"] = scatter(
            snr_db, gains, "input SNR, dB", "PESQ gain"
        )
    for name, metric in METRICS.items():
        series = [Series(version.values(name), version.colour) for version in scored]
        charts[f"Histogram of {metric.label} of the files"] = histogram(series, metric.label)
    return "".join(
        f'<img src="data:image/svg+xml;base64,{b64encode(svg).decode()}" alt="{alt}">'
        for alt, svg in charts.items()
        if svg is not None
    )


def _data(content: Content, recordings: Sequence[Prepared], media: Mapping[int, str]) -> dict[str, object]:
    """What the scripts of the page read."""
    versions = [
        {"name": version.name, "role": version.role, "colour": colour, "scored": results is not None}
        for version, colour, results in zip(content.versions, content.colours, content.results, strict=True)
    ]
    rows = [
        {
            "name": name,
            "seconds": _number(recording.seconds),
            "snr": _number(recording.snr_db),
            "scores": [
                results and [_number(results[index].values[metric]) for metric in METRICS]
                for results in content.results
            ],
            "playable": recording.playable,
            "file": None if index in media else _media_name(index),
            "problem": "; ".join(_problems(content, index, recording)),
        }
        for index, (name, recording) in enumerate(zip(content.ids, recordings, strict=True))
    ]
    metrics = [{"label": metric.label, "digits": max(metric.digits, _MIN_DIGITS)} for metric in METRICS.values()]
    return {"versions": versions, "metrics": metrics, "range_db": RANGE_DB, "recordings": rows}


def _notes(content: Content, recordings: Sequence[Prepared]) -> str:
    """How many problems there are with files, and on opening which."""
    notes = list(content.left_out)
    for index, recording in enumerate(recordings):
        notes += [f"{content.ids[index]}: {problem}" for problem in _problems(content, index, recording)]
    if not notes:
        return ""
    title = "1 problem with a file" if len(notes) == 1 else f"{len(notes)} problems with files"
    lines = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<details class="note"><summary>{title}</summary><ul>{lines}</ul></details>'


def _problems(content: Content, index: int, recording: Prepared) -> list[str]:
    """Why a recording cannot be scored or shown, each reason once."""
    return [*content.failures(index), *_unsaid(content, index, recording)]


def _unsaid(content: Content, index: int, recording: Prepared) -> list[str]:
    """What is wrong with a recording's files that its scores do not say already."""
    said = "; ".join(content.failures(index))
    return [problem for problem in recording.problems if problem not in said]


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-title"><h2 id="{name}-title">{title}</h2>{body}</section>'


def _json_element(name: str, text: str) -> str:
    """JSON in a script element, which anything like a tag could end."""
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 4)


def _read(name: str) -> str:
    return (_TEMPLATE / name).read_text(encoding="utf-8")


def _template(name: str) -> Template:
    return Template(_read(name))
