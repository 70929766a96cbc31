"""What is varied: conditions, each of which changes one thing of a base, in axes that tables and pictures follow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

ALL = "all"
"""Noise: the files of the noise folder in turn. Group: all speakers."""

SYNTHETIC_NOISES = ("white", "pink", "babble")


@dataclass(frozen=True)
class Condition:
    """How a mix is made.

    snr: dB, of the speech as it is heard in the room; None for no noise.
    noise: a category of the noise folder, one of `SYNTHETIC_NOISES`, or `ALL`.
    t60: seconds in which the room's response falls by 60 dB; 0 for no room.
    level: dBFS, RMS of the whole mix, 0 dBFS being an RMS of 1.
    clipped: share of the mix's samples at the limit, 0 to 1.
    band: "full", "telephone" or "narrow".
    codec: a name of `tools.robustness.codecs.CODECS`, or empty for none.
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

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return json.dumps(asdict(self), sort_keys=True)


BASE = Condition()


@dataclass(frozen=True)
class Axis:
    """Conditions that differ in one thing: by the label of each; `title` names the thing, with its unit."""

    name: str
    title: str
    conditions: Mapping[str, Condition]


AXES = ("snr", "noise", "reverb", "level", "clipping", "band", "codec", "group")
"""Names of all axes, in the order of the tables."""

NOT_HELD_OUT = " (not held out)"
"""How the label of a group ends that a checkpoint trained on these folders has seen."""

REVERB_ALONE = "reverb_alone"
"""The second axis that "reverb" stands for."""

_SNRS = (-10, -5, 0, 5, 10, 15, 20)
_T60S = (0.2, 0.4, 0.8)
_LEVELS = (-60, -40, -26, -10, 0)
_CLIPPED = (0.01, 0.05, 0.20)


def make_axes(
    names: Sequence[str], noises: Sequence[str], codecs: Sequence[str], groups: Mapping[str, str]
) -> list[Axis]:
    """The axes that are asked for; `noises`, `codecs` and `groups` (by label) are those that there are.

    An axis with nothing but the base is left out.
    """
    rooms = {"none": BASE} | {f"{t60:g} s": replace(BASE, t60=t60) for t60 in _T60S}
    quiet = {label: replace(room, snr=None) for label, room in rooms.items()}
    axes = {
        "snr": Axis("snr", "SNR, dB", {f"{snr}": replace(BASE, snr=float(snr)) for snr in _SNRS}),
        "noise": Axis("noise", "noise", {"all files": BASE} | {noise: replace(BASE, noise=noise) for noise in noises}),
        "reverb": Axis("reverb", "room and noise, T60", rooms),
        REVERB_ALONE: Axis(REVERB_ALONE, "room without noise, T60", quiet),
        "level": Axis("level", "level, dBFS", {f"{level}": replace(BASE, level=float(level)) for level in _LEVELS}),
        "clipping": Axis(
            "clipping",
            "samples clipped",
            {"none": BASE} | {f"{share:.0%}".replace("%", " %"): replace(BASE, clipped=share) for share in _CLIPPED},
        ),
        "band": Axis(
            "band",
            "band",
            {
                "full, to 8 kHz": BASE,
                "to 4 kHz": replace(BASE, band="narrow"),
                "300 to 3400 Hz": replace(BASE, band="telephone"),
            },
        ),
        "codec": Axis("codec", "codec", {"none": BASE} | {codec: replace(BASE, codec=codec) for codec in codecs}),
        "group": Axis(
            "group", "speech", {"all": BASE} | {label: replace(BASE, group=group) for label, group in groups.items()}
        ),
    }
    chosen = {*names, *([REVERB_ALONE] if "reverb" in names else [])}
    return [axis for name, axis in axes.items() if name in chosen and set(axis.conditions.values()) != {BASE}]


def all_conditions(axes: Sequence[Axis]) -> list[Condition]:
    """Each condition of the axes once: the base first, if it is there."""
    unique = list(dict.fromkeys(condition for axis in axes for condition in axis.conditions.values()))
    return sorted(unique, key=lambda condition: condition != BASE)
