"""Draw what a network does with an utterance, and what it is made of.

    python -m tools.inspect --input_noisy_wav FILE [--input_clean_wav FILE] [--checkpoint_file CKPT]
                                    [--run_dir RUN] [--query SECONDS,HERTZ ...] --output_dir OUT

spectrograms.png    noisy, enhanced and clean
mask.png            the magnitude mask and the phase change that the network applied
attention.png       where chosen queries look, in the attentions of IMSE and MUSE
idconv.png          IDConv's kernels and their frequency responses, of IMSE
curves.png          losses and validation scores of the run in RUN
numbers.json        numbers behind the pictures

The utterance is enhanced in one pass. Of a network without such an attention, or without IDConv, that picture is
left out, and standard error says so. Needs pip install -e '.[report]', and with --run_dir '.[train]'. Exit codes: 0 all
done; 1 the pictures cannot be written; 2 the command line or a file that it names is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cli import DONE, SOME_FAILED, USAGE_ERROR, ArgumentParser, UserError, run
from config import Config
from data.audio import AudioError, AudioReader, resample_blocks
from data.file_lists import make_output_dir
from data.levels import SILENT_POWER, mean_power
from enhance.enhancer import Enhancer
from metrics.score import MAX_LENGTH_DIFFERENCE
from models.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from tools.inspect import inspection
from tools.inspect.inspection import Pass, Place
from training.logger import read_curves
from utils.atomic import atomic_open

PICTURES = ("spectrograms.png", "mask.png", "attention.png", "idconv.png", "curves.png")
LONGEST_SECONDS = 30.0
"""More cannot be told apart in a picture."""
MOST_QUERIES = 4
"""Each takes two rows of attention.png."""

Curves = Mapping[str, Sequence[tuple[int, float]]]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = ArgumentParser(description="Draw what a network does with an utterance, and what it is made of.")
    add = parser.add_argument
    add("--input_noisy_wav", type=Path, required=True, metavar="FILE", help="any rate; the mean of its channels")
    add("--input_clean_wav", type=Path, metavar="FILE", help="its clean version: shown too")
    add("--checkpoint_file", type=Path, metavar="CKPT", help="default: RUN/best.safetensors, else this project's own")
    add("--run_dir", type=Path, metavar="RUN", help="folder of a training run: draw its curves too")
    add("--output_dir", type=Path, required=True, metavar="OUT", help="folder for the pictures")
    add("--start", type=float, default=0.0, metavar="SECONDS", help="where to begin in the file; default: 0")
    add(
        "--seconds", type=float, default=10.0, help=f"how much of it, {LONGEST_SECONDS:g} at most; default: %(default)g"
    )
    add("--query", action="append", default=[], metavar="SECONDS,HERTZ", help="a query of attention.png; repeatable; "
        "default: the loudest place of the enhanced speech, and one in the noise")  # fmt: skip
    options = parser.parse_args(argv)
    if not 0 < options.seconds <= LONGEST_SECONDS:
        parser.error(f"argument --seconds: above 0 and at most {LONGEST_SECONDS:g}, not {options.seconds:g}")
    if not 0 <= options.start < float("inf"):
        parser.error(f"argument --start: 0 or more, not {options.start:g}")
    if len(options.query) > MOST_QUERIES:
        parser.error(f"argument --query: at most {MOST_QUERIES} times")
    try:
        options.query = [(float(seconds), float(hertz)) for seconds, hertz in (q.split(",") for q in options.query)]
    except ValueError:
        parser.error("argument --query: expected SECONDS,HERTZ, such as 1.25,400")
    if find_spec("matplotlib") is None:
        parser.error("needs matplotlib: pip install -e '.[report]'")
    if options.run_dir and find_spec("tensorboard") is None:
        parser.error("argument --run_dir: needs TensorBoard: pip install -e '.[train]'")
    return options


def read_excerpt(path: Path, rate: int, options: argparse.Namespace, shortest: int) -> np.ndarray:
    """The excerpt of a file that the command line asks for, `[N]` at `rate` Hz, the mean of its channels.

    Raises `AudioError`, also where it is silent or has fewer than `shortest` samples.
    """
    first, wanted = round(options.start * rate), round(options.seconds * rate)
    blocks: list[np.ndarray] = []
    with AudioReader(path) as reader:
        mono = (block.mean(axis=1, keepdims=True) for block in reader.blocks())
        for block in resample_blocks(mono, reader.format.rate, rate, 1):
            blocks.append(block[:, 0])
            if sum(map(len, blocks)) >= first + wanted:
                break
    wav = np.concatenate(blocks)[first : first + wanted]
    if len(wav) < shortest:
        excerpt = f"{options.start:g} to {options.start + options.seconds:g} s"
        message = f"{len(wav) / rate:g} s of sound from {excerpt}; at least {shortest / rate:g} s are needed"
        raise AudioError(f"{path}: has {message}")
    if mean_power(wav) <= SILENT_POWER:
        raise AudioError(f"{path}: is silent; give one with speech in it, or another --start")
    return wav


def read_versions(options: argparse.Namespace, config: Config) -> dict[str, np.ndarray]:
    """The noisy utterance `[N]`, and the clean one where it is given; raises `AudioError`."""
    rate = config.data.sampling_rate
    versions = {"noisy": read_excerpt(options.input_noisy_wav, rate, options, config.stft.n_fft)}
    if options.input_clean_wav:
        clean = read_excerpt(options.input_clean_wav, rate, options, config.stft.n_fft)
        samples = len(versions["noisy"])
        if abs(len(clean) - samples) > MAX_LENGTH_DIFFERENCE:
            lengths = f"{len(clean) / rate:.2f} s, {options.input_noisy_wav} {samples / rate:.2f} s"
            raise AudioError(f"{options.input_clean_wav}: not the clean version: it has {lengths}")
        versions["clean"] = clean
    return versions


def queries_of(options: argparse.Namespace, pass_: Pass) -> dict[str, Place]:
    """The queries by name, those of the command line or one in speech and one in noise; raises `UserError`."""
    if not options.query:
        return {"in speech": inspection.place_in_speech(pass_), "in noise": inspection.place_in_noise(pass_)}
    queries: dict[str, Place] = {}
    _, bins, frames = pass_.noisy.mag.shape
    for number, (seconds, hertz) in enumerate(options.query, start=1):
        frame, bin_ = (seconds - options.start) / pass_.frame_seconds, hertz / pass_.bin_hz
        if not (0 <= frame < frames and 0 <= bin_ < bins):
            last = options.start + frames * pass_.frame_seconds
            ends = f"{options.start:g} to {last:.2f} s and 0 to {bins * pass_.bin_hz:.0f} Hz"
            raise UserError(f"--query {seconds:g},{hertz:g}: outside of the excerpt, {ends}")
        queries[str(number)] = Place(int(frame), int(bin_))
    return queries


def read_run(folder: Path) -> Curves:
    """The curves of a run; raises `UserError` where there are none."""
    curves = read_curves(folder / "tensorboard")
    if not curves:
        raise UserError(f"{folder / 'tensorboard'}: holds no curves; give the folder that train.py wrote")
    return curves


def draw(
    options: argparse.Namespace, enhancer: Enhancer, config: Config, versions: dict[str, np.ndarray], curves: Curves
) -> dict[str, bytes]:
    """The files to write, by name; says on standard error which pictures there are not. Raises `UserError`."""
    from tools.inspect import figures, inside  # late: matplotlib may be missing

    pass_ = inspection.run_once(enhancer, versions["noisy"])
    places = queries_of(options, pass_)
    extent = inside.extent_of(pass_, options.start)
    shown = {"noisy": versions["noisy"], "enhanced": pass_.wav} | versions
    files = {"spectrograms": figures.spectrogram_figure(shown, enhancer.rate, options.start)}
    numbers: dict[str, Any] = {}
    files["mask"], numbers["mask"] = inside.draw_mask(pass_, config, extent)
    if pass_.caught:
        attention = inside.draw_attention(pass_, places, config, options.start, extent)
        files["attention"], numbers["attention"] = attention
    if kernels := inside.draw_idconv(pass_, enhancer.network):
        files["idconv"], numbers["idconv"] = kernels
    if curves:
        files["curves"] = figures.curves_figure(curves)
    for name, what in (("attention", "attention that looks at a whole map"), ("idconv", "IDConv")):
        if name not in files:
            print(f"{name}.png: left out: {config.model.name} has no {what}", file=sys.stderr)
    text = json.dumps(numbers, indent=1) + "\n"
    return {f"{name}.png": content for name, content in files.items()} | {"numbers.json": text.encode()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments(argv)
    best = options.run_dir / "best.safetensors" if options.run_dir else DEFAULT_CHECKPOINT
    try:
        network, config = load_checkpoint(options.checkpoint_file or best)
        versions = read_versions(options, config)
        curves = read_run(options.run_dir) if options.run_dir else {}
        make_output_dir(options.output_dir)
        files = draw(options, Enhancer(network, config), config, versions, curves)
    except (UserError, AudioError) as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR
    try:
        for name in PICTURES:  # those of another network would be misleading
            if name not in files:
                (options.output_dir / name).unlink(missing_ok=True)
        for name, content in files.items():
            with atomic_open(options.output_dir / name) as stream:
                stream.write(content)
    except OSError as error:
        print(f"{options.output_dir}: cannot be written: {error.strerror}", file=sys.stderr)
        return SOME_FAILED
    return DONE


if __name__ == "__main__":
    run(main)
