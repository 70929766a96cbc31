"""Any bytes as a training state: `train.py --resume` goes on, or says one clear line; nothing in them is executed."""

from __future__ import annotations

import io
import itertools
import math
import os
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import train
from cli import DONE
from models.checkpoint import is_plain_tensor
from models.stft import Spectra
from tests.fixtures.fuzzing import CASES, damaged, try_all
from tests.fixtures.recordings import files_below
from tests.fixtures.steps import GivenLabels
from tests.fixtures.training import PAPER, SMALL, settings, train_here, write_pairs
from tests.models.test_checkpoint_fuzz import Built, archive, numbers, odd_texts, pickles, plain
from training import trainer as steps
from training.stop import TERMINATED, Stop

RESUME = [
    f"--config={PAPER}", *SMALL, *settings(train_metric_lag=1, optim_ema_decay=0.5, train_validation_interval=9),
    "--num_workers=1", "--checkpoint_path=run", "--quiet", "--resume",
]  # fmt: skip


class Small(nn.Module):
    """A network with all that a state tells of one, and few tensors, for files are read as often as there are cases."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, noisy: Spectra) -> Spectra:
        return Spectra(noisy.mag * self.mask(noisy.mag[:, None])[:, 0].sigmoid(), noisy.pha)


class SomeLabels(GivenLabels):
    """Labels of which there are always more, and no processes that would take their time to start."""

    def __init__(self, _: int) -> None:
        super().__init__()
        self.labels = itertools.repeat((0.5, 0.5))

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a run of two steps, in which tests resume it for one more with whatever state they put there."""
    folder = tmp_path_factory.mktemp("state")
    write_pairs(folder, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "build", lambda _: Small())
        patch.setattr(train, "PesqLabeler", SomeLabels)
        assert train_here(folder, *RESUME[:-1], "--max_steps=2").code == 0
        shutil.copytree(folder / "run", folder / "kept")
        patch.setattr(train, "Stop", lambda: Stop(TERMINATED))  # it stops after a step
        yield folder


def check_all(cases: int, states: st.SearchStrategy[bytes], folder: Path) -> None:
    """Every state is gone on from, by a step, or refused in a line with all left as it was."""
    run, kept = folder / "run", {name: (folder / "kept" / name).read_bytes() for name in files_below(folder / "kept")}

    def check(state: bytes) -> None:
        (run / "latest.pt").write_bytes(state)
        ended = train_here(folder, *RESUME)
        assert not (folder / "executed").exists()
        if ended.code in (DONE, TERMINATED):
            shutil.rmtree(run)
            shutil.copytree(folder / "kept", run)
            return
        assert (ended.code, ended.output) == (2, ""), ended
        (line,) = ended.errors.splitlines()
        assert line.startswith("run/latest.pt: ")
        assert {name: (run / name).read_bytes() for name in files_below(run)} == kept | {"latest.pt": state}

    try_all(cases, states, check)


def hostile(sign: Path) -> st.SearchStrategy[object]:
    return st.sampled_from([
        Built(os.system, (f"touch {sign}",)), Built(eval, (f"open({str(sign)!r}, 'w')",)), Built(Path.touch, (sign,)),
        Built(bytearray, (2**70,)),
    ])  # fmt: skip


def odd_tensors() -> st.SearchStrategy[Tensor]:
    shape = st.lists(st.integers(0, 3), max_size=3)
    kind = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64, torch.bfloat16])
    return st.builds(lambda size, dtype: torch.zeros(size, dtype=dtype), shape, kind) | st.sampled_from([
        torch.zeros(1).expand(2**40), torch.zeros(2, 3).to_sparse(), torch.zeros(3, device="meta"),
        torch.tensor(-1.0), torch.tensor(math.nan), torch.tensor(2**62), nn.Parameter(torch.zeros(2)),
    ])  # fmt: skip


def like(value: object) -> list[object]:
    """What is almost the value that a state has."""
    if is_plain_tensor(value) and value.dtype in (torch.float32, torch.int64):
        alike = [value.double(), -value, value * math.nan, value[None], value.flatten(), nn.Parameter(value.float())]
        return [*alike, value.to("meta"), torch.zeros((), dtype=value.dtype).expand(value.shape), value.clone()]
    if isinstance(value, dict):
        odd = {"items": 3, "get": None, "keys": "x", "_metadata": 7}
        return [Built(OrderedDict, (tuple(value.items()),), odd), list(value.items()), {}, dict(value)]
    if isinstance(value, list):
        return [[], value * 2, tuple(value), [{}], [None]]
    return [str(value), [value], -1, 2**53 + 1, 2**70, math.nan, -math.inf, True, 3, torch.tensor(1), torch.zeros(3)]


def copied(value: Any) -> Any:
    """The same tensors in new containers."""
    if isinstance(value, dict):
        return {name: copied(part) for name, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, list) else value


def edited(whole: dict[str, Any], sign: Path) -> st.SearchStrategy[bytes]:
    """A training state in which some things, at any depth, are others."""
    others = plain | numbers | odd_tensors() | hostile(sign)

    @st.composite
    def edited_state(draw: st.DrawFn) -> bytes:
        state = copied(whole)
        for _ in range(draw(st.integers(1, 3))):
            place, name = state, draw(st.sampled_from(list(state)))
            while isinstance(place[name], dict | list) and place[name] and draw(st.integers(0, 3)):
                place = place[name]
                name = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            edit = draw(st.sampled_from(["alike", "alike", "other", "add", "pop"]))
            if edit in ("alike", "other"):
                place[name] = draw(others if edit == "other" else st.sampled_from(like(place[name])))
            elif edit == "pop":
                place.pop(name)
            elif isinstance(place, dict):
                place[draw(odd_texts | st.integers(-1, 3))] = draw(others)
        stream = io.BytesIO()
        torch.save(state, stream)
        return stream.getvalue()

    return edited_state()


@pytest.mark.parametrize("cases", CASES)
def test_any_bytes_are_gone_on_from_or_refused(cases: int, begun: Path, small_checkpoint: Path) -> None:
    whole, network = (begun / "kept/latest.pt").read_bytes(), small_checkpoint.read_bytes()
    names = list(torch.load(begun / "kept/latest.pt", weights_only=True))
    foreign = st.builds(archive, pickles(names, begun / "executed"), st.sampled_from([zipfile.ZIP_STORED]))
    check_all(cases, damaged([whole, whole, network]) | foreign | st.binary(max_size=300), begun)


@pytest.mark.parametrize("cases", CASES)
def test_any_state_is_gone_on_from_or_refused(cases: int, begun: Path) -> None:
    whole = torch.load(begun / "kept/latest.pt", weights_only=True)
    check_all(cases, edited(whole, begun / "executed"), begun)
