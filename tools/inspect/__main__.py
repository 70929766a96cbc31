"""Draw the computation of a network on one utterance, and its kernels.

    python -m tools.inspect --input_noisy_wav FILE [--input_clean_wav FILE] [--checkpoint_file CKPT]
                            [--query SECONDS,HERTZ ...] --output_dir OUT

spectrograms.png    noisy, enhanced and clean
mask.png            magnitude mask and phase change
attention.png       attention weights of chosen queries (IMSE and MUSE)
idconv.png          kernels of IDConv and their frequency responses (IMSE)
numbers.json        numbers behind the figures

The utterance is enhanced in one pass. Figures that a network does not have are left out, and standard error says so.
Needs pip install -e '.[report]'. Exit codes: 0 all done; 1 the figures cannot be written; 2 invalid command line, or a
file named there is unusable.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cli import DONE, SOME_FAILED, ArgumentParser, UserError, run
from config import Config
from data.audio import AudioError, read_audio
from data.file_lists import make_output_dir
from data.levels import SILENT_POWER, mean_power
from metrics.score import MAX_LENGTH_DIFFERENCE
from models.checkpoint import DEFAULT_CHECKPOINT, load_checkpoint
from models.idconv import IDConv
from tools.inspect.trace import TFPoint, Trace, default_points, trace
from utils.atomic import atomic_open, write_text_atomically
from utils.plots import check_plotting, spectrogram_figure

FIGURES = ("spectrograms", "mask", "attention", "idconv")
MAX_SECONDS = 30.0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; `query` becomes a list of (seconds, hertz)."""
    parser = ArgumentParser(
        prog="python -m tools.inspect",
        description="Draw the computation of a network on one utterance, and its kernels.",
    )
    add = parser.add_argument
    add("--input_noisy_wav", type=Path, required=True, metavar="FILE", help="any rate; channels are averaged")
    add("--input_clean_wav", type=Path, metavar="FILE", help="its clean version, shown beside it")
    add("--checkpoint_file", type=Path, default=DEFAULT_CHECKPOINT, metavar="CKPT", help="default: the embedded one")
    add("--output_dir", type=Path, required=True, metavar="OUT", help="folder for the figures")
    add("--start", type=float, default=0.0, metavar="SECONDS", help="start of the excerpt (default: 0)")
    add("--seconds", type=float, default=10.0, help=f"length of the excerpt, up to {MAX_SECONDS:g} (default: 10)")
    query_help = "a query of attention.png, repeatable; default: the loudest point in speech and one in noise"
    add("--query", action="append", default=[], metavar="SECONDS,HERTZ", help=query_help)
    options = parser.parse_args(argv)
    if not 0 < options.seconds <= MAX_SECONDS:
        parser.error(f"argument --seconds: must be above 0 and at most {MAX_SECONDS:g}, not {options.seconds:g}")
    if not 0 <= options.start < float("inf"):
        parser.error(f"argument --start: must be 0 or more, not {options.start:g}")
    try:
        options.query = [(float(seconds), float(hertz)) for seconds, hertz in (q.split(",") for q in options.query)]
    except ValueError:
        parser.error("argument --query: expected SECONDS,HERTZ, such as 1.25,400")
    check_plotting()
    return options


def read_excerpt(path: Path, options: argparse.Namespace, config: Config) -> np.ndarray:
    """Read the excerpt `[N]` of a file, channels averaged, at the sampling rate of the network.

    Raises `AudioError`, also if it is silent or shorter than one STFT frame.
    """
    rate = config.data.sampling_rate
    samples, _ = read_audio(path, rate)
    wav = samples.mean(axis=1)[round(options.start * rate) :][: round(options.seconds * rate)]
    if len(wav) < config.stft.n_fft:
        excerpt = f"from {options.start:g} to {options.start + options.seconds:g} s there are {len(wav) / rate:g} s"
        raise AudioError(f"{path}: too short: {excerpt} of audio; at least {config.stft.n_fft / rate:g} s are needed")
    if mean_power(wav) <= SILENT_POWER:
        raise AudioError(f"{path}: is silent; choose a file with speech or another --start")
    return wav


def query_points(options: argparse.Namespace, trace_: Trace) -> dict[str, TFPoint]:
    """Return the queries by name: those of the command line, or the default ones; raise `UserError`."""
    points: dict[str, TFPoint] = {}
    _, bins, frames = trace_.noisy.mag.shape
    for number, (seconds, hertz) in enumerate(options.query, start=1):
        frame, bin_ = (seconds - options.start) / trace_.frame_seconds, hertz / trace_.bin_hz
        if not (0 <= frame < frames and 0 <= bin_ < bins):
            end = options.start + frames * trace_.frame_seconds
            limits = f"{options.start:g} to {end:.2f} s and 0 to {bins * trace_.bin_hz:.0f} Hz"
            raise UserError(f"--query {seconds:g},{hertz:g}: outside of the excerpt, {limits}")
        points[str(number)] = TFPoint(int(frame), int(bin_))
    return points or default_points(trace_)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = parse_arguments(argv)
    import matplotlib  # late: may be missing

    from tools.inspect import figures

    network, config = load_checkpoint(options.checkpoint_file)
    try:
        wavs = {"noisy": read_excerpt(options.input_noisy_wav, options, config)}
        if options.input_clean_wav:
            wavs["clean"] = read_excerpt(options.input_clean_wav, options, config)
    except AudioError as error:
        raise UserError(str(error)) from error
    if abs(len(wavs["noisy"]) - len(wavs.get("clean", wavs["noisy"]))) > MAX_LENGTH_DIFFERENCE:
        seconds = [f"{len(wavs[name]) / config.data.sampling_rate:.2f} s" for name in ("clean", "noisy")]
        clean, noisy = options.input_clean_wav, options.input_noisy_wav
        raise UserError(f"{clean}: not the clean version: it has {seconds[0]}, {noisy} {seconds[1]}")
    make_output_dir(options.output_dir)

    trace_ = trace(network, config, wavs["noisy"])
    points = query_points(options, trace_)
    shown = {"noisy": wavs["noisy"], "enhanced": trace_.enhanced_wav} | wavs
    drawn: dict[str, bytes] = {}
    numbers: dict[str, Any] = {}
    with matplotlib.rc_context(figures.STYLE | figures.TRANSPARENT_STYLE):
        figure = spectrogram_figure(shown, config.data.sampling_rate, options.start)
        drawn["spectrograms"] = figures.to_png(figure, transparent=True)
    with matplotlib.rc_context(figures.STYLE):
        figure, numbers["mask"] = figures.mask_figure(trace_, config, options.start)
        drawn["mask"] = figures.to_png(figure)
        if trace_.attentions:
            figure, numbers["attention"] = figures.attention_figure(trace_, points, config, options.start)
            drawn["attention"] = figures.to_png(figure)
        if any(isinstance(stage.local, IDConv) for stage, _ in trace_.stages.values()):
            figure, numbers["idconv"] = figures.idconv_figure(trace_)
            drawn["idconv"] = figures.to_png(figure)
    try:
        for name in FIGURES:
            path = options.output_dir / f"{name}.png"
            if name in drawn:
                with atomic_open(path) as stream:
                    stream.write(drawn[name])
            else:
                path.unlink(missing_ok=True)  # that of an earlier network
                print(f"{name}.png: left out: {config.model.name} has no {name}", file=sys.stderr)
        write_text_atomically(options.output_dir / "numbers.json", json.dumps(numbers, indent=1) + "\n")
    except OSError as error:
        print(f"{options.output_dir}: cannot be written: {error.strerror}", file=sys.stderr)
        return SOME_FAILED
    return DONE


if __name__ == "__main__":
    run(main)
