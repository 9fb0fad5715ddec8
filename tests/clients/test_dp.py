"""The switch: both paths against a per-record loop, against plain training, and against their statistics."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn import functional

from clients import dp, training
from fedsim import models, rng
from fedsim.data.records import Records
from fedsim.privacy import Plan
from fedsim.scenario import ModelSettings, TrainingSettings

PLAN = Plan(
    sample_rate=0.4,
    expected_batch=12.0,
    steps_per_round=6,
    noise_multiplier=0.7,
    rounds=3,
    delta=1e-5,
    clipping_norm=0.8,
    accountant="prv",
    epsilon=8.0,
    budget=8.0,
)
OPTIMIZERS = [
    {},
    {"momentum": 0.9, "l2": 0.05},
    {"optimizer": "adam", "lr": 0.01, "l2": 0.05},
]
PATHS = pytest.mark.parametrize("reference", [False, True], ids=["written out", "opacus"])


def some_records(n: int = 30, shape: tuple[int, ...] = (10,), classes: int = 3) -> Records:
    stream = np.random.default_rng(0)
    features = stream.normal(size=(n, *shape)).astype(np.float32)
    return Records(features, stream.integers(0, classes, n))


def mlp(classes: int = 3, hidden: tuple[int, ...] = (8, 6), shape: tuple[int, ...] = (10,)) -> nn.Module:
    return models.build(ModelSettings(hidden=list(hidden)), shape, classes, seed=1)


def streams(round: int = 0) -> dict[str, torch.Generator]:
    return {
        "sampling": rng.torch_generator(0, "poisson sampling", round=round),
        "noise": rng.torch_generator(0, "dp noise", round=round),
    }


def trained(module: nn.Module, records: Records, plan: Plan, round: int = 0, options=None, **more) -> dict:
    module = copy.deepcopy(module)
    settings = TrainingSettings(**(options or {}))
    report = dp.train_private(module, records, settings, plan, **streams(round), **more)
    assert report == training.TrainingReport(plan.steps_per_round, None)
    return models.weights(module)


def clipped_gradients(module: nn.Module, x: torch.Tensor, y: torch.Tensor, bound: float) -> list:
    """Sum over records of their clipped gradients, one backward pass each."""
    parameters = list(module.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for i in range(len(y)):
        gradient = torch.autograd.grad(
            functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1]), parameters
        )
        norm = torch.sqrt(sum((g**2).sum() for g in gradient))
        for sum_, g in zip(total, gradient, strict=True):
            sum_ += g * min(1.0, bound / (float(norm) + 1e-6))
    return total


def by_records(module: nn.Module, records: Records, plan: Plan, options: dict, mu: float) -> dict:
    """The slow obvious twin: algorithm 1 of Abadi et al. 2016, record by record, from the same streams."""
    module, source = copy.deepcopy(module), streams()
    parameters = list(module.parameters())
    anchor = [p.detach().clone() for p in parameters]
    optimizer = training.make_optimizer(TrainingSettings(**options), parameters)
    for x, y in dp.poisson_batches(training.tensors(records), plan, source["sampling"]):
        deviation = plan.noise_multiplier * plan.clipping_norm
        for p, total, start in zip(
            parameters, clipped_gradients(module, x, y, plan.clipping_norm), anchor, strict=True
        ):
            noise = torch.normal(0.0, deviation, p.shape, generator=source["noise"])
            p.grad = (total + noise) / plan.expected_batch + mu * (p.detach() - start)
        optimizer.step()
    return models.weights(module)


def assert_close(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=5e-6, err_msg=name)


@PATHS
@pytest.mark.parametrize("mu", [0.0, 0.3])
@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_a_round_equals_the_loop_over_records(options: dict, mu: float, reference: bool) -> None:
    module, records = mlp(), some_records()
    expected = by_records(module, records, PLAN, options, mu)
    found = trained(module, records, PLAN, options=options, proximal_mu=mu, reference=reference)
    assert_close(found, expected)


def test_custom_modules_and_images_take_opacus_path_and_equal_the_loop() -> None:
    module = models.build(ModelSettings(name="cnn", hidden=[3]), (1, 4, 4), 3)
    records = some_records(shape=(1, 4, 4))
    assert_close(trained(module, records, PLAN), by_records(module, records, PLAN, {}, 0.0))


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
    found = trained(module, records, plan, options=options)
    assert_close(found, trained(module, records, plan, options=options, reference=True))


@PATHS
@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_without_noise_and_clipping_full_batches_are_plain_training(options: dict, reference: bool) -> None:
    module, records = mlp(), some_records(30)
    plan = replace(
        PLAN, sample_rate=1.0, expected_batch=30.0, noise_multiplier=0.0, clipping_norm=1e6, steps_per_round=5
    )
    found = trained(module, records, plan, options=options, proximal_mu=0.2, reference=reference)
    plain = copy.deepcopy(module)
    settings = TrainingSettings(**options, batch=30, steps=5)
    training.train(plain, records, settings, rng.torch_generator(0, "training"), proximal_mu=0.2)
    assert_close(found, models.weights(plain))


@PATHS
def test_one_record_moves_the_sum_by_the_clipping_norm_at_most(reference: bool) -> None:
    """The sensitivity that the guarantee rests on: lr = 1 and q·n = 1 make the step the sum itself."""
    module, records = mlp(), some_records(8)
    records = replace(records, features=records.features * 100)
    plan = replace(PLAN, sample_rate=1.0, expected_batch=1.0, noise_multiplier=0.0, steps_per_round=1)
    options = {"lr": 1.0}
    everyone = trained(module, records, plan, options=options, reference=reference)
    for left_out in range(8):
        others = records.take(np.arange(8) != left_out)
        without = trained(module, others, plan, options=options, reference=reference)
        moved = np.sqrt(sum(((everyone[name] - without[name]) ** 2).sum() for name in everyone))
        assert 0.5 * plan.clipping_norm < moved <= plan.clipping_norm * (1 + 1e-4)


@PATHS
def test_an_empty_batch_is_a_step_of_pure_noise_of_the_right_size(reference: bool) -> None:
    module, records = mlp(hidden=(64, 64)), some_records()
    plan = replace(PLAN, sample_rate=0.0, steps_per_round=1)
    before, lr = models.weights(module), 0.5
    moved = []
    for round in range(5):
        after = trained(module, records, plan, round, {"lr": lr}, reference=reference)
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
    before = models.weights(module)
    after = trained(module, some_records(), replace(PLAN, sample_rate=0.0))
    assert not np.array_equal(after["layer.weight"], before["layer.weight"])


def test_records_are_drawn_independently_with_probability_q() -> None:
    n, plan = 50, replace(PLAN, sample_rate=0.3, steps_per_round=4000)
    index = torch.arange(n)
    drawn = np.zeros((plan.steps_per_round, n))
    batches = dp.poisson_batches((index, index), plan, streams()["sampling"])
    for step, (rows, _) in enumerate(batches):
        drawn[step, rows] = 1
    count = drawn.sum(0)
    deviation = np.sqrt(4000 * 0.3 * 0.7)
    assert np.abs(count - 4000 * 0.3).max() < 5 * deviation
    sizes = drawn.sum(1)  # Bin(n, q): shuffled batches of a fixed size would have no variance
    assert sizes.var() == pytest.approx(n * 0.3 * 0.7, rel=0.15)
    successive = np.corrcoef(sizes[:-1], sizes[1:])[0, 1]
    assert abs(successive) < 5 / np.sqrt(4000)


def test_full_rate_takes_every_record_in_every_step() -> None:
    data = training.tensors(some_records(7))
    batches = list(dp.poisson_batches(data, replace(PLAN, sample_rate=1.0), streams()["sampling"]))
    assert len(batches) == PLAN.steps_per_round
    assert all(torch.equal(x, data[0]) for x, _ in batches)


@PATHS
def test_the_same_round_gives_the_same_bits_and_the_next_one_other_noise(reference: bool) -> None:
    module, records = mlp(), some_records()
    first, again, later = (trained(module, records, PLAN, round, reference=reference) for round in (0, 0, 1))
    np.testing.assert_equal(first, again)
    assert not np.array_equal(first["output.weight"], later["output.weight"])


def test_dropout_under_dp_depends_on_the_party_s_streams_only() -> None:
    module = nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    found = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        found.append(trained(module, some_records(), PLAN))
    np.testing.assert_equal(found[0], found[1])


@PATHS
def test_the_module_can_be_trained_again_and_carries_nothing_of_opacus(reference: bool) -> None:
    module, records = mlp(), some_records()
    names = list(module.state_dict())
    for round in range(2):
        dp.train_private(module, records, TrainingSettings(), PLAN, **streams(round), reference=reference)
    assert list(module.state_dict()) == names
    assert not any(hasattr(p, "grad_sample") for p in module.parameters())
    assert models.linear_stack(module) is not None
    training.train(module, records, TrainingSettings(), rng.torch_generator(0, "training"))


@PATHS
def test_a_watch_sees_the_parameters_before_and_after_every_step_and_changes_nothing(reference: bool) -> None:
    module, records = mlp(), some_records()
    seen: list[list[np.ndarray]] = []

    def watch(parameters: list[torch.Tensor]) -> None:
        seen.append([p.detach().numpy().copy() for p in parameters])

    after = trained(module, records, PLAN, reference=reference, watch=watch)
    np.testing.assert_equal(after, trained(module, records, PLAN, reference=reference))
    assert len(seen) == PLAN.steps_per_round + 1
    for parameters, weights in ((seen[0], models.weights(module)), (seen[-1], after)):
        for found, expected in zip(parameters, weights.values(), strict=True):
            np.testing.assert_array_equal(found, expected)
    one_step = trained(module, records, replace(PLAN, steps_per_round=1), reference=reference)
    np.testing.assert_array_equal(seen[1][0], next(iter(one_step.values())))


def test_one_stream_for_two_purposes_is_refused() -> None:
    stream = rng.torch_generator(0, "dp")
    with pytest.raises(ValueError, match="stream each"):
        dp.train_private(mlp(), some_records(), TrainingSettings(), PLAN, sampling=stream, noise=stream)
    with pytest.raises(ValueError, match="without records"):
        dp.train_private(mlp(), some_records(0), TrainingSettings(), PLAN, **streams())
