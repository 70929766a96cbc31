"""Make the demo's noisy and clean pairs in samples/ from a folder of spoken prompts.

    python -m scripts.make_samples --prompts_dir PROMPTS [--output_dir samples] [--seed 0]

samples/README.md says where the prompts come from and how they are decoded. Each pair is one prompt and one
noise: babble from prompts that are not the speech of any pair, or coloured noise, or hum and clicks made from
random numbers. The signal-to-noise ratio is that of the whole utterance, 10 log10(Σ clean² / Σ noise²).
The same prompts and seed give the same samples. Exit codes: 0 all done; 2 the command line or a prompt is
wrong.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cli import DONE, WRONG_COMMAND_LINE, ArgumentParser, run
from data.audio import AudioError, AudioFormat, read_audio, write_audio
from data.file_lists import FileListError, audio_by_id
from data.mixing import add_noise

RATE = 16_000
FLAC = AudioFormat(RATE, channels=1, container="FLAC", subtype="PCM_16")
SAMPLES_DIR = Path(__file__).resolve().parents[1] / "samples"
PEAK = 0.9
"""The largest value of each noisy file: loud enough to hear, and nothing is clipped."""


@dataclass(frozen=True)
class Recipe:
    """One pair: its name, the prompt that is its speech, its noise, and their ratio in dB."""

    name: str
    prompt: str
    noise: str
    snr_db: float


RECIPES = (
    Recipe("babble_5dB", "en_US_f_Allison/vm-nobodyavail", "babble", 5.0),
    Recipe("pink_0dB", "en_US_f_Allison/conf-onlyperson", "pink", 0.0),
    Recipe("brown_5dB", "en_US_f_Allison/tt-weasels", "brown", 5.0),
    Recipe("hum_clicks_10dB", "it_IT_m_Carlo/pbx-invalid", "hum_clicks", 10.0),
)

BABBLE_TALKERS = 6
BABBLE_MIN_SECONDS = 3.0
"""Shorter prompts are single words, which repeat audibly."""
LOWEST_HZ = 30.0
"""Coloured noise has nothing below: it would be most of the energy and none of the sound."""
HUM_HZ = 50.0
HUM_HARMONICS = 20
CLICKS_PER_SECOND = 4.0
CLICK_SECONDS = 0.004
CLICK_LEVEL = 0.5


def unit_power(signal: np.ndarray) -> np.ndarray:
    """Scale `[frames]` to a mean square of 1."""
    return signal / np.sqrt(np.mean(signal**2))


def babble(prompts: list[np.ndarray], frames: int, generator: np.random.Generator) -> np.ndarray:
    """Several talkers of one level at once, each a prompt that repeats from a random place."""
    chosen = generator.choice(len(prompts), size=min(BABBLE_TALKERS, len(prompts)), replace=False)
    mixture = np.zeros(frames)
    for index in chosen:
        talker = unit_power(prompts[index])
        mixture += np.resize(np.roll(talker, generator.integers(len(talker))), frames)
    return mixture


def coloured(frames: int, exponent: float, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise with a power density of 1/f^exponent: 1 is pink, 2 is brown."""
    spectrum = np.fft.rfft(generator.standard_normal(frames))
    hz = np.fft.rfftfreq(frames, 1 / RATE)
    gain = np.where(hz < LOWEST_HZ, 0.0, np.maximum(hz, LOWEST_HZ) ** (-exponent / 2))
    return np.fft.irfft(spectrum * gain, frames)


def hum_and_clicks(frames: int, generator: np.random.Generator) -> np.ndarray:
    """The hum of 50 Hz mains, its n-th harmonic at 1/n, and short clicks of a quarter of its power."""
    seconds = np.arange(frames) / RATE
    hum = np.zeros(frames)
    for harmonic in range(1, HUM_HARMONICS + 1):
        phase = generator.uniform(0, 2 * np.pi)
        hum += np.sin(2 * np.pi * HUM_HZ * harmonic * seconds + phase) / harmonic
    length = round(CLICK_SECONDS * RATE)
    # It falls by 60 dB.
    decay = 10.0 ** (-3 * np.arange(length) / length)
    clicks = np.zeros(frames)
    for start in generator.integers(frames - length, size=round(CLICKS_PER_SECOND * frames / RATE)):
        clicks[start : start + length] += decay * generator.standard_normal(length)
    return unit_power(hum) + CLICK_LEVEL * unit_power(clicks)


def make_noise(kind: str, frames: int, prompts: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """Noise `[frames]` of a kind that `RECIPES` names; only babble uses the prompts."""
    if kind == "babble":
        return babble(prompts, frames, generator)
    if kind == "hum_clicks":
        return hum_and_clicks(frames, generator)
    return coloured(frames, {"pink": 1.0, "brown": 2.0}[kind], generator)


def mix(clean: np.ndarray, noise: np.ndarray, snr_db: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale the noise to the ratio and both by one factor to the peak; returns clean and noisy `[frames]`."""
    noisy = add_noise(clean, noise, snr_db)
    scale = PEAK / max(np.abs(noisy).max(), np.abs(clean).max())
    return clean * scale, noisy * scale


def make_samples(prompts_dir: Path, output_dir: Path, seed: int) -> None:
    """Write all pairs of `RECIPES`.

    Raises `FileListError` where prompts are missing or silent, `AudioError` where a file cannot be read or
    written.
    """
    files = audio_by_id(prompts_dir)
    spoken = {recipe.prompt for recipe in RECIPES}
    missing = sorted(spoken - files.keys())
    if missing:
        raise FileListError(f"{prompts_dir}: has no prompt {', '.join(missing)}")
    prompts = {name: read_audio(path, RATE)[0][:, 0].astype(np.float64) for name, path in files.items()}
    for name, prompt in prompts.items():
        if not prompt.any():
            raise FileListError(f"{files[name]}: is silent all through")
    long_enough = {name for name, prompt in prompts.items() if len(prompt) >= BABBLE_MIN_SECONDS * RATE}
    others = [prompts[name] for name in sorted(long_enough - spoken)]
    if not others:
        raise FileListError(f"{prompts_dir}: has no other prompts of {BABBLE_MIN_SECONDS:g} s for the babble")
    for number, recipe in enumerate(RECIPES):
        # A generator of its own, so that a new recipe leaves the other samples as they are.
        generator = np.random.default_rng([seed, number])
        clean = prompts[recipe.prompt]
        noise = make_noise(recipe.noise, len(clean), others, generator)
        for kind, signal in zip(("clean", "noisy"), mix(clean, noise, recipe.snr_db), strict=True):
            write_audio(output_dir / kind / f"{recipe.name}.flac", signal[:, None], FLAC)


def main() -> int:
    """Do what the command line says; returns the exit code."""
    parser = ArgumentParser(description="Make the demo's noisy and clean pairs.")
    parser.add_argument("--prompts_dir", type=Path, required=True, help="decoded prompts; see samples/README.md")
    parser.add_argument("--output_dir", type=Path, default=SAMPLES_DIR, help="default: samples")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    if args.seed < 0:
        parser.error(f"--seed: must be 0 or more, not {args.seed}")
    try:
        make_samples(args.prompts_dir, args.output_dir, args.seed)
    except (AudioError, FileListError) as error:
        print(error, file=sys.stderr)
        return WRONG_COMMAND_LINE
    for recipe in RECIPES:
        print(f"{recipe.name}: {recipe.prompt}, {recipe.noise} noise at {recipe.snr_db:g} dB")
    return DONE


if __name__ == "__main__":
    run(main)
