"""Local training: both paths against torch, and the metrics against scikit-learn."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import nn
from torch.nn import functional

from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.models.layers import linear_stack
from fedsim.core.models.weights import load_weights, weights_of
from fedsim.core.privacy import plan
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training import metrics, optimizers, sgd
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining

OPTIMIZERS = [
    {},
    {"momentum": 0.9},
    {"l2": 0.05},
    {"momentum": 0.5, "l2": 0.01},
    {"optimizer": "adam", "lr": 0.01},
    {"optimizer": "adam", "lr": 0.01, "l2": 0.05},
]


def some_records(n: int = 44, shape: tuple[int, ...] = (10,), classes: int = 3, seed: int = 0) -> Records:
    stream = np.random.default_rng(seed)
    features = stream.normal(size=(n, *shape)).astype(np.float32)
    return Records(features, stream.integers(0, classes, n))


def mlp(classes: int = 3, hidden: tuple[int, ...] = (8, 6), shape: tuple[int, ...] = (10,)) -> nn.Module:
    return zoo.build(ModelSettings(hidden=list(hidden)), shape, classes, seed=1)


def stream(round: int = 0) -> torch.Generator:
    return rng.torch_generator(0, "training", round=round)


def draws(round: int = 0) -> PartyDraws:
    return PartyDraws(stream(round), None)


def trained(module: nn.Module, records: Records, settings: TrainingSettings, **options) -> dict:
    module = copy.deepcopy(module)
    sgd.train(module, records, LocalTraining(settings, **options), draws())
    return weights_of(module)


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


def assert_close(found: dict, expected: dict, atol: float = 2e-6) -> None:
    assert list(found) == list(expected)
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=atol, err_msg=name)


class Hidden(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


@pytest.mark.parametrize("mu", [0.0, 0.3])
@pytest.mark.parametrize("options", OPTIMIZERS, ids=str)
def test_both_paths_equal_autograd_and_torch_s_optimizer(options: dict, mu: float) -> None:
    settings = TrainingSettings(**{"batch": 16, "epochs": 3, **options})
    module, records = mlp(), some_records()
    expected = by_autograd(module, records, settings, mu)
    assert linear_stack(module) is not None
    assert linear_stack(Hidden(module)) is None
    assert_close(trained(module, records, settings, proximal_mu=mu), expected)
    found = trained(Hidden(module), records, settings, proximal_mu=mu)
    assert_close({name.removeprefix("module."): array for name, array in found.items()}, expected)


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
    found = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        found.append(trained(module, some_records(), TrainingSettings()))
        assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_equal(found[0], found[1])


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


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_metrics_are_scikit_learn_s(classes: int) -> None:
    module, records = mlp(classes), some_records(200, classes=classes)
    scores = metrics.logits(module, records)
    p = np.exp(scores - np.logaddexp.reduce(scores, 1)[:, None])
    found = metrics.evaluate(module, records)
    assert found["accuracy"] == accuracy_score(records.labels, scores.argmax(1))
    assert found["loss"] == pytest.approx(log_loss(records.labels, p, labels=range(classes)), rel=1e-6)
    expected = roc_auc_score(records.labels, p[:, 1] if classes == 2 else p, multi_class="ovr")
    assert found["auc"] == pytest.approx(expected, rel=1e-12)
    assert found["n"] == 200


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auc_counts_ties_as_one_half(pairs: list[tuple[int, bool]]) -> None:
    score = np.array([value / 10 for value, _ in pairs])
    labels = np.array([int(positive) for _, positive in pairs])
    found = metrics.auc(np.stack([1 - score, score], 1), labels)
    if labels.min() == labels.max():
        assert math.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(labels, score), abs=1e-12)


def test_auc_is_missing_where_a_class_is_absent_or_a_score_is_not_a_number() -> None:
    p = np.full((3, 3), 1 / 3)
    assert math.isnan(metrics.auc(p, np.array([0, 1, 1])))
    assert metrics.auc(p, np.array([0, 1, 2])) == 0.5
    assert math.isnan(metrics.auc(p * math.nan, np.array([0, 1, 2])))


def test_evaluation_of_nothing_and_of_much() -> None:
    assert metrics.evaluate(mlp(), some_records(0))["n"] == 0
    module, records = mlp().train(), some_records(9000)
    small, large = (metrics.logits(module, records, batch=batch) for batch in (512, 10**6))
    np.testing.assert_allclose(small, large, atol=1e-6)
    assert module.training


def test_evaluation_switches_dropout_off() -> None:
    module = nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    first, again = (metrics.logits(module, some_records()) for _ in range(2))
    np.testing.assert_equal(first, again)


DEFENCES = [
    {"l1": 0.03},
    {"label_smoothing": 0.2},
    {"mixup": 0.4},
    {"mixup": 3.0, "label_smoothing": 0.1, "l1": 0.01},
]


def regularised(module: nn.Module, records: Records, settings: TrainingSettings, defence: dict) -> dict:
    """The slow obvious twin: the losses as their papers write them, differentiated by autograd.

    Mixup's loss is the mixture of the two labels' losses, which is that of the mixed targets; L1 is a part of
    the loss, sign(0) = 0 being autograd's derivative of |w| there.
    """
    module = copy.deepcopy(module)
    optimizer = optimizers.torch_optimizer(settings, list(module.parameters()))
    source, smoothing = stream(), defence.get("label_smoothing", 0.0)
    mixing, alpha = rng.generator(source.initial_seed(), "mixup"), defence.get("mixup", 0)
    for x, y in sgd.minibatches(metrics.tensors(records), settings, PartyDraws(source, None)):
        share, other = 1.0, torch.arange(len(y))
        if alpha:
            share = mixing.beta(alpha, alpha)
            other = torch.from_numpy(mixing.permutation(len(y)))
        optimizer.zero_grad()
        logits = module(share * x + (1 - share) * x[other])
        loss = share * functional.cross_entropy(logits, y, label_smoothing=smoothing)
        loss = loss + (1 - share) * functional.cross_entropy(logits, y[other], label_smoothing=smoothing)
        (loss + defence.get("l1", 0) * sum(p.abs().sum() for p in module.parameters())).backward()
        optimizer.step()
    return weights_of(module)


@pytest.mark.parametrize("wrap", [lambda module: module, Hidden], ids=["stack", "any"])
@pytest.mark.parametrize("options", [{}, {"optimizer": "adam", "lr": 0.01, "l2": 0.05}], ids=str)
@pytest.mark.parametrize("defence", DEFENCES, ids=str)
def test_regularised_steps_equal_the_losses_of_the_papers(defence: dict, options: dict, wrap) -> None:
    settings = TrainingSettings(**{"batch": 16, "epochs": 3, **options})
    module, records = mlp(), some_records()
    with torch.no_grad():
        module[0].bias[0] = 0.0
    expected = regularised(module, records, settings, defence)
    found = trained(wrap(module), records, settings, defence=DefenceSettings(**defence))
    assert_close({name.removeprefix("module."): array for name, array in found.items()}, expected)
    assert not np.allclose(expected["linear1.weight"], trained(module, records, settings)["linear1.weight"])


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(1, 12),
    batch=st.integers(1, 8),
    hidden=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    dropout=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_dropout_written_out_equals_torch_s_layers(n: int, batch: int, hidden: list, dropout: float) -> None:
    """torch's own layers, put behind each ReLU and seeded alike, drop the same units."""
    module, records = mlp(hidden=tuple(hidden)), some_records(n)
    options, defence = TrainingSettings(batch=batch, epochs=2), DefenceSettings(dropout=dropout)
    layers = [[layer, nn.Dropout(dropout)] if type(layer) is nn.ReLU else [layer] for layer in module]
    explicit = nn.Sequential(*[copy.deepcopy(layer) for pair in layers for layer in pair])
    expected = trained(explicit, records, options)
    for wrapped in (module, Hidden(module)):
        found = trained(wrapped, records, options, defence=defence)
        assert_close(dict(zip(expected, found.values(), strict=True)), expected)


def test_dropout_leaves_the_module_as_it_was() -> None:
    module = Hidden(mlp())
    sgd.train(
        module, some_records(), LocalTraining(TrainingSettings(), DefenceSettings(dropout=0.5)), draws()
    )
    assert not any(layer._forward_hooks for layer in module.modules())
    first, again = (metrics.logits(module, some_records()) for _ in range(2))
    np.testing.assert_equal(first, again)


@pytest.mark.parametrize("wrap", [lambda module: module, Hidden], ids=["stack", "any"])
@pytest.mark.parametrize("patience", [1, 3])
def test_early_stopping_answers_the_best_epoch(patience: int, wrap) -> None:
    """Against rounds of 1, 2, 3 … epochs, which the same stream makes beginnings of one another."""
    module, records, unseen = wrap(mlp()), some_records(), some_records(seed=1)
    settings, epochs = TrainingSettings(batch=16, epochs=12, lr=0.5), []
    for epoch in range(1, 13):
        epochs.append(trained(module, records, settings.model_copy(update={"epochs": epoch})))
    losses = []
    for weights in epochs:
        measured = copy.deepcopy(module)
        load_weights(measured, weights)
        losses.append(metrics.evaluate(measured, unseen)["loss"])
    last = next(
        e for e in range(12) if e - int(np.argmin(losses[: e + 1])) == patience
    )  # epochs that are made, less one
    stopped = copy.deepcopy(module)
    local = LocalTraining(settings, DefenceSettings(patience=patience), stop_on=unseen)
    report = sgd.train(stopped, records, local, draws())
    assert report.steps == 3 * (last + 1) < 36
    assert_close(weights_of(stopped), epochs[int(np.argmin(losses[: last + 1]))])


def test_a_round_whose_steps_are_no_whole_epochs_is_measured_at_its_end() -> None:
    module, records = mlp(), some_records()
    settings, defence = TrainingSettings(batch=16, steps=4, lr=0.05), DefenceSettings(patience=5)
    losses = []
    for steps in (3, 4):
        measured = copy.deepcopy(module)
        shorter = LocalTraining(settings.model_copy(update={"steps": steps}))
        sgd.train(measured, records, shorter, draws())
        losses.append(metrics.evaluate(measured, records)["loss"])
    assert losses[1] < losses[0]
    report = sgd.train(module, records, LocalTraining(settings, defence, stop_on=records), draws())
    assert report.steps == 4
    assert metrics.evaluate(module, records)["loss"] == pytest.approx(losses[1], rel=1e-5)


def test_early_stopping_needs_records() -> None:
    with pytest.raises(ValueError, match="early stopping needs records"):
        local = LocalTraining(TrainingSettings(), DefenceSettings(patience=1))
        sgd.train(mlp(), some_records(), local, draws())
