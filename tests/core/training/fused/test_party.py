"""A party's round by the kernel against the same round written out in torch."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.open_training import draws, some_records
from support.runs import final_sha, finished_run, prepared_run
from support.shadow_plans import small_plan
from support.training import Hidden, mlp
from torch import nn

from attacks.shadows.simulate import path_of as path_of_shadows
from fedsim.core.models.weights import weights_of
from fedsim.core.scenario.protection import NO_DEFENCE, DefenceSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import fused, paths, sgd
from fedsim.core.training.steps import LocalTraining
from fedsim.runs import play

ENOUGH = TrainingSettings(steps=paths.LEAST_STEPS, batch=16)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"momentum": 0.9}, {"l2": 0.05}, {"optimizer": "adam", "lr": 0.01}, {"steps": 7, "batch": 5},
        {"batch": 64}, {"batch": 1},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(("mu", "l1"), [(0.0, 0.0), (0.3, 0.01)])
def test_a_round_is_the_reference_s_to_float_tolerance(options: dict, mu: float, l1: float) -> None:
    settings = TrainingSettings(**{"batch": 16, "epochs": 3, "lr": 0.1, **options})
    local = LocalTraining(settings, DefenceSettings(l1=l1), proximal_mu=mu)
    trained = mlp()
    reference, records = copy.deepcopy(trained), some_records()
    expected = sgd.train(reference, records, local, draws())
    report = sgd.train(trained, records, replace(local, path="fused"), draws())
    assert report.steps == expected.steps
    assert report.loss == pytest.approx(expected.loss, rel=1e-4)
    for name, array in weights_of(reference).items():
        np.testing.assert_allclose(weights_of(trained)[name], array, rtol=1e-3, atol=1e-4)


def test_a_round_moves_and_repeats_itself_bit_for_bit() -> None:
    local = LocalTraining(TrainingSettings(epochs=2, batch=16), path="fused")
    first, second = mlp(), mlp()
    for module in (first, second):
        sgd.train(module, some_records(), local, draws())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(mlp().parameters()))


def path_of(
    module: nn.Module, settings: TrainingSettings = ENOUGH, defence: DefenceSettings = NO_DEFENCE,
    rounds: int = 1, device: str = "cpu",
) -> str:  # fmt: skip
    return paths.training_path(module, settings, defence, 100, rounds, device)


def test_the_kernel_trains_small_stacks_with_steps_enough() -> None:
    assert path_of(mlp()) == "fused"
    assert path_of(mlp(), TrainingSettings(steps=paths.LEAST_STEPS // 4), rounds=4) == "fused"
    assert path_of(mlp(), TrainingSettings(steps=paths.LEAST_STEPS // 4), rounds=3) == "reference"
    assert path_of(mlp(), defence=DefenceSettings(l1=0.1, l2=0.1, clip_update=1.0)) == "fused"
    assert path_of(Hidden(mlp())) == path_of(mlp(hidden=(300, 300))) == "reference"
    assert path_of(mlp(), device="cuda") == "reference"


@pytest.mark.parametrize(
    "defence",
    [
        {"dropout": 0.1}, {"label_smoothing": 0.1}, {"mixup": 0.4}, {"relaxloss": 0.5}, {"hamp_entropy": 0.5},
        {"hamp_weight": 0.1}, {"distil": "selena"}, {"patience": 2},
    ],
    ids=str,
)  # fmt: skip
def test_what_the_kernel_does_not_follow_is_the_reference_s(defence: dict) -> None:
    assert path_of(mlp(), defence=DefenceSettings(**defence)) == "reference"


def test_a_run_of_many_steps_takes_it_and_gives_the_same_bits_in_any_number_of_processes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    settings = {
        "federation": {"rounds": 2},
        "training": {"steps": paths.LEAST_STEPS // 2, "lr": 0.01},
        "adversary": {"attacks": ["loss"]},
    }
    alone = finished_run(tmp_path, out="alone", **settings)
    shared = prepared_run(tmp_path, out="shared", **settings)
    play.federate(shared, workers=2)
    assert set(alone.manifest["training_path"].values()) == {"fused"}
    assert final_sha(alone) == final_sha(shared)
    brief = finished_run(tmp_path, out="brief", **settings | {"training": {"steps": 3}})
    assert set(brief.manifest["training_path"].values()) == {"reference"}


def test_where_numba_is_broken_all_is_trained_by_torch_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = small_plan(hidden=(64,), training={"epochs": 4000})
    assert path_of_shadows(plan) == path_of(mlp(), ENOUGH) == "fused"
    fused.available.cache_clear()
    with monkeypatch.context() as broken:
        broken.setitem(sys.modules, "numba", None)
        assert path_of(mlp(), ENOUGH) == "reference" and path_of_shadows(plan) == "stacked"
    fused.available.cache_clear()
    assert caplog.text.count("numba cannot be imported (ModuleNotFoundError: import of numba halted") == 1
