"""What is no training state of this run is refused, by the place of what is wrong."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from tests.fixtures.steps import BATCHES, Make


@pytest.fixture
def state(make: Make) -> dict[str, Any]:
    """That of a run of one step."""
    trainer = make(metric_lag=1)
    trainer.step(BATCHES[0], 0)
    return trainer.state_dict()


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("global_step",), -1, "global_step: not from 0 to 9007199254740992"),
        (("global_step",), 2**60, "global_step: not from 0 to"),
        (("skipped",), 1.0, "skipped: not int"),
        (("unlabelled",), torch.tensor(1), "unlabelled: not int"),
        (("network",), [], "network: other entries"),
        (("network", "more"), torch.zeros(1), "network: other entries"),
        (("discriminator", "slope"), torch.zeros(3), r"discriminator\.slope: not torch\.float32 of shape \[1\]"),
        (("discriminator", "slope"), torch.zeros(1).double(), r"discriminator\.slope: not torch\.float32 of shape"),
        (("optimizer", "state", 0, "step"), torch.tensor(-1.0), r"optimizer\.state\.0\.step: below 0"),
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(2), r"optimizer\.state\.0\.exp_avg: not torch\.float32"),
        (("optimizer", "state", 0, "max"), torch.zeros(2), r"optimizer\.state\.0: other entries"),
        (("discriminator_optimizer", "state", "0"), {}, r"discriminator_optimizer\.state: other entries"),
        (("waiting",), None, "waiting: of another number of processes"),
        (("waiting",), [None, None], "waiting: of another number of processes"),
        (("waiting", 0, "labels"), torch.zeros(3), r"waiting\.labels: not torch\.float32 of shape \[2\]"),
        (("waiting", 0, "clean_mag"), torch.zeros(2, 64, 1), r"waiting\.clean_mag: not torch\.float32 of shape"),
        (("waiting", 0), {}, "waiting: other entries"),
    ],
)
def test_what_is_wrong_is_named(make: Make, state: dict[str, Any], place: tuple, value: object, words: str) -> None:
    part: Any = state
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    with pytest.raises(ValueError, match=words):
        make(metric_lag=1).load_state_dict(state)


@pytest.mark.parametrize("name", ["network", "optimizer", "global_step", "waiting"])
def test_what_is_missing_is_named(make: Make, state: dict[str, Any], name: str) -> None:
    del state[name]
    with pytest.raises(KeyError, match=name):
        make(metric_lag=1).load_state_dict(state)


def test_methods_in_the_place_of_a_mapping_s_own_are_not_called(make: Make, state: dict[str, Any]) -> None:
    state["network"] = OrderedDict(state["network"])
    vars(state["network"]).update(items=3, keys=4, copy=5, _metadata=6)
    trainer = make(metric_lag=1)
    trainer.load_state_dict(state)
    assert trainer.global_step == 1


def test_the_optimiser_s_settings_are_those_of_the_configuration(make: Make, state: dict[str, Any]) -> None:
    state["optimizer"]["param_groups"] = [{"betas": (0.0, 0.0), "maximize": True}]
    trainer = make(metric_lag=1)
    trainer.load_state_dict(state)
    (group,) = trainer.optimizer.param_groups
    assert (group["betas"], group["maximize"]) == ((0.8, 0.99), False)
    assert {float(each["step"]) for each in trainer.optimizer.state.values()} == {1.0}
