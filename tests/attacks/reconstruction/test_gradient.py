"""Gradient inversion finds the records behind an update, exactly where arithmetic allows it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.layouts import layout_of_features

from attacks.reconstruction import analytic, gradient
from attacks.reconstruction.gradient import Effort, LocalSteps
from attacks.reconstruction.rows import Rows
from fedsim.core.data.layout import Layout
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.models.weights import weights_of
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.sgd import train
from fedsim.core.training.steps import LocalTraining
from fedsim.evaluation.reconstruction import match

LAYOUT = layout_of_features("a", "b", "b missing", "w=x", "w=y", "w=z", "c")
QUICK = Effort(starts=2, dlg_iterations=80, geiping_iterations=250)


def drawn(n: int, seed: int, layout: Layout = LAYOUT) -> Records:
    stream = np.random.default_rng(seed)
    return Records(Rows.of(layout).drawn(n, stream), stream.integers(0, 3, n))


def module(hidden: tuple[int, ...] = (32,), layout: Layout = LAYOUT, name: str = "mlp") -> torch.nn.Module:
    chosen = ModelSettings(name=name, hidden=list(hidden))
    return zoo.build(chosen, (layout[-1].stop,), 3, seed=5).eval()


def update_of(net: torch.nn.Module, records: Records, local: LocalSteps) -> dict[str, np.ndarray]:
    """Δ of the program's own local training."""
    before = weights_of(net)
    trained = copy.deepcopy(net)
    chosen = TrainingSettings(
        lr=local.lr,
        batch=local.batch,
        epochs=local.epochs,
        optimizer=local.optimizer,
        momentum=local.momentum,
    )
    draws = PartyDraws(torch.Generator().manual_seed(0), None)
    train(trained, records, LocalTraining(chosen), draws)
    return {name: array.astype(np.float64) - before[name] for name, array in weights_of(trained).items()}


@given(st.integers(0, 10_000))
@settings(max_examples=20)
def test_a_batch_of_one_on_a_linear_layer_is_arithmetic(seed: int) -> None:
    record = drawn(1, seed)
    net = module(name="logistic").double()
    loss = torch.nn.functional.cross_entropy(
        net(torch.tensor(record.features).double()), torch.tensor(record.labels)
    )
    weight, bias = torch.autograd.grad(loss, list(net.parameters()))
    rebuilt = analytic.first_layer(weight.numpy(), bias.numpy())
    assert len(rebuilt) == 3
    np.testing.assert_allclose(rebuilt, np.repeat(record.features, 3, axis=0), atol=1e-12)


@pytest.mark.parametrize("method", gradient.METHODS)
def test_one_record_is_found_whole(method: gradient.Method) -> None:
    record, local, net = drawn(1, 1), LocalSteps(1, 1, 1, 0.1), module()
    update = update_of(net, record, local)
    rebuilt = gradient.invert(net, update, local, LAYOUT, method, np.random.default_rng(0), effort=QUICK)
    np.testing.assert_allclose(rebuilt.features, record.features, atol=0.02)
    assert rebuilt.labels.tolist() == record.labels.tolist()


@pytest.mark.parametrize("local", [LocalSteps(4, 4, 1, 0.1), LocalSteps(4, 4, 3, 0.1)])
def test_a_small_batch_is_found_after_one_step_and_after_several(local: LocalSteps) -> None:
    records, net = drawn(4, 2), module((64,))
    update = update_of(net, records, local)
    rebuilt = gradient.invert(net, update, local, LAYOUT, "dlg", np.random.default_rng(0), effort=QUICK)
    judged = match(rebuilt.features, rebuilt.labels, records.features, records.labels, LAYOUT)
    assert (judged.rows, judged.cells, judged.labels) == (4, 16, 4)


def test_an_update_that_is_all_noise_tells_nothing() -> None:
    records, local, net = drawn(4, 3), LocalSteps(4, 4, 1, 0.1), module((64,))
    stream = np.random.default_rng(0)
    update = {name: stream.normal(size=value.shape) for name, value in weights_of(net).items()}
    rebuilt = gradient.invert(net, update, local, LAYOUT, "geiping", stream, effort=QUICK)
    assert match(rebuilt.features, rebuilt.labels, records.features, records.labels, LAYOUT).rows == 0


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.integers(0, 1000))
def test_label_counts_are_exact_where_the_mean_output_is(labels: list[int], seed: int) -> None:
    """The gradient of the bias by its definition, and the true mean output."""
    p = np.random.default_rng(seed).dirichlet(np.ones(3), size=len(labels))
    bias_gradient = (p - np.eye(3)[labels]).mean(axis=0)
    counts = analytic.label_counts(bias_gradient, p.mean(axis=0), len(labels))
    assert counts.tolist() == np.bincount(labels, minlength=3).tolist()


def test_label_counts_of_one_step_at_the_start_need_no_knowledge_of_the_records() -> None:
    records, net = drawn(20, 4), module()
    local = LocalSteps(20, 20, 1, 0.1)
    labels = gradient.labels_of(net, update_of(net, records, local), local, Rows.of(LAYOUT).drawn(
        256, np.random.default_rng(9)))  # fmt: skip
    assert np.abs(np.bincount(labels, minlength=3) - np.bincount(records.labels, minlength=3)).max() <= 1


@given(st.integers(0, 10_000))
def test_whole_rows_stay_as_they_are_and_relaxed_ones_come_back(seed: int) -> None:
    rows = Rows.of(LAYOUT)
    real = rows.drawn(3, np.random.default_rng(seed))
    np.testing.assert_array_equal(rows.whole(real), real)
    np.testing.assert_array_equal(rows.clipped(real), real)
    assert rows.defect(real).tolist() == [0, 0, 0]
    relaxed = rows.relaxed(torch.tensor(rows.free(real))).numpy()
    np.testing.assert_array_equal(rows.whole(relaxed), real)


def test_the_same_stream_gives_the_same_rows() -> None:
    records, local, net = drawn(2, 6), LocalSteps(2, 2, 1, 0.1), module()
    update = update_of(net, records, local)
    both = [
        gradient.invert(
            net, update, local, LAYOUT, "geiping", np.random.default_rng(3), effort=Effort(2, 9, 30)
        )
        for _ in range(2)
    ]
    np.testing.assert_array_equal(both[0].features, both[1].features)


def test_an_objective_rounded_below_zero_is_still_the_best() -> None:
    rows, real = Rows.of(LAYOUT), drawn(2, 7)
    finished = [(cost, real.features, real.labels) for cost in (-2e-7, 0.3)]
    np.testing.assert_array_equal(gradient._pooled(finished, rows, (7,)).features, real.features)


# ------------------------------------------------------- momentum, Adam, minibatches
def recovered(records: Records, local: LocalSteps, method: gradient.Method = "dlg") -> int:
    net, effort = module((64,)), Effort(starts=4, dlg_iterations=120, geiping_iterations=300)
    update = update_of(net, records, local)
    rebuilt = gradient.invert(net, update, local, LAYOUT, method, np.random.default_rng(0), effort=effort)
    return match(rebuilt.features, rebuilt.labels, records.features, records.labels, LAYOUT).rows


def test_the_first_step_of_momentum_is_plain() -> None:
    records, net = drawn(3, 8), module()
    plain, heavy = LocalSteps(3, 3, 1, 0.1), LocalSteps(3, 3, 1, 0.1, momentum=0.9)
    update = update_of(net, records, plain)
    both = [
        gradient.invert(net, update, local, LAYOUT, "dlg", np.random.default_rng(0), effort=QUICK)
        for local in (plain, heavy)
    ]
    np.testing.assert_array_equal(both[0].features, both[1].features)


@pytest.mark.parametrize(
    "local",
    [
        LocalSteps(4, 4, 3, 0.1, momentum=0.9),
        LocalSteps(4, 2, 2, 0.1, l2=0.01, momentum=0.5),
        LocalSteps(4, 3, 2, 0.01, optimizer="adam"),
        LocalSteps(4, 4, 1, 0.01, optimizer="adam"),
    ],
)
def test_the_unrolled_training_is_the_program_s_own(
    local: LocalSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the minibatches of every epoch, which the search does not know."""
    monkeypatch.setattr(gradient, "SMOOTH", 0.0)
    records, net = drawn(4, 9), module()
    chosen = TrainingSettings(
        lr=local.lr, batch=local.batch, epochs=local.epochs, optimizer=local.optimizer,
        momentum=local.momentum, l2=local.l2,
    )  # fmt: skip
    trained, before = copy.deepcopy(net), weights_of(net)
    train(trained, records, LocalTraining(chosen), PartyDraws(torch.Generator().manual_seed(0), None))
    drawn_order = PartyDraws(torch.Generator().manual_seed(0), None).permuted(4, chosen)
    orders = [np.concatenate([batch.numpy() for batch in epoch]) for epoch in drawn_order]
    order = orders[0] if local.copies == 1 else np.concatenate(orders)
    simulated = gradient._simulation(net, local, (7,))(
        torch.tensor(records.features[order]), torch.tensor(records.labels[order])
    )
    for name, array in weights_of(trained).items():
        np.testing.assert_allclose(-simulated[name].detach().numpy(), array - before[name], atol=1e-5)


def test_a_step_of_adam_is_as_long_whatever_the_gradient_s_length() -> None:
    """Its first one is the gradient's sign but for what `SMOOTH` rounds off, and can be descended."""
    local, net = LocalSteps(2, 2, 1, 0.01, optimizer="adam"), module()
    records = drawn(2, 10)
    x = torch.tensor(records.features, requires_grad=True)
    steps = gradient._simulation(net, local, (7,))(x, torch.tensor(records.labels))
    largest = max(float(step.detach().abs().max()) for step in steps.values())
    assert 0.009 < largest <= 0.01 + 1e-6
    torch.stack([step.square().sum() for step in steps.values()]).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and float(x.grad.abs().max()) > 0


@pytest.mark.parametrize(
    "local",
    [LocalSteps(4, 2, 1, 0.1), LocalSteps(4, 2, 2, 0.1), LocalSteps(4, 4, 3, 0.1, momentum=0.9)],
    ids=["two minibatches", "two epochs of two", "momentum"],
)
def test_records_are_found_through_several_steps(local: LocalSteps) -> None:
    assert recovered(drawn(4, 2), local) >= 3


def test_what_adam_leaves_of_a_gradient_still_tells_a_record() -> None:
    assert recovered(drawn(1, 2), LocalSteps(1, 1, 1, 0.01, optimizer="adam"), "geiping") == 1


def test_epochs_tie_their_rows_and_match_them_whatever_their_order() -> None:
    rows = drawn(4, 11).features
    labels = np.array([0, 0, 1, 1])
    swapped = np.concatenate([rows, rows[[1, 0, 3, 2]]])
    _, folded, own = gradient._folded((0.1, swapped, np.tile(labels, 2)), 2)
    np.testing.assert_allclose(folded, rows)
    assert own.tolist() == labels.tolist()
