"""Train a network on a list of pairs, or on clean speech and noise that are mixed anew for every crop.

    python train.py --config configs/imse.json --input_training_file training.txt [--checkpoint_path RUN] [--resume]
    python train.py --config configs/imse_mix.json --input_clean_wavs_dir SPEECH --input_noise_dir NOISE
    torchrun --nproc_per_node 8 train.py …

The best and the latest network, the training state and TensorBoard files are written to RUN. SIGTERM and Ctrl-C save
and stop; --resume continues the run as if it had not been interrupted, on a CPU bit for bit. Exit codes: 0 done, 1 the
run failed, 2 wrong command line or input, 130 or 143 interrupted.
"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from tqdm import tqdm

from cli import DONE, SOME_FAILED, TERMINATED, USAGE_ERROR, ArgumentParser, UserError, positive, run
from config import Config, ImseConfig, ImseLiveConfig, load_config
from data.dataset import AudioCache, Batch, CropDataset, PairedUtterances, check_pairs, load_batches, steps_per_epoch
from data.file_lists import Utterance, read_file_list
from enhance.enhancer import Enhancer
from metrics.signals import RATE as METRICS_RATE
from models.checkpoint import load_checkpoint, save_checkpoint
from models.imse_live import causal_imse
from training.data import Data, read_mixes, read_pairs
from training.logger import TensorBoardLogger
from training.pesq_labels import PesqLabeler
from training.run_dir import RunDir
from training.stop import GracefulStop
from training.trainer import Trainer
from training.validation import Validation
from utils.distributed import Group, join_group
from utils.processes import available_cores, own_cores

ROOT = Path(__file__).resolve().parent

LOG_INTERVAL = 10
"""Steps between two points of TensorBoard's training curves. Only then does the loop wait for the device."""

MAX_NONFINITE_STEPS = 10
"""A run that has skipped this many steps in a row does not recover; it stops when this is logged."""

EXAMPLES = 3
"""Validation utterances in TensorBoard."""

TRAIN_EXTRA = {"tensorboard": "TensorBoard", "matplotlib": "matplotlib", "librosa": "librosa"}


def parse_arguments(argv: Sequence[str] | None) -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(description="Train a network.")
    add = parser.add_argument
    add("--config", type=Path, default=ROOT / "configs" / "imse.json", help="default: configs/imse.json")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting of the config")
    add("--input_training_file", type=Path, default=Path("training.txt"), help="list of pairs; default: %(default)s")
    add("--input_validation_file", type=Path, help="list of pairs, scored once at the end (see --select_on)")
    add("--input_clean_wavs_dir", type=Path, help="clean speech: to be mixed, or of the training list")
    add("--input_noisy_wavs_dir", type=Path, help="noisy speech of the training list")
    add("--input_noise_dir", type=Path, help="noise to be mixed with the clean speech")
    add("--input_rooms_dir", type=Path, help="room responses (scripts/make_rooms.py); default: synthetic ones")
    add("--checkpoint_path", type=Path, metavar="RUN", help="folder of the run; default: runs/ and the config's name")
    add("--resume", action="store_true", help="continue the run in that folder")
    add("--overwrite", action="store_true", help="replace the run in that folder")
    add("--fine_tune", type=Path, metavar="CKPT", help="start from the weights of this checkpoint")
    add(
        "--teacher",
        type=Path,
        metavar="CKPT",
        help="network whose output is the target for train.distillation; default: that of --fine_tune",
    )
    add("--training_epochs", type=int, help="replaces train.epochs of the config")
    add("--validation_interval", type=int, help="replaces train.validation_interval of the config; 0: every epoch")
    add("--max_steps", type=positive, help="stop after this many steps")
    add(
        "--select_on",
        choices=("held_out", "test"),
        default="held_out",
        help="utterances that select the best network: speakers held out from training, or --input_validation_file "
        "with protocol paper, as published; default: %(default)s",
    )
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda; default: %(default)s")
    workers = min(4, available_cores())
    add("--num_workers", type=positive, default=workers, help="threads that cut crops; default: %(default)s")
    add("--no_cache", action="store_true", help="do not keep decoded audio in memory")
    add("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(argv)
    for module, name in TRAIN_EXTRA.items():
        if find_spec(module) is None:
            parser.error(f"training needs {name}: pip install -e '.[train]'")
    if options.resume and (options.overwrite or options.fine_tune or options.teacher):
        parser.error("--resume cannot be combined with --overwrite, --fine_tune or --teacher")
    if options.select_on == "test" and not options.input_validation_file:
        parser.error("--select_on test needs --input_validation_file")
    parser.check_device(options.device)
    return options


def read_config(options: Namespace) -> Config:
    """Load the configuration with the changes of the command line."""
    changes = list(options.set)
    if options.training_epochs is not None:
        changes.append(f"train.epochs={options.training_epochs}")
    if options.validation_interval is not None:
        changes.append(f"train.validation_interval={options.validation_interval}")
    config = load_config(options.config, changes)
    if config.data.sampling_rate != METRICS_RATE:
        raise UserError(f"{options.config}: data.sampling_rate: must be {METRICS_RATE}, for PESQ and STOI")
    if config.mix and not (options.input_clean_wavs_dir and options.input_noise_dir):
        raise UserError(f"{options.config}: its section mix needs --input_clean_wavs_dir and --input_noise_dir")
    if config.mix and options.select_on == "test":
        raise UserError(f"{options.config}: has a section mix; --select_on test is for lists of pairs")
    if config.mix and options.input_noisy_wavs_dir:
        raise UserError(f"{options.config}: has a section mix; --input_noisy_wavs_dir is for lists of pairs")
    if (options.input_noise_dir or options.input_rooms_dir) and not config.mix:
        raise UserError(f"{options.config}: --input_noise_dir and --input_rooms_dir need a section mix in the config")
    return config


def read_data(options: Namespace, config: Config, cache: AudioCache, test_pairs: list[Utterance]) -> Data:
    """Read the crops to train on and the utterances that select the best network."""
    if config.mix:
        folders = options.input_clean_wavs_dir, options.input_noise_dir, options.input_rooms_dir
        return read_mixes(*folders, config, cache, options.num_workers, options.quiet)
    pairs = read_file_list(options.input_training_file, options.input_clean_wavs_dir, options.input_noisy_wavs_dir)
    selected_on = test_pairs if options.select_on == "test" else None
    return read_pairs(pairs, selected_on, config, cache, options.num_workers, options.quiet)


def read_teacher(options: Namespace, config: Config, run_dir: RunDir) -> Enhancer | None:
    """Load the network that teaches by `train.distillation`."""
    path = run_dir.teacher if options.resume else options.teacher or options.fine_tune
    if not config.train.distillation:
        if options.teacher:
            raise UserError(f"{options.config}: --teacher needs train.distillation above 0")
        return None
    if not path:
        raise UserError(f"{options.config}: train.distillation needs --teacher or --fine_tune")
    teacher = Enhancer(*load_checkpoint(path))
    if teacher.sampling_rate != config.data.sampling_rate:
        raise UserError(f"{path}: a teacher must be for {config.data.sampling_rate} Hz")
    return teacher


def load_state(
    run_dir: RunDir, config: Config, data: Data, trainer: Trainer, total_batch: int, last_step: int
) -> tuple[float, int]:
    """Restore a run; return its best score and the step of its last validation."""
    state = run_dir.load_state(config)
    try:
        if state["fingerprint"] != data.fingerprint:
            raise UserError(f"{run_dir.state}: the run has other data; resume with the same files")
        if state["total_batch"] != total_batch:
            raise UserError(
                f"{run_dir.state}: the run has a total batch of {state['total_batch']}, not {total_batch}; "
                "resume with the same number of processes and train.batch_size"
            )
        if config.optim.schedule != "exponential" and state["last_step"] != last_step:
            raise UserError(
                f"{run_dir.state}: the learning rate of the run reaches 0 at step {state['last_step']}, not at "
                f"{last_step}; resume with the same --max_steps and --training_epochs"
            )
        trainer.load_state_dict(state)
        return state["best"], state["validated"]
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{run_dir.state}: does not fit this run ({reason}); start again without --resume") from error


@contextmanager
def exit_code(code: int) -> Iterator[None]:
    """Give this exit code to every `UserError` in the block."""
    try:
        yield
    except UserError as error:
        error.exit_code = code
        raise


def batches_from(
    crops: CropDataset, config: Config, group: Group, workers: int, step: int
) -> Generator[Batch, None, None]:
    """Yield the batches of all epochs, without end, beginning with that of `step`."""
    epoch_steps = steps_per_epoch(len(crops), config.train.batch_size * group.ranks)
    while True:
        epoch, first = divmod(step, epoch_steps)
        options = {"batch_size": config.train.batch_size, "rank": group.rank, "ranks": group.ranks}
        with closing(load_batches(crops, config.train.seed, epoch, first, **options, workers=workers)) as batches:
            for batch in batches:
                yield batch
                step += 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = parse_arguments(argv)
    config = read_config(options)
    torch.backends.cudnn.allow_tf32 = False  # float32 is the paper's setting; train.bf16 is the fast one
    run_dir = RunDir(options.checkpoint_path or Path("runs") / options.config.stem, options.resume, options.overwrite)
    with ExitStack() as stack:
        group = join_group(options.device)
        # After an error torchrun ends the other processes. Leaving NCCL's group would wait for them.
        stack.push(lambda error, *_: None if error else group.close())
        options.quiet = options.quiet or not group.leads
        total_batch = config.train.batch_size * group.ranks

        # Check all input before writing anything.
        with exit_code(USAGE_ERROR):
            first_network = None
            teacher = read_teacher(options, config, run_dir)
            if options.fine_tune:
                first_network, other = load_checkpoint(options.fine_tune)
                if isinstance(config.model, ImseLiveConfig) and isinstance(other.model, ImseConfig | ImseLiveConfig):
                    model = replace(config.model, channels=other.model.channels, beta=other.model.beta)
                    first_network = causal_imse(first_network, model, other.stft.bins)
                    other = replace(other, model=model)
                own, given = other.to_dict(), config.to_dict()
                has = [
                    f"{section}.{key}={value}"
                    for section in ("model", "stft")
                    for key, value in own[section].items()
                    if given[section].get(key) != value
                ]
                if has:
                    message = f"another network or STFT than in {options.config}: has {', '.join(has)}"
                    raise UserError(f"{options.fine_tune}: {message}")
            test_pairs = read_file_list(options.input_validation_file) if options.input_validation_file else []
            check_pairs(test_pairs)
            cache = AudioCache(config.data.sampling_rate, keep=not options.no_cache)
            data = read_data(options, config, cache, test_pairs)
            epoch_steps = steps_per_epoch(len(data.crops), total_batch)
            if epoch_steps == 0:
                raise UserError(
                    f"{options.config}: train.batch_size: {total_batch} in total, but there are {len(data.crops)} crops"
                )
            last_step = min(config.train.epochs * epoch_steps, options.max_steps or sys.maxsize)
            labeler = None
            if config.loss.metric > 0:
                labeler = stack.enter_context(PesqLabeler(min(own_cores(), config.train.batch_size)))
            trainer = Trainer(config, group, labeler, teacher)
            if first_network:
                trainer.load_weights(first_network)
            best, validated = -math.inf, 0
            if options.resume:
                best, validated = load_state(run_dir, config, data, trainer, total_batch, last_step)
            elif group.leads:
                run_dir.begin(config, teacher)
            logger = None
            if group.leads:
                logger = TensorBoardLogger(run_dir.tensorboard, trainer.global_step)
                stack.callback(logger.close)
                print(f"{data.summary}; {cache.bytes_kept / 2**20:.0f} MiB of audio in memory", file=sys.stderr)
                print(
                    f"{group.ranks} x {config.train.batch_size} crops per step, {total_batch} in total", file=sys.stderr
                )
                if config.train.bf16 and not trainer.bf16:
                    print("train.bf16: this CPU or GPU has no fast bfloat16, float32 is used", file=sys.stderr)
                if options.select_on == "test":
                    print("--select_on test: the best score is optimistic", file=sys.stderr)

        stack.enter_context(exit_code(SOME_FAILED))
        loop = stack.enter_context(ExitStack())
        stop = loop.enter_context(GracefulStop())
        protocol = "paper" if options.select_on == "test" else None
        validation = Validation(data.validation, config, protocol, group)
        validation_interval = config.train.validation_interval or epoch_steps
        first_step = trainer.global_step
        batches = stack.enter_context(closing(batches_from(data.crops, config, group, options.num_workers, first_step)))
        bar = stack.enter_context(tqdm(total=last_step, initial=first_step, unit="step", disable=options.quiet))

        def save() -> None:
            state = trainer.state_dict() | {
                "best": best,
                "validated": validated,
                "fingerprint": data.fingerprint,
                "total_batch": total_batch,
                "last_step": last_step,
            }
            if logger:
                logger.flush()
                run_dir.save(trainer.eval_model, config, state)

        try:
            # Validation and saving come before the step, so that the last step and a stop take the same path.
            while True:
                step = trainer.global_step
                stopping = group.any(stop.code != 0)

                due = step > 0 and (step % validation_interval == 0 or step >= last_step)
                validating = due and validated != step and not stopping
                if step > first_step and (validating or stopping or step % config.train.save_interval == 0):
                    save()  # before a validation too: it takes minutes, in which the process may be killed
                if validating:
                    result = validation.run(trainer.eval_model)
                    validated, pesq = step, result.scores["pesq"]
                    is_best = pesq > best or best == -math.inf  # until one has a PESQ, the latest network is the best
                    best = pesq if pesq > best else best
                    if logger:
                        if is_best:
                            save_checkpoint(run_dir.best, trainer.eval_model, config)
                        unscored = f", {result.unscored} without PESQ" if result.unscored else ""
                        mark = " (best)" if is_best else ""
                        tqdm.write(f"step {step}: {format_scores(result.scores)}{unscored}{mark}", file=sys.stdout)
                        logger.scalars("validation", result.scores, step)
                        for index, enhanced in zip(validation.own[:EXAMPLES], result.enhanced, strict=False):
                            logger.example(data.validation[index], enhanced, config.data.sampling_rate, step)

                    save()
                if stopping:
                    tqdm.write(f"stopped after step {step}; continue with --resume", file=sys.stderr)
                    return stop.code or TERMINATED
                if step >= last_step:
                    break

                logs = trainer.step(next(batches), step // epoch_steps, last_step)
                bar.update()
                if trainer.global_step % LOG_INTERVAL == 0:
                    means = group.mean(logs)
                    counts = {
                        "skipped_steps": int(trainer.skipped_steps),
                        "crops_without_label": trainer.unlabeled_crops,
                    }
                    if logger:
                        logger.scalars("training", means | counts, trainer.global_step)
                    bar.set_postfix({"loss": f"{means['loss']:.3g}", "best_pesq": f"{best:.3g}"}, refresh=False)
                    if (skipped := int(trainer.skipped_in_a_row)) >= MAX_NONFINITE_STEPS:
                        raise UserError(
                            f"step {trainer.global_step}: the gradient was not finite {skipped} times in a row; "
                            f"{run_dir.path} keeps the last save. Try a lower learning rate or optim.grad_clip"
                        )
        except torch.OutOfMemoryError as error:
            message = f"{options.device}: out of memory; raise train.accumulation or lower data.segment_size"
            raise UserError(message) from error
        except RuntimeError as error:
            if not config.train.compile or trainer.global_step > first_step:
                raise
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"train.compile: cannot be used ({reason}); give --set train.compile=false") from error

        loop.close()  # from here on, a signal ends the process
        if test_pairs and options.select_on == "held_out":
            pairs = PairedUtterances(test_pairs, AudioCache(config.data.sampling_rate, keep=False))
            network, _ = load_checkpoint(run_dir.best)
            result = Validation(pairs, config, None, group).run(network.to(group.device))
            if group.leads:
                print(f"{options.input_validation_file}, best.safetensors: {format_scores(result.scores)}")
    return DONE


def format_scores(scores: Mapping[str, float]) -> str:
    """Format scores as `name value, …`."""
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())


if __name__ == "__main__":
    run(main)
