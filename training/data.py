"""The data of a run: what it trains on, and what selects the best network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from config import Config
from data.dataset import (
    AudioCache,
    CropDataset,
    EvalPair,
    PairedDataset,
    PairedUtterances,
    Sound,
    check_pairs,
    split_long,
)
from data.file_lists import Utterance, audio_by_id
from data.mixing import MixedDataset, MixedUtterances, Mixer, check_sounds
from data.splits import hold_out_files, hold_out_speakers


@dataclass(frozen=True)
class Data:
    """Data of a run.

    crops: training crops.
    validation: whole utterances that select the best network.
    fingerprint: hash of the names of the training files, and of those listed to select on; a resumed run
        must have the same.
    summary: one line for the user.
    """

    crops: CropDataset
    validation: Sequence[EvalPair]
    fingerprint: str
    summary: str


def read_pairs(
    pairs: Sequence[Utterance],
    selected_on: Sequence[Utterance] | None,
    config: Config,
    cache: AudioCache,
    workers: int,
    quiet: bool,
) -> Data:
    """Read pairs of clean and noisy recordings; hold out part of the speakers unless `selected_on` is given.

    `selected_on` must have passed `check_pairs`. Raises `UserError` for pairs that do not match, `AudioError` for
    unreadable files.
    """
    check_pairs(pairs)
    if selected_on:
        training, held_out, how = pairs, selected_on, "listed"
    else:
        kept, held = hold_out_speakers([pair.id for pair in pairs], config.train.seed)
        training, held_out, how = [pairs[index] for index in kept], [pairs[index] for index in held], "held out"
    cache.load([path for pair in [*training, *held_out] for path in (pair.clean, pair.noisy)], workers, quiet)
    check_sounds([Sound(pair.clean) for pair in training], "clean speech", cache)
    return Data(
        PairedDataset(training, cache, config.data, config.train.seed),
        PairedUtterances(held_out, cache),
        _fingerprint([pair.id for pair in (*training, *(selected_on or []))]),
        f"training on {len(training)} pairs, selecting on {len(held_out)} {how}",
    )


def read_mixes(
    speech_dir: Path,
    noise_dir: Path,
    rooms_dir: Path | None,
    config: Config,
    cache: AudioCache,
    workers: int,
    quiet: bool,
) -> Data:
    """Read clean speech and noise to be mixed as `config.mix` says; hold out part of the speakers and of the noises.

    `rooms_dir` holds room responses, of which a part is held out too; None for synthetic ones. Raises `UserError` for
    folders with too few files, `AudioError` for unreadable files.
    """
    mix, seed = config.mix, config.train.seed
    assert mix is not None
    speech, noise = audio_by_id(speech_dir), audio_by_id(noise_dir)
    rooms = audio_by_id(rooms_dir) if rooms_dir else {}
    noise_files, room_files = list(noise.values()), list(rooms.values())
    kept, held = hold_out_speakers(list(speech), seed)
    kept_noise, held_noise = hold_out_files(noise_files, seed, noise_dir)
    kept_rooms, held_rooms = hold_out_files(room_files, seed, rooms_dir) if rooms_dir else ([], [])
    speech_parts, noise_parts = split_long(speech.values()), split_long(noise_files)
    # If the memory does not hold all, those that are used most.
    cache.load([*room_files, *chain(*noise_parts), *chain(*speech_parts)], workers, quiet)

    def mixer(part: str, speech: list[int], noise: list[int], rooms: list[int]) -> tuple[list[Sound], Mixer]:
        voices = [sound for index in speech for sound in speech_parts[index]]
        noises = [sound for index in noise for sound in noise_parts[index]]
        for folder, sounds in ((speech_dir, voices), (noise_dir, noises)):
            check_sounds(sounds, f"{folder}, {part} part", cache)
        responses = [Sound(room_files[index]) for index in rooms]
        return voices, Mixer(voices, noises, responses, cache, mix, config.data.sampling_rate)

    names = [
        names[index]
        for names, used in ((list(speech), kept), (list(noise), kept_noise), (list(rooms), kept_rooms))
        for index in used
    ]
    in_rooms = f" in {len(kept_rooms)} rooms" if rooms else ""
    return Data(
        MixedDataset(*mixer("training", kept, kept_noise, kept_rooms), cache, config.data, mix, seed),
        MixedUtterances(*mixer("held-out", held, held_noise, held_rooms), cache, mix, seed),
        _fingerprint(names),
        f"training on {len(kept)} speech and {len(kept_noise)} noise files{in_rooms}, "
        f"selecting on {len(held)} and {len(held_noise)} held out",
    )


def _fingerprint(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
