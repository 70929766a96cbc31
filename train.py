"""Train a network: on a list of pairs, or on clean speech and noise that are mixed anew for every crop.

    python train.py --config configs/imse.json --input_training_file training.txt [--checkpoint_path RUN] [--resume]
    python train.py --config configs/imse_mix.json --input_clean_wavs_dir SPEECH --input_noise_dir NOISE
    torchrun --nproc_per_node 8 train.py …

The best and the latest network, the training state and TensorBoard's files go to RUN. SIGTERM and Ctrl-C save and
leave; with --resume the run goes on as if nothing had happened. Exit codes: 0 all done, 1 ended by an error, 2 command
line or input wrong, 130 or 143 interrupted.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from cli import DONE, SOME_FAILED, TERMINATED, USAGE_ERROR, ArgumentParser, UserError, run
from config import Config, load_config
from data.audio import AudioError
from data.dataset import AudioCache, Batch, PairedUtterances, check_pairs, load_batches, steps_per_epoch
from data.file_lists import read_file_list
from metrics.signals import RATE as METRICS_RATE
from models.checkpoint import load_checkpoint, save_checkpoint
from training.data import Data, read_mixes, read_pairs
from training.logger import SHOWN_EXAMPLES, TensorBoardLogger
from training.pesq_labels import PesqLabeler
from training.pictures import inner_pictures
from training.run_dir import RunDir
from training.state import fitted
from training.stop import Stop
from training.trainer import Trainer
from training.validation import Validation
from utils.distributed import join_group
from utils.processes import available_cores

ROOT = Path(__file__).resolve().parent

LOG_INTERVAL = 10
"""Steps between two points of TensorBoard's training curves."""

LARGEST_SKIP = 10
"""So many steps in a row without a finite gradient, and the run stops: it would not recover."""


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Read the command line; exits with code 2 where it is wrong."""
    parser = ArgumentParser(description="Train a network.")
    add = parser.add_argument
    add("--config", type=Path, default=ROOT / "configs" / "imse.json", help="default: configs/imse.json")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting of the config")
    add("--input_training_file", type=Path, default=Path("training.txt"), help="pairs; default: %(default)s")
    add("--input_validation_file", type=Path, help="scored at the end; with --protocol paper, selects the best network")
    add("--input_clean_wavs_dir", type=Path, help="clean speech: to mix, or of the training list")
    add("--input_noisy_wavs_dir", type=Path, help="noisy speech of the training list")
    add("--input_noise_dir", type=Path, help="noise to mix with the clean speech")
    add("--checkpoint_path", type=Path, metavar="RUN", help="folder of the run; default: runs/ and the config's name")
    add("--resume", action="store_true", help="go on with the run in that folder")
    add("--overwrite", action="store_true", help="replace the run in that folder")
    add("--fine_tune", type=Path, metavar="CKPT", help="begin with the weights of this checkpoint")
    add("--training_epochs", type=int, help="instead of the config's train.epochs")
    add("--validation_interval", type=int, help="instead of the config's train.validation_interval; 0: every epoch")
    add("--max_steps", type=int, help="stop after this many steps")
    selecting = "what selects: speakers held out, or the validation list, cut as the paper does; default: %(default)s"
    add("--protocol", choices=("held_out", "paper"), default="held_out", help=selecting)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda; default: %(default)s")
    add(
        "--num_workers",
        type=int,
        default=min(4, available_cores()),
        help="threads that cut crops; default: %(default)s",
    )
    add("--no_cache", action="store_true", help="do not keep decoded audio in memory")
    add("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(argv)
    if find_spec("tensorboard") is None:
        parser.error("needs TensorBoard: pip install -e '.[train]'")
    if options.resume and (options.overwrite or options.fine_tune):
        parser.error("--resume: not with --overwrite or --fine_tune")
    if options.protocol == "paper" and not options.input_validation_file:
        parser.error("--protocol paper: needs --input_validation_file, the list to select on")
    if any(number is not None and number < 1 for number in (options.max_steps, options.num_workers)):
        parser.error("--max_steps, --num_workers: must be 1 or more")
    parser.check_device(options.device)
    return options


def read_config(options: Namespace) -> Config:
    """The configuration with what the command line changes; raises `UserError`."""
    changes = list(options.set)
    if options.training_epochs is not None:
        changes.append(f"train.epochs={options.training_epochs}")
    if options.validation_interval is not None:
        changes.append(f"train.validation_interval={options.validation_interval}")
    config = load_config(options.config, changes)
    if config.data.sampling_rate != METRICS_RATE:
        raise UserError(f"{options.config}: data.sampling_rate: PESQ and STOI need {METRICS_RATE} Hz")
    if config.mix and not (options.input_clean_wavs_dir and options.input_noise_dir):
        raise UserError(f"{options.config}: mixes: give --input_clean_wavs_dir and --input_noise_dir")
    if options.input_noise_dir and not config.mix:
        raise UserError(f"{options.config}: has no section mix, which --input_noise_dir needs")
    if config.mix and options.protocol == "paper":
        raise UserError(f"{options.config}: mixes: --protocol paper is for lists of pairs")
    return config


def read_data(options: Namespace, config: Config, recordings: AudioCache) -> Data:
    """The crops to train on and the utterances to select by; raises `UserError` or `AudioError`."""
    loading = {"recordings": recordings, "workers": options.num_workers, "quiet": options.quiet}
    listed = read_file_list(options.input_validation_file) if options.input_validation_file else []
    check_pairs(listed)  # now, also where it is scored only at the end
    if config.mix:
        return read_mixes(options.input_clean_wavs_dir, options.input_noise_dir, config, **loading)
    pairs = read_file_list(options.input_training_file, options.input_clean_wavs_dir, options.input_noisy_wavs_dir)
    return read_pairs(pairs, listed if options.protocol == "paper" else None, config, **loading)


class Run:
    """A run under way: the loop, and what it does every so many steps.

    Raises `UserError` where there is nothing to resume or it does not fit.
    """

    def __init__(self, options: Namespace, config: Config, folder: RunDir, data: Data, trainer: Trainer) -> None:
        self.options, self.config, self.folder, self.data, self.trainer = options, config, folder, data, trainer
        self.group = trainer.group
        self.best = -math.inf
        self.validated = 0
        total_batch = config.train.batch_size * self.group.ranks
        self.epoch_steps = steps_per_epoch(len(data.source), total_batch)
        if self.epoch_steps == 0:
            raise UserError(
                f"{options.config}: train.batch_size: {total_batch} in total, but there are {len(data.source)} crops"
            )
        self.last_step = min(config.train.epochs * self.epoch_steps, options.max_steps or sys.maxsize)
        if options.resume:
            self._load()
        elif self.group.leads:
            folder.begin(config)
        protocol = "paper" if options.protocol == "paper" else "overlap"
        self.validation = Validation(data.splits, config, protocol, self.group)
        self.journal = TensorBoardLogger(folder.tensorboard, trainer.global_step) if self.group.leads else None

    def train(self, stop: Stop) -> int:
        """Step until the end or until `stop`; returns the exit code."""
        steps = tqdm(
            self._batches(), total=self.last_step, initial=self.trainer.global_step, unit="step",
            disable=self.options.quiet or not self.group.leads, dynamic_ncols=True,
        )  # fmt: skip
        seconds = self.config.train.batch_size * self.group.ranks * self.config.data.segment_size
        seconds /= self.config.data.sampling_rate
        if self._validation_is_due() and self.validated != self.trainer.global_step:
            self._validate()  # the run was stopped before it came to that
            self._save()
        with closing(steps):
            for epoch, batch in steps:
                figures = self.trainer.step(batch, epoch)
                done = self.trainer.global_step
                if self.trainer.skipped_in_a_row == LARGEST_SKIP:
                    raise UserError(
                        f"step {done}: the gradient was not finite {LARGEST_SKIP} times in a row; "
                        f"{self.folder.path} keeps what was saved before. Try a lower learning rate or optim.grad_clip"
                    )
                if self.journal and done % LOG_INTERVAL == 0:
                    self.journal.scalars("training", figures | self._counts(), done)
                rate = steps.format_dict["rate"] or 0.0
                shown = {"loss": figures["loss"], "audio_s/s": rate * seconds, "best_pesq": self.best}
                steps.set_postfix({name: f"{value:.3g}" for name, value in shown.items()}, refresh=False)
                stopping = self.group.any(stop.code != 0)
                validate = self._validation_is_due() and not stopping
                if validate:
                    self._validate()
                if stopping or validate or done % self.config.train.save_interval == 0:
                    self._save()
                if stopping:
                    tqdm.write(f"stopped after step {done}; --resume goes on from there", file=sys.stderr)
                    return stop.code or TERMINATED
        return DONE

    def _validation_is_due(self) -> bool:
        done = self.trainer.global_step
        interval = self.config.train.validation_interval or self.epoch_steps
        return done > 0 and (done == self.last_step or done % interval == 0)

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """What is left of the run: each step's epoch and batch."""
        train, group = self.config.train, self.group
        while self.trainer.global_step < self.last_step:
            epoch, first = divmod(self.trainer.global_step, self.epoch_steps)
            batches = load_batches(
                self.data.source, train.seed, epoch, first,
                batch_size=train.batch_size, rank=group.rank, ranks=group.ranks, workers=self.options.num_workers,
            )  # fmt: skip
            with closing(batches):
                for batch in batches:
                    yield epoch, batch
                    if self.trainer.global_step == self.last_step:
                        return

    def _counts(self) -> dict[str, float]:
        return {"skipped_steps": self.trainer.skipped, "crops_without_label": self.trainer.unlabelled}

    def _validate(self) -> None:
        """Score the held-out utterances, keep the network if it is the best, and tell."""
        step, network = self.trainer.global_step, self.trainer.eval_model
        validated = self.validation.run(network)
        self.validated = step
        score = validated.scores["pesq"]
        # Until some utterance has a PESQ, the latest network counts as the best.
        better = score > self.best or self.best == -math.inf
        if score > self.best:
            self.best = score
        if not self.journal:
            return
        if better:
            save_checkpoint(self.folder.best, network, self.config)
        scores = ", ".join(f"{name} {value:.4f}" for name, value in validated.scores.items())
        unscored = f", {validated.unscored} without PESQ" if validated.unscored else ""
        tqdm.write(f"step {step}: {scores}{unscored}{' (best)' if better else ''}", file=sys.stdout)
        self.journal.scalars("validation", validated.scores, step)
        for index, enhanced in zip(self.validation.own[:SHOWN_EXAMPLES], validated.enhanced, strict=False):
            example = self.data.held_out[index]
            self.journal.example(example, enhanced, self.trainer.spectrogram, self.config.data.sampling_rate, step)
        first = self.data.held_out[self.validation.own[0]]
        self.journal.pictures(first.id, inner_pictures(network, self.config, first.noisy, self.group.device), step)

    def _save(self) -> None:
        state = self.trainer.state_dict() | {
            "best": self.best,
            "validated": self.validated,
            "crops": self.data.fingerprint,
            "total_batch": self.config.train.batch_size * self.group.ranks,
        }
        if self.journal:
            self.journal.flush()
            self.folder.save(self.trainer.eval_model, self.config, state)

    def _load(self) -> None:
        state = self.folder.load_state(self.config)
        total_batch = self.config.train.batch_size * self.group.ranks
        kinds = {"crops": "", "total_batch": 0, "best": 0.0, "validated": 0}
        try:
            before = {name: fitted(state[name], kind, name) for name, kind in kinds.items()}
            for name, here in (("crops", self.data.fingerprint), ("total_batch", total_batch)):
                if before[name] != here:
                    batch = f"a batch of {before[name]} in total"
                    what = {"crops": "other training data", "total_batch": batch}[name]
                    raise UserError(f"{self.folder.state}: comes from a run on {what}; give it what it had")
            self.trainer.load_state_dict(state)
            self.best, self.validated = before["best"], before["validated"]
        except (KeyError, ValueError) as error:
            raise UserError(f"{self.folder.state}: does not fit this run ({error}); start anew") from error


def score_at_end(run_: Run) -> None:
    """Score the best network once on the list that had no say in choosing it."""
    options, config = run_.options, run_.config
    pairs = read_file_list(options.input_validation_file)
    examples = PairedUtterances(pairs, AudioCache(config.data.sampling_rate, keep=False))
    network, _ = load_checkpoint(run_.folder.best)
    scores = Validation(examples, config, "overlap", run_.group).run(network.to(run_.group.device)).scores
    if run_.group.leads:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        print(f"{options.input_validation_file}, best.safetensors: {shown}")


def read_first_network(options: Namespace, config: Config) -> nn.Module:
    """The network to fine-tune; raises `UserError`, also where it is not the configuration's."""
    network, other = load_checkpoint(options.fine_tune)
    if (other.model, other.stft) != (config.model, config.stft):
        raise UserError(f"{options.fine_tune}: another network or STFT than {options.config} describes")
    return network


def begin(options: Namespace, config: Config, stack: ExitStack) -> Run:
    """Read the data, build the networks and start what works beside them; `stack` ends that."""
    name = options.config.stem
    folder = RunDir(options.checkpoint_path or Path("runs") / name, options.resume, options.overwrite)
    group = join_group(options.device)
    stack.callback(group.close)
    first_network = read_first_network(options, config) if options.fine_tune else None
    recordings = AudioCache(config.data.sampling_rate, keep=not options.no_cache)
    data = read_data(options, config, recordings)
    labels = None
    if config.loss.metric > 0:
        labels = stack.enter_context(PesqLabeler(max(1, min(available_cores(), config.train.batch_size))))
    trainer = Trainer(config, group, labels)
    if first_network:
        trainer.load_weights(first_network)
    started = Run(options, config, folder, data, trainer)
    if started.journal:
        stack.callback(started.journal.close)
    if group.leads:
        batch = config.train.batch_size
        print(f"{data.summary}; {recordings.bytes_kept / 2**20:.0f} MiB of audio in memory", file=sys.stderr)
        print(f"{group.ranks} x {batch} crops a step, {batch * group.ranks} in total", file=sys.stderr)
        if options.protocol == "paper":
            print(f"selecting on {options.input_validation_file}: the best score there is optimistic", file=sys.stderr)
    return started


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parse_arguments(argv)
    torch.backends.cudnn.allow_tf32 = False  # float32 is the paper's setting; train.bf16 is the fast one
    code_of_error = USAGE_ERROR
    try:
        config = read_config(options)
        with ExitStack() as stack:
            started = begin(options, config, stack)
            code_of_error = SOME_FAILED
            stop = stack.enter_context(Stop())
            code = started.train(stop)
            if code == DONE and options.input_validation_file and options.protocol == "held_out":
                score_at_end(started)
            return code
    except (UserError, AudioError) as error:
        print(error, file=sys.stderr)
        return code_of_error
    except torch.OutOfMemoryError:
        print(f"{options.device}: out of memory; lower train.batch_size or data.segment_size", file=sys.stderr)
        return SOME_FAILED


if __name__ == "__main__":
    run(main)
