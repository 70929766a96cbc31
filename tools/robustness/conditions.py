"""Test conditions: each changes one property of a base condition; an axis lists the values of one property."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

ALL = "all"
"""As a noise: the files of the noise folder in turn. As a group: all speakers."""

SYNTHETIC_NOISES = ("white", "pink", "babble")

NOT_HELD_OUT = " (not held out)"
"""Suffix of the label of a group that was part of the training data."""


@dataclass(frozen=True)
class Condition:
    """How a mix is made.

    snr: dB, of the reverberant speech; None for no noise.
    noise: a category of the noise folder, one of `SYNTHETIC_NOISES`, or `ALL`.
    t60: reverberation time in seconds; 0 for no room.
    level: RMS of the mix in dBFS; 0 dBFS is an RMS of 1.
    clipped: share of the samples that are clipped, 0 to 1.
    band: "full", "narrow" (to 4 kHz) or "telephone" (300 to 3400 Hz).
    codec: a key of `data.degradations.CODECS`, or "" for none.
    group: first folder of the speech, or `ALL`.
    """

    snr: float | None = 5.0
    noise: str = ALL
    t60: float = 0.0
    level: float = -26.0
    clipped: float = 0.0
    band: str = "full"
    codec: str = ""
    group: str = ALL


BASE = Condition()


@dataclass(frozen=True)
class Axis:
    """Conditions by label that differ in one property; `title` names it with its unit.

    ordered: the labels are values in ascending order, so a plot joins their points.
    """

    name: str
    title: str
    conditions: Mapping[str, Condition]
    ordered: bool = False


AXES = ("snr", "noise", "reverb", "level", "clipping", "band", "codec", "group")
"""Names for the command line, in the order of the tables. "reverb" stands for two axes, with noise and without."""


def make_axes(
    names: Sequence[str], noises: Sequence[str], codecs: Sequence[str], groups: Mapping[str, str]
) -> list[Axis]:
    """Return the axes in `names`, without those that hold nothing but the base.

    `noises` and `codecs` are the available ones; `groups` maps labels to groups.
    """

    def vary(key: str, values: Mapping[str, object]) -> dict[str, Condition]:
        return {label: replace(BASE, **{key: value}) for label, value in values.items()}

    rooms = {"none": BASE} | vary("t60", {f"{t60:g} s": t60 for t60 in (0.2, 0.4, 0.8)})
    noiseless = {label: replace(room, snr=None) for label, room in rooms.items()}
    clipped = {"none": BASE} | vary("clipped", {"1 %": 0.01, "5 %": 0.05, "20 %": 0.20})
    bands = vary("band", {"full, to 8 kHz": "full", "to 4 kHz": "narrow", "300 to 3400 Hz": "telephone"})
    snrs = vary("snr", {f"{snr}": float(snr) for snr in (-10, -5, 0, 5, 10, 15, 20)})
    levels = vary("level", {f"{level}": float(level) for level in (-60, -40, -26, -10, 0)})
    axes = [
        Axis("snr", "SNR, dB", snrs, ordered=True),
        Axis("noise", "noise", {"all files": BASE} | vary("noise", {noise: noise for noise in noises})),
        Axis("reverb", "room and noise, T60", rooms, ordered=True),
        Axis("reverb_alone", "room without noise, T60", noiseless, ordered=True),
        Axis("level", "level, dBFS", levels, ordered=True),
        Axis("clipping", "samples clipped", clipped, ordered=True),
        Axis("band", "band", bands),
        Axis("codec", "codec", {"none": BASE} | vary("codec", {codec: codec for codec in codecs})),
        Axis("group", "speech", {"all": BASE} | vary("group", groups)),
    ]
    return [
        axis for axis in axes if axis.name.removesuffix("_alone") in names and set(axis.conditions.values()) != {BASE}
    ]
