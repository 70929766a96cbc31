"""What a run learns from and what it is judged by: pairs from a list, or speech and noise to mix."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config import Config
from data.dataset import AudioCache, CropDataset, EvalPair, PairedDataset, PairedUtterances, check_pairs, check_sound
from data.file_lists import Utterance, audio_by_id
from data.mixing import MixedDataset, MixedUtterances, check_mix
from data.splits import hold_out_files, hold_out_speakers


@dataclass(frozen=True)
class Data:
    """Crops to train on, whole utterances to select the best network by, and a line that says what they are.

    `fingerprint` tells one set of training utterances from another.
    """

    source: CropDataset
    held_out: Sequence[EvalPair]
    fingerprint: str
    summary: str


def read_pairs(
    pairs: Sequence[Utterance],
    selected_on: Sequence[Utterance] | None,
    config: Config,
    recordings: AudioCache,
    workers: int,
    quiet: bool,
) -> Data:
    """Pairs of clean and noisy recordings; a part of the speakers is held out unless `selected_on` is given.

    `selected_on` has been through `check_pairs`. Raises `UserError` where pairs do not belong together,
    `AudioError` where a file cannot be read.
    """
    check_pairs(pairs)
    if selected_on:
        training, judged = pairs, selected_on
    else:
        kept, held = hold_out_speakers([pair.id for pair in pairs], config.train.seed)
        training, judged = [pairs[index] for index in kept], [pairs[index] for index in held]
    recordings.load([path for pair in [*training, *judged] for path in (pair.clean, pair.noisy)], workers, quiet)
    check_sound(training, recordings)
    source = PairedDataset(training, recordings, config.data, config.train.seed)
    summary = f"{len(training)} pairs to train on, {len(judged)} {'listed' if selected_on else 'held out'} to select by"
    return Data(source, PairedUtterances(judged, recordings), _fingerprint([pair.id for pair in training]), summary)


def read_mixes(
    speech_dir: Path,
    noise_dir: Path,
    config: Config,
    recordings: AudioCache,
    workers: int,
    quiet: bool,
) -> Data:
    """Clean speech and noise to mix as `config.mix` says; a part of the speakers and of the noises is held out.

    Raises `UserError` where a folder has too little, `AudioError` where a file cannot be read.
    """
    mix = config.mix
    assert mix is not None
    files, noises = audio_by_id(speech_dir), audio_by_id(noise_dir)
    speech_ids, noise_ids = list(files), list(noises)
    speech, noise = list(files.values()), list(noises.values())
    seed = config.train.seed
    kept, held = hold_out_speakers(speech_ids, seed)
    kept_noise, held_noise = hold_out_files(noise, seed)
    recordings.load([*speech, *noise], workers, quiet)
    training = [speech[index] for index in kept], [noise[index] for index in kept_noise]
    judged = [speech[index] for index in held], [noise[index] for index in held_noise]
    check_mix(*training, recordings)
    check_mix(*judged, recordings)
    source = MixedDataset(*training, recordings, config.data, mix, seed)
    summary = (
        f"{len(kept)} speech and {len(kept_noise)} noise files to train on, "
        f"{len(held)} and {len(held_noise)} held out to select by"
    )
    names = [speech_ids[index] for index in kept] + [noise_ids[index] for index in kept_noise]
    return Data(source, MixedUtterances(*judged, recordings, mix, seed), _fingerprint(names), summary)


def _fingerprint(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
