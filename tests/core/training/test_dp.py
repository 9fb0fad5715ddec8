"""The switch: every path against a loop over records, against plain training, and against its statistics."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from scipy import stats
from support.private_training import (
    OPTIMIZERS,
    PATHS,
    by_records,
    draws,
    on_path,
    trained,
)
from support.training import PLAN, Hidden, assert_close, mlp, some_records
from torch import nn
from torch.nn import functional

from fedsim.core.data.records import Records
from fedsim.core.models import layers, zoo
from fedsim.core.models.weights import load_weights, weights_of
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training import dp, metrics, optimizers, sgd
from fedsim.core.training.steps import LocalTraining


@PATHS
@pytest.mark.parametrize("mu", [0.0, 0.3])
@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_a_round_equals_the_loop_over_records(options: dict, mu: float, path: str) -> None:
    module, records = mlp(), some_records()
    expected = by_records(module, records, PLAN, options, mu)
    actual = trained(module, records, PLAN, options=options, proximal_mu=mu, path=path)
    assert_close(actual, expected)


@pytest.mark.filterwarnings("ignore:Full backward hook")
@PATHS
def test_steps_without_noise_are_those_of_opacus_own_optimizer(path: str) -> None:
    module, records = mlp(), some_records()
    plan = replace(PLAN, noise_multiplier=0.0)
    private = GradSampleModule(copy.deepcopy(module), loss_reduction="sum")
    optimizer = DPOptimizer(
        optimizers.torch_optimizer(TrainingSettings(), list(private.parameters())),
        noise_multiplier=0.0,
        max_grad_norm=plan.clipping_norm,
        expected_batch_size=plan.expected_batch,
    )
    for x, y in dp.poisson_batches(metrics.tensors(records), plan, draws()):
        optimizer.zero_grad()
        functional.cross_entropy(private(x), y, reduction="sum").backward()
        optimizer.step()
    expected = weights_of(private.to_standard_module())
    assert_close(trained(module, records, plan, path=path), expected)


def test_custom_modules_and_images_take_opacus_path_and_equal_the_loop() -> None:
    module = zoo.build(ModelSettings(name="cnn", hidden=[3]), (1, 4, 4), 3)
    records = some_records(shape=(1, 4, 4))
    assert_close(trained(module, records, PLAN), by_records(module, records, PLAN, {}, 0.0))


@PATHS
@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_smoothing_and_l1_equal_the_loop_over_records(options: dict, path: str) -> None:
    module, records = mlp(), some_records()
    defence = DefenceSettings(l1=0.02, label_smoothing=0.3)
    expected = by_records(module, records, PLAN, options, 0.1, l1=0.02, smoothing=0.3)
    actual = trained(module, records, PLAN, options=options, proximal_mu=0.1, path=path, defence=defence)
    assert_close(actual, expected)


def test_dropout_is_the_same_on_all_paths_and_something() -> None:
    module, records, defence = mlp(), some_records(), DefenceSettings(dropout=0.4)
    paths = ("written out", "per-sample", "ghost")
    actual = [trained(module, records, PLAN, path=path, defence=defence) for path in paths]
    assert_close(actual[1], actual[0])
    assert_close(actual[2], actual[0])
    assert not np.allclose(actual[0]["linear1.weight"], trained(module, records, PLAN)["linear1.weight"])


@PATHS
def test_early_stopping_answers_the_best_epoch_and_counts_the_steps_made(path: str) -> None:
    module, records, public = mlp(), some_records(), some_records(40)
    public = replace(public, labels=public.labels[::-1].copy())  # nothing is to be learnt for these
    options, defence = {"batch": 10, "lr": 1.0}, DefenceSettings(patience=2)
    plan = replace(PLAN, steps_per_round=30)
    stopped = copy.deepcopy(module)
    local = on_path(path, TrainingSettings(**options), defence=defence, stop_on=public)
    report = dp.train_private(Hidden(stopped) if path == "ghost" else stopped, records, local, plan, draws())
    epochs = []
    for epoch in range(1, 11):
        shorter = replace(plan, steps_per_round=3 * epoch)
        epochs.append(trained(module, records, shorter, options=options, path=path))
    expected, made = best_epoch(module, epochs, public, patience=2)
    assert report.steps == 3 * made < 30
    assert_close(weights_of(stopped), expected)


def best_epoch(module: nn.Module, epochs: list[dict], records: Records, patience: int) -> tuple[dict, int]:
    """The weights of the best epoch before the first ``patience`` ones in a row that are no better."""
    losses = []
    for weights in epochs:
        load_weights(module, weights)
        losses.append(metrics.evaluate(module, records)["loss"])
    best = 0
    for epoch, loss in enumerate(losses):
        best = epoch if loss < losses[best] else best
        if epoch - best == patience:
            return epochs[best], epoch + 1
    return epochs[best], len(epochs)


def test_mixup_is_refused_where_each_record_has_a_gradient_of_its_own() -> None:
    with pytest.raises(ValueError, match="mixup"):
        trained(mlp(), some_records(), PLAN, defence=DefenceSettings(mixup=0.2))


@PATHS
@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_without_noise_and_clipping_full_batches_are_plain_training(options: dict, path: str) -> None:
    module, records = mlp(), some_records(30)
    plan = replace(
        PLAN, sample_rate=1.0, expected_batch=30.0, noise_multiplier=0.0, clipping_norm=1e6, steps_per_round=5
    )
    actual = trained(module, records, plan, options=options, proximal_mu=0.2, path=path)
    plain = copy.deepcopy(module)
    settings = TrainingSettings(**options, batch=30, steps=5)
    sgd.train(plain, records, LocalTraining(settings, proximal_mu=0.2), draws())
    assert_close(actual, weights_of(plain))


@PATHS
def test_an_empty_batch_is_a_step_of_pure_noise_of_the_right_size(path: str) -> None:
    module, records = mlp(hidden=(64, 64)), some_records()
    plan = replace(PLAN, sample_rate=0.0, steps_per_round=1)
    before, lr = weights_of(module), 0.5
    moved = []
    for round in range(5):
        after = trained(module, records, plan, round, {"lr": lr}, path=path)
        moved += [(after[name] - before[name]).ravel() for name in before]
    noise = np.concatenate(moved)
    deviation = lr * plan.noise_multiplier * plan.clipping_norm / plan.expected_batch
    # The sample variance of n normal draws has a relative standard deviation of √(2/n).
    assert noise.var() == pytest.approx(deviation**2, rel=5 * np.sqrt(2 / len(noise)))
    assert stats.kstest(noise / deviation, "norm").pvalue > 1e-4


def test_opacus_path_survives_an_empty_batch_that_the_module_would_not() -> None:
    class NeedsRecords(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert len(x) > 0
            return self.layer(x)

    module = NeedsRecords()
    before = weights_of(module)
    after = trained(module, some_records(), replace(PLAN, sample_rate=0.0))
    assert not np.array_equal(after["layer.weight"], before["layer.weight"])


@PATHS
def test_the_same_round_gives_the_same_bits_and_the_next_one_other_noise(path: str) -> None:
    module, records = mlp(), some_records()
    first, again, later = (trained(module, records, PLAN, round, path=path) for round in (0, 0, 1))
    np.testing.assert_equal(first, again)
    assert not np.array_equal(first["output.weight"], later["output.weight"])


def test_dropout_under_dp_depends_on_the_party_s_streams_only() -> None:
    module = nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    actual = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        actual.append(trained(module, some_records(), PLAN))
    np.testing.assert_equal(actual[0], actual[1])


@pytest.mark.parametrize("path", ["written out", "per-sample"])
def test_the_module_can_be_trained_again_and_carries_nothing_of_opacus(path: str) -> None:
    module, records = mlp(), some_records()
    names = list(module.state_dict())
    for round in range(2):
        dp.train_private(module, records, on_path(path, TrainingSettings()), PLAN, draws(round))
    assert list(module.state_dict()) == names
    assert not any(hasattr(p, "grad_sample") for p in module.parameters())
    assert layers.linear_stack(module) is not None
    sgd.train(module, records, LocalTraining(TrainingSettings()), draws())


@PATHS
def test_a_watch_sees_the_parameters_before_and_after_every_step_and_changes_nothing(path: str) -> None:
    module, records = mlp(), some_records()
    seen: list[list[np.ndarray]] = []

    def watch(parameters: list[torch.Tensor], norm: float) -> None:
        assert norm == PLAN.clipping_norm
        seen.append([p.detach().numpy().copy() for p in parameters])

    after = trained(module, records, PLAN, path=path, watch=watch)
    np.testing.assert_equal(after, trained(module, records, PLAN, path=path))
    assert len(seen) == PLAN.steps_per_round + 1
    for parameters, weights in ((seen[0], weights_of(module)), (seen[-1], after)):
        for actual, expected in zip(parameters, weights.values(), strict=True):
            np.testing.assert_array_equal(actual, expected)
    one_step = trained(module, records, replace(PLAN, steps_per_round=1), path=path)
    np.testing.assert_array_equal(seen[1][0], next(iter(one_step.values())))


def test_nobody_trains_without_records() -> None:
    with pytest.raises(ValueError, match="without records"):
        dp.train_private(mlp(), some_records(0), LocalTraining(TrainingSettings()), PLAN, draws())
