"""What clipping does on each path, fixed and adaptive, against a loop over records and against its bound."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.private_training import (
    PATHS,
    by_records,
    draws,
    on_path,
    trained,
)
from support.training import PLAN, Hidden, assert_close, mlp, some_records
from torch import nn
from torch.nn import functional

from fedsim.core.models import zoo
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training import clipping, dp, metrics
from fedsim.core.training.steps import LocalTraining


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 12),
    hidden=st.lists(st.integers(1, 5), max_size=3),
    classes=st.integers(2, 4),
    shape=st.sampled_from([(3,), (1,), (1, 2, 3)]),
    clipping_norm=st.sampled_from([1e-3, 0.5, 100.0]),
)
def test_the_written_out_norms_equal_opacus_for_every_shape(n, hidden, classes, shape, clipping_norm) -> None:
    module, records = mlp(classes, tuple(hidden), shape), some_records(n, shape, classes)
    plan = replace(PLAN, clipping_norm=clipping_norm, steps_per_round=2)
    options = {"lr": 0.01}
    actual = trained(module, records, plan, options=options)
    assert_close(actual, trained(module, records, plan, options=options, path="per-sample"))


def test_ghost_clipping_equals_the_loop_for_convolutions() -> None:
    module = zoo.build(ModelSettings(name="cnn", hidden=[3]), (1, 4, 4), 3)
    records = some_records(shape=(1, 4, 4))
    assert_close(trained(module, records, PLAN, path="ghost"), by_records(module, records, PLAN, {}, 0.0))


def test_auto_takes_ghost_clipping_for_large_modules_that_it_is_right_for() -> None:
    large = nn.Sequential(nn.Linear(10, 1000), nn.Tanh(), nn.Linear(1000, 200), nn.Tanh(), nn.Linear(200, 3))
    shared = nn.Linear(300, 300)
    tied = nn.Sequential(nn.Linear(10, 300), nn.Tanh(), shared, nn.Tanh(), shared, nn.Linear(300, 3))
    small = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))
    convolutions = zoo.build(ModelSettings(name="cnn", hidden=[16, 64, 64]), (1, 28, 28), 3)
    assert clipping.takes_ghost(large, (10,), 12, "auto")
    assert not clipping.takes_ghost(large, (10,), 2, "auto")
    assert not clipping.takes_ghost(tied, (10,), 12, "auto")
    assert not clipping.takes_ghost(small, (10,), 12, "auto")
    assert not clipping.takes_ghost(convolutions, (1, 28, 28), 1000, "auto")
    assert clipping.takes_ghost(small, (10,), 12, "ghost")
    assert not clipping.takes_ghost(large, (10,), 12, "per-sample")


@PATHS
def test_one_record_moves_the_sum_by_the_clipping_norm_at_most(path: str) -> None:
    """The sensitivity that the guarantee rests on: lr = 1 and q·n = 1 make the step the sum itself."""
    module, records = mlp(), some_records(8)
    records = replace(records, features=records.features * 100)
    plan = replace(PLAN, sample_rate=1.0, expected_batch=1.0, noise_multiplier=0.0, steps_per_round=1)
    options = {"lr": 1.0}
    everyone = trained(module, records, plan, options=options, path=path)
    for left_out in range(8):
        others = records.take(np.arange(8) != left_out)
        without = trained(module, others, plan, options=options, path=path)
        moved = np.sqrt(sum(((everyone[name] - without[name]) ** 2).sum() for name in everyone))
        assert 0.5 * plan.clipping_norm < moved <= plan.clipping_norm * (1 + 1e-4)


@PATHS
@pytest.mark.parametrize("quantile", [0.2, 0.8])
@pytest.mark.parametrize("sigma", [0.4, 2.0])
def test_adaptive_clipping_equals_the_loop_over_records(sigma: float, quantile: float, path: str) -> None:
    module, records = mlp(), some_records()
    adaptive = {"clipping": "adaptive", "clipping_quantile": quantile, "clipping_rate": 0.5}
    plan = replace(PLAN, noise_multiplier=sigma, steps_per_round=12, **adaptive)
    assert_close(trained(module, records, plan, path=path), by_records(module, records, plan, {}, 0.0))


@PATHS
def test_the_adapted_norm_is_carried_over_and_survives_empty_batches(path: str) -> None:
    plan = replace(PLAN, clipping="adaptive", sample_rate=0.0, steps_per_round=2)
    module, norm = mlp(), None
    for round in range(3):
        trained_on = copy.deepcopy(module)
        report = dp.train_private(
            Hidden(trained_on) if path == "ghost" else trained_on,
            some_records(), on_path(path, TrainingSettings()), plan, draws(round), clipping_norm=norm,
        )  # fmt: skip
        before = plan.clipping_norm if norm is None else norm
        assert report.clipping_norm != before
        assert abs(math.log(report.clipping_norm / before)) <= 2 * 0.5 * plan.clipping_rate
        norm = report.clipping_norm


def test_the_norm_settles_at_the_quantile_of_the_gradients_norms() -> None:
    """Weights that do not move, next to no noise: C ends where a share of 0.3 of the norms lies below it."""
    module, records = mlp(), some_records(200)
    plan = replace(
        PLAN, clipping="adaptive", clipping_quantile=0.3, clipping_rate=0.05, noise_multiplier=1e-3,
        sample_rate=1.0, expected_batch=200.0, steps_per_round=500,
    )  # fmt: skip
    report = dp.train_private(module, records, LocalTraining(TrainingSettings(lr=1e-12)), plan, draws())
    parameters, norms = list(module.parameters()), []
    for x, y in zip(*metrics.tensors(records), strict=True):
        gradient = torch.autograd.grad(functional.cross_entropy(module(x[None]), y[None]), parameters)
        norms.append(float(torch.sqrt(sum((g**2).sum() for g in gradient))))
    assert np.mean(np.array(norms) <= report.clipping_norm) == pytest.approx(0.3, abs=0.05)
