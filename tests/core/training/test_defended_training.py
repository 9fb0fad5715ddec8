"""Regularised rounds and early stopping, against the losses as their papers write them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.defences import defended_loss
from support.open_training import assert_close, draws, some_records, stream, trained
from support.training import Hidden, mlp
from torch import nn
from torch.nn import functional

from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.models.weights import load_weights, weights_of
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import metrics, optimizers, sgd
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining

DEFENCES = [
    {"l1": 0.03},
    {"label_smoothing": 0.2},
    {"mixup": 0.4},
    {"mixup": 3.0, "label_smoothing": 0.1, "l1": 0.01},
]

SLOPES = [
    {"relaxloss": 0.9},
    {"hamp_weight": 0.3},
    {"hamp_entropy": 0.8, "hamp_weight": 0.05},
    {"relaxloss": 1.1, "hamp_weight": 0.1, "hamp_entropy": 0.2},
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
    actual = trained(wrap(module), records, settings, defence=DefenceSettings(**defence))
    assert_close({name.removeprefix("module."): array for name, array in actual.items()}, expected)
    assert not np.allclose(expected["linear1.weight"], trained(module, records, settings)["linear1.weight"])


@pytest.mark.parametrize("wrap", [lambda module: module, Hidden], ids=["stack", "any"])
@pytest.mark.parametrize("defence", SLOPES, ids=str)
def test_steps_on_other_slopes_equal_the_losses_of_the_papers(defence: dict, wrap) -> None:
    settings = TrainingSettings(batch=16, epochs=12, lr=0.4)
    module, records, own = mlp(), some_records(), DefenceSettings(**defence)
    twin = copy.deepcopy(module)
    optimizer, smoothing = optimizers.torch_optimizer(settings, list(twin.parameters())), own.smoothing_of(3)
    batches = sgd.minibatches(metrics.tensors(records), settings, PartyDraws(stream(), None))
    for step, (x, y) in enumerate(batches):
        optimizer.zero_grad()
        targets = (1 - smoothing) * functional.one_hot(y, 3) + smoothing / 3
        defended_loss(twin(x), targets, own, step // 3).backward()
        optimizer.step()
    actual = trained(wrap(module), records, settings, defence=own)
    assert_close({name.removeprefix("module."): array for name, array in actual.items()}, weights_of(twin))
    assert not np.allclose(
        weights_of(twin)["linear1.weight"], trained(module, records, settings)["linear1.weight"]
    )


def test_relaxloss_keeps_the_loss_near_its_target() -> None:
    """What it is for: trained long, the loss of members stays near α instead of going to 0."""
    module, records, settings = mlp(), some_records(), TrainingSettings(batch=16, epochs=150, lr=0.3)
    for target in (0.0, 0.5):
        made = copy.deepcopy(module)
        local = LocalTraining(settings, DefenceSettings(relaxloss=target))
        sgd.train(made, records, local, draws())
        loss = metrics.evaluate(made, records)["loss"]
        assert loss < 0.1 if target == 0 else 0.2 < loss < 0.9


@given(share=st.floats(0.01, 0.99), classes=st.integers(2, 40))
def test_hamp_s_labels_have_the_entropy_that_is_asked(share: float, classes: int) -> None:
    smoothing = DefenceSettings(hamp_entropy=share).smoothing_of(classes)
    p = np.full(classes, smoothing / classes)
    p[0] += 1 - smoothing
    assert -(p * np.log(p)).sum() == pytest.approx(share * np.log(classes), rel=1e-6)


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
        actual = trained(wrapped, records, options, defence=defence)
        assert_close(dict(zip(expected, actual.values(), strict=True)), expected)


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
