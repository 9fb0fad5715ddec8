"""A party's round without DP: both paths against autograd and torch's optimizers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.open_training import assert_close, draws, some_records, trained
from support.training import Hidden, mlp
from torch import nn
from torch.nn import functional

from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.models.layers import linear_stack
from fedsim.core.models.weights import load_weights, weights_of
from fedsim.core.privacy import plan
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training import metrics, optimizers, sgd
from fedsim.core.training.steps import LocalTraining

OPTIMIZERS = [
    {},
    {"momentum": 0.9},
    {"l2": 0.05},
    {"momentum": 0.5, "l2": 0.01},
    {"optimizer": "adam", "lr": 0.01},
    {"optimizer": "adam", "lr": 0.01, "l2": 0.05},
]


def by_autograd(module: nn.Module, records: Records, settings: TrainingSettings, mu: float = 0.0) -> dict:
    """The slow obvious twin: FedProx's loss as the paper writes it, torch's optimizer, the same batches."""
    module = copy.deepcopy(module)
    anchor = [p.detach().clone() for p in module.parameters()]
    optimizer = optimizers.torch_optimizer(settings, list(module.parameters()))
    for x, y in sgd.minibatches(metrics.tensors(records), settings, draws()):
        optimizer.zero_grad()
        distance = sum(((p - start) ** 2).sum() for p, start in zip(module.parameters(), anchor, strict=True))
        (functional.cross_entropy(module(x), y) + mu / 2 * distance).backward()
        optimizer.step()
    return weights_of(module)


@pytest.mark.parametrize("mu", [0.0, 0.3])
@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_both_paths_equal_autograd_and_torch_s_optimizer(options: dict, mu: float) -> None:
    settings = TrainingSettings(**{"batch": 16, "epochs": 3, **options})
    module, records = mlp(), some_records()
    expected = by_autograd(module, records, settings, mu)
    assert linear_stack(module) is not None
    assert linear_stack(Hidden(module)) is None
    assert_close(trained(module, records, settings, proximal_mu=mu), expected)
    actual = trained(Hidden(module), records, settings, proximal_mu=mu)
    assert_close({name.removeprefix("module."): array for name, array in actual.items()}, expected)


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 20),
    batch=st.integers(1, 8),
    hidden=st.lists(st.integers(1, 5), max_size=3),
    classes=st.integers(2, 4),
    shape=st.sampled_from([(3,), (1,), (1, 2, 3)]),
)
def test_the_written_out_pass_equals_autograd_for_every_shape(n, batch, hidden, classes, shape) -> None:
    module = mlp(classes, tuple(hidden), shape)
    records = some_records(n, shape, classes)
    options = TrainingSettings(batch=batch, epochs=2)
    assert_close(trained(module, records, options), by_autograd(module, records, options))


def test_the_proximal_term_pulls_towards_the_start() -> None:
    module, records, settings = mlp(), some_records(), TrainingSettings(lr=0.05, epochs=10)
    start = weights_of(module)

    def moved(mu: float) -> float:
        after = trained(module, records, settings, proximal_mu=mu)
        return sum(float(((after[name] - start[name]) ** 2).sum()) for name in start)

    assert moved(5.0) < moved(0.5) < moved(0.0)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_the_same_stream_gives_the_same_bits_and_another_one_does_not(name: str) -> None:
    module = zoo.build(ModelSettings(name=name, hidden=[4]), (1, 4, 4), 3)
    records, settings = some_records(shape=(1, 4, 4)), TrainingSettings()
    first, again = (trained(module, records, settings) for _ in range(2))
    np.testing.assert_equal(first, again)
    sgd.train(module, records, LocalTraining(settings), draws(round=1))
    assert not np.array_equal(weights_of(module)["output.bias"], first["output.bias"])


def test_dropout_draws_from_the_party_s_stream_and_leaves_the_global_one_alone() -> None:
    module = nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    actual = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        actual.append(trained(module, some_records(), TrainingSettings()))
        assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_equal(actual[0], actual[1])


@pytest.mark.parametrize(("n", "options"), [(44, {"epochs": 2}), (44, {"steps": 7}), (5, {"steps": 3})])
def test_batches_and_steps(n: int, options: dict) -> None:
    settings = TrainingSettings(batch=16, **options)
    data = torch.arange(n), torch.arange(n) * 2
    batches = list(sgd.minibatches(data, settings, draws()))
    assert len(batches) == plan.steps_per_round(settings, n)
    assert all(torch.equal(2 * x, y) for x, y in batches)
    per_epoch = -(-n // 16)
    for start in range(0, len(batches) - per_epoch + 1, per_epoch):
        seen = torch.cat([x for x, _ in batches[start : start + per_epoch]])
        assert sorted(seen.tolist()) == list(range(n))
    if len(batches) > per_epoch:
        assert not torch.equal(batches[0][0], batches[per_epoch][0])
    report = sgd.train(mlp(), some_records(n), LocalTraining(settings), draws())
    assert report.steps == len(batches)


@pytest.mark.parametrize("wrap", [lambda module: module, Hidden], ids=["stack", "any"])
def test_the_reported_loss_is_the_mean_over_the_round_s_records(wrap) -> None:
    module, records = wrap(mlp()), some_records()
    expected = metrics.evaluate(module, records)["loss"]
    # With a vanishing learning rate every batch meets the same weights.
    report = sgd.train(module, records, LocalTraining(TrainingSettings(lr=1e-12, epochs=2)), draws())
    assert report.loss == pytest.approx(expected, rel=1e-5)


def test_training_learns() -> None:
    records, module = some_records(n=30, classes=2), mlp(2, (32, 32))
    sgd.train(module, records, LocalTraining(TrainingSettings(epochs=150)), draws())
    assert metrics.evaluate(module, records)["accuracy"] == 1.0


def test_nobody_trains_without_records() -> None:
    with pytest.raises(ValueError, match="without records"):
        sgd.train(mlp(), some_records(0), LocalTraining(TrainingSettings()), draws())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_parties_that_train_one_module_in_turn_train_as_with_one_of_their_own(dropout: float) -> None:
    settings, defence = TrainingSettings(batch=16, epochs=2, momentum=0.9), DefenceSettings(dropout=dropout)
    records = [some_records(), some_records().take(np.arange(37))]
    scratch = mlp()
    sent = [weights_of(zoo.build(ModelSettings(hidden=[8, 6]), (10,), 3, seed=seed)) for seed in (1, 2)]
    local = LocalTraining(settings, defence)
    for _ in range(2):  # the second time all that is kept between parties is there
        for own, weights in zip(records, sent, strict=True):
            alone = mlp()
            answers = []
            for module in (scratch, alone):
                load_weights(module, weights)
                report = sgd.train(module, own, local, draws())
                answers.append((report, weights_of(module)))
            assert answers[0][0] == answers[1][0]
            for name, array in answers[1][1].items():
                np.testing.assert_array_equal(answers[0][1][name], array)
