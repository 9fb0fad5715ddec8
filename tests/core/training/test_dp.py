"""The switch: both paths against a per-record loop, against plain training, and against their statistics."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from scipy import stats
from torch import nn
from torch.nn import functional

from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.models import layers, zoo
from fedsim.core.models.weights import load_weights, weights_of
from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training import clipping, dp, metrics, optimizers, sgd
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining

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
PATHS = pytest.mark.parametrize("path", ["written out", "per-sample", "ghost"])


def some_records(n: int = 30, shape: tuple[int, ...] = (10,), classes: int = 3) -> Records:
    stream = np.random.default_rng(0)
    features = stream.normal(size=(n, *shape)).astype(np.float32)
    return Records(features, stream.integers(0, classes, n))


def mlp(classes: int = 3, hidden: tuple[int, ...] = (8, 6), shape: tuple[int, ...] = (10,)) -> nn.Module:
    return zoo.build(ModelSettings(hidden=list(hidden)), shape, classes, seed=1)


def streams(round: int = 0) -> tuple[torch.Generator, torch.Generator]:
    """Of batches, and of noise."""
    return (
        rng.torch_generator(0, "poisson sampling", round=round),
        rng.torch_generator(0, "dp noise", round=round),
    )


def draws(round: int = 0) -> PartyDraws:
    return PartyDraws(*streams(round))


class Hidden(nn.Module):
    """A module that is no plain stack, whatever it holds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


def on_path(path: str, settings: TrainingSettings, **more) -> LocalTraining:
    return LocalTraining(settings, gradients="auto" if path == "written out" else path, **more)  # type: ignore[arg-type]


def trained(
    module: nn.Module,
    records: Records,
    plan: Plan,
    round: int = 0,
    options=None,
    path: str = "written out",
    **more,
) -> dict:
    """The weights after a round by one of the paths, of which the second and third are Opacus'."""
    module = copy.deepcopy(module)
    watch = more.pop("watch", None)
    local = on_path(path, TrainingSettings(**(options or {})), **more)
    trained = Hidden(module) if path == "ghost" else module
    report = dp.train_private(trained, records, local, plan, draws(round), watch=watch)
    assert report.loss is None
    assert report.steps == plan.steps_per_round or "stop_on" in more
    assert (report.clipping_norm is None) == (plan.clipping == "flat")
    return weights_of(module)


def clipped_gradients(
    module: nn.Module, x: torch.Tensor, y: torch.Tensor, bound: float, smoothing: float = 0.0
) -> tuple[list, int]:
    """Sum over records of their clipped gradients, one backward pass each; how many were not shortened."""
    parameters = list(module.parameters())
    total, short = [torch.zeros_like(p) for p in parameters], 0
    for i in range(len(y)):
        loss = functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1], label_smoothing=smoothing)
        gradient = torch.autograd.grad(loss, parameters)
        norm = torch.sqrt(sum((g**2).sum() for g in gradient))
        for sum_, g in zip(total, gradient, strict=True):
            sum_ += g * min(1.0, bound / (float(norm) + 1e-6))
        short += float(norm) <= bound
    return total, short


def by_records(
    module: nn.Module, records: Records, plan: Plan, options: dict, mu: float, l1: float = 0, smoothing=0.0
) -> dict:
    """The slow obvious twin: algorithm 1 of Abadi et al. 2016, record by record, from the same streams.

    With algorithm 1 of Andrew et al. 2021 where clipping adapts.
    """
    module, (sampling, noises) = copy.deepcopy(module), streams()
    parameters = list(module.parameters())
    anchor = [p.detach().clone() for p in parameters]
    optimizer = optimizers.torch_optimizer(TrainingSettings(**options), parameters)
    bound, sigma, batch = plan.clipping_norm, plan.noise_multiplier, plan.expected_batch
    count_noise = max(batch / 20, sigma)
    adaptive = plan.clipping == "adaptive"
    z = 1 / math.sqrt(1 / sigma**2 - 1 / (2 * count_noise) ** 2) if adaptive else sigma
    for x, y in dp.poisson_batches(metrics.tensors(records), plan, PartyDraws(sampling, None)):
        gradients, short = clipped_gradients(module, x, y, bound, smoothing)
        for p, total, start in zip(parameters, gradients, anchor, strict=True):
            noise = torch.normal(0.0, z * bound, p.shape, generator=noises)
            p.grad = (total + noise) / batch + mu * (p.detach() - start) + l1 * p.detach().sign()
        optimizer.step()
        if adaptive:
            noise = torch.normal(0.0, count_noise, (1,), generator=noises)
            share = np.clip(0.5 + (short - len(y) / 2 + float(noise)) / batch, 0, 1)
            bound *= math.exp(-plan.clipping_rate * (share - plan.clipping_quantile))
    return weights_of(module)


def assert_close(found: dict, expected: dict) -> None:
    assert list(found) == list(expected)
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=5e-6, err_msg=name)


@PATHS
@pytest.mark.parametrize("mu", [0.0, 0.3])
@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_a_round_equals_the_loop_over_records(options: dict, mu: float, path: str) -> None:
    module, records = mlp(), some_records()
    expected = by_records(module, records, PLAN, options, mu)
    found = trained(module, records, PLAN, options=options, proximal_mu=mu, path=path)
    assert_close(found, expected)


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


@PATHS
@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_smoothing_and_l1_equal_the_loop_over_records(options: dict, path: str) -> None:
    module, records = mlp(), some_records()
    defence = DefenceSettings(l1=0.02, label_smoothing=0.3)
    expected = by_records(module, records, PLAN, options, 0.1, l1=0.02, smoothing=0.3)
    found = trained(module, records, PLAN, options=options, proximal_mu=0.1, path=path, defence=defence)
    assert_close(found, expected)


def test_dropout_is_the_same_on_all_paths_and_something() -> None:
    module, records, defence = mlp(), some_records(), DefenceSettings(dropout=0.4)
    paths = ("written out", "per-sample", "ghost")
    found = [trained(module, records, PLAN, path=path, defence=defence) for path in paths]
    assert_close(found[1], found[0])
    assert_close(found[2], found[0])
    assert not np.allclose(found[0]["linear1.weight"], trained(module, records, PLAN)["linear1.weight"])


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
    assert_close(found, trained(module, records, plan, options=options, path="per-sample"))


@PATHS
@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_without_noise_and_clipping_full_batches_are_plain_training(options: dict, path: str) -> None:
    module, records = mlp(), some_records(30)
    plan = replace(
        PLAN, sample_rate=1.0, expected_batch=30.0, noise_multiplier=0.0, clipping_norm=1e6, steps_per_round=5
    )
    found = trained(module, records, plan, options=options, proximal_mu=0.2, path=path)
    plain = copy.deepcopy(module)
    settings = TrainingSettings(**options, batch=30, steps=5)
    sgd.train(plain, records, LocalTraining(settings, proximal_mu=0.2), draws())
    assert_close(found, weights_of(plain))


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


def test_records_are_drawn_independently_with_probability_q() -> None:
    n, plan = 50, replace(PLAN, sample_rate=0.3, steps_per_round=4000)
    index = torch.arange(n)
    drawn = np.zeros((plan.steps_per_round, n))
    batches = dp.poisson_batches((index, index), plan, draws())
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
    data = metrics.tensors(some_records(7))
    batches = list(dp.poisson_batches(data, replace(PLAN, sample_rate=1.0), draws()))
    assert len(batches) == PLAN.steps_per_round
    assert all(torch.equal(x, data[0]) for x, _ in batches)


@PATHS
def test_the_same_round_gives_the_same_bits_and_the_next_one_other_noise(path: str) -> None:
    module, records = mlp(), some_records()
    first, again, later = (trained(module, records, PLAN, round, path=path) for round in (0, 0, 1))
    np.testing.assert_equal(first, again)
    assert not np.array_equal(first["output.weight"], later["output.weight"])


def test_dropout_under_dp_depends_on_the_party_s_streams_only() -> None:
    module = nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    found = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        found.append(trained(module, some_records(), PLAN))
    np.testing.assert_equal(found[0], found[1])


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
        for found, expected in zip(parameters, weights.values(), strict=True):
            np.testing.assert_array_equal(found, expected)
    one_step = trained(module, records, replace(PLAN, steps_per_round=1), path=path)
    np.testing.assert_array_equal(seen[1][0], next(iter(one_step.values())))


def test_one_stream_for_two_purposes_is_refused() -> None:
    stream = rng.torch_generator(0, "dp")
    with pytest.raises(ValueError, match="stream each"):
        PartyDraws(stream, stream)


def test_nobody_trains_without_records() -> None:
    with pytest.raises(ValueError, match="without records"):
        dp.train_private(mlp(), some_records(0), LocalTraining(TrainingSettings()), PLAN, draws())
