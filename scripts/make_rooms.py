"""Simulate room impulse responses for training: `python -m scripts.make_rooms rooms [--count 400] [--seed 0]`.

Each file is one response at 16 kHz: a shoebox room of random size and reverberation time (T60 of 0.1 to 1 s), simulated
with the image source method by pyroomacoustics (`pip install -e '.[rooms]'`), with source and microphone at random
places. A response begins at its direct sound, has a peak of 1, and ends where its energy has decayed by 60 dB. Files
that exist are kept, so that an interrupted run can be continued. Exit codes: 0 done, 1 a file cannot be written, 2 the
command line is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cli import DONE, ArgumentParser, positive, run
from data.audio import AudioFormat, write_audio

RATE = 16_000
SIZES = ((2.5, 10.0), (2.5, 8.0), (2.3, 4.0))
"""Ranges of length, width and height in metres."""

T60 = (0.1, 1.0)
DISTANCES = (0.2, 4.0)
"""Range of the distance from source to microphone in metres; its logarithm is uniform."""

WALL = 0.3
"""Minimum distance from the walls in metres."""

MAX_ORDER = 50
"""Maximum number of reflections of an image source; limits time and memory in small rooms with a long T60."""

LEAD = 8
"""Samples before the peak of the direct sound, for its interpolation filter."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = ArgumentParser(prog="python -m scripts.make_rooms", description="Simulate room impulse responses.")
    parser.add_argument("output_dir", type=Path, help="folder of the responses")
    parser.add_argument("--count", type=positive, default=400, help="number of rooms; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(argv)
    if options.seed < 0:
        parser.error("--seed: must not be negative")
    if find_spec("pyroomacoustics") is None:
        parser.error("pyroomacoustics is not installed: pip install -e '.[rooms]'")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(options.count), unit="room", disable=options.quiet):
        path = options.output_dir / f"room{index:04d}.wav"
        if not path.exists():
            response = simulate(np.random.default_rng([options.seed, index]))
            write_audio(path, response[:, None], AudioFormat(RATE, 1, "WAV", "FLOAT"))
    return DONE


def simulate(rng: np.random.Generator) -> np.ndarray:
    """Return the response of a random room, float32 `[N]`."""
    import pyroomacoustics  # late: an optional package

    while True:
        size = np.array([rng.uniform(*side) for side in SIZES])
        t60 = rng.uniform(*T60)
        microphone = rng.uniform(WALL, size - WALL)
        direction = rng.standard_normal(3)
        distance = np.exp(rng.uniform(*np.log(DISTANCES)))
        source = microphone + distance * direction / np.linalg.norm(direction)
        if (source < WALL).any() or (source > size - WALL).any():
            continue
        try:
            absorption, order = pyroomacoustics.inverse_sabine(t60, size)
        except ValueError:  # no absorption gives so short a T60 in so large a room
            continue
        materials = pyroomacoustics.Material(absorption)
        room = pyroomacoustics.ShoeBox(size, fs=RATE, materials=materials, max_order=min(order, MAX_ORDER))
        room.add_source(source)
        room.add_microphone(microphone)
        room.compute_rir()
        assert room.rir is not None
        return trim(np.asarray(room.rir[0][0]))


def trim(response: np.ndarray) -> np.ndarray:
    """Cut a response from shortly before its largest peak to a decay of 60 dB, and scale the peak to 1."""
    peak = int(np.argmax(np.abs(response)))
    response = response[max(peak - LEAD, 0) :] / response[peak]
    energy = np.cumsum(response[::-1] ** 2)[::-1]
    return response[: int(np.sum(energy > 1e-6 * energy[0]))].astype(np.float32)


if __name__ == "__main__":
    run(main)
