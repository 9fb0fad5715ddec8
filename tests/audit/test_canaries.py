"""Canaries: what they do to a real round of DP-SGD, and their scores against slow twins."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.federation import Federation
from torch.nn import functional

from fedsim.audit import canaries
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.models import layers, weights, zoo
from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.training import ModelSettings
from fedsim.core.training import dp
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining

PLAN = Plan(
    sample_rate=1.0,
    expected_batch=8.0,
    steps_per_round=4,
    noise_multiplier=0.0,
    rounds=3,
    delta=1e-5,
    clipping_norm=0.7,
    accountant="prv",
    epsilon=math.inf,
    budget=math.inf,
)
MODELS = {
    "logistic": (ModelSettings(name="logistic"), (6,)),
    "mlp": (ModelSettings(hidden=[8, 6]), (6,)),
    "images": (ModelSettings(hidden=[8]), (1, 3, 3)),
    "cnn": (ModelSettings(name="cnn", hidden=[3]), (1, 4, 4)),
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
EVERY_PATH = pytest.mark.parametrize("gradients", ["auto", "per-sample", "ghost"])


def some(name: str, n: int = 9) -> tuple[torch.nn.Module, Records]:
    model, shape = MODELS[name]
    stream = np.random.default_rng(0)
    records = Records(stream.normal(size=(n, *shape)).astype(np.float32), stream.integers(0, 3, n))
    return zoo.build(model, shape, 3, seed=1), records


def lone(name: str, plan: Plan = PLAN) -> canaries.LoneCanary:
    module, records = some(name)
    return canaries.lone_canary(module, records.shape, plan, np.random.default_rng(2))


def gradients_of(module: torch.nn.Module, records: Records) -> list[torch.Tensor]:
    """Every record's whole gradient, one backward pass each."""
    found = []
    for x, y in zip(records.features, records.labels, strict=True):
        loss = functional.cross_entropy(module(torch.from_numpy(x[None])), torch.tensor([int(y)]))
        parts = torch.autograd.grad(loss, list(module.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]).double())
    return found


def read(world: canaries.GradientCanaries | canaries.LoneCanary, inside, plan: Plan, **more) -> np.ndarray:
    """What is read off a real training run, (rounds, steps, directions)."""
    module, readout = copy.deepcopy(world.module), canaries.Readout(world, plan)
    for round in range(plan.rounds):
        readout.start_round()
        draws = PartyDraws(
            rng.torch_generator(0, "sampling", round=round), rng.torch_generator(0, "noise", round=round)
        )
        records = world.with_canaries(np.asarray(inside))
        local = LocalTraining(world.settings, **more)
        dp.train_private(module, records, local, plan, draws, watch=readout.watch)
    return readout.steps()


@EVERY_MODEL
def test_gradient_canaries_are_long_orthogonal_and_far_from_the_party_s_own_records(name: str) -> None:
    module, records = some(name)
    world = canaries.gradient_canaries(module, records, 5, PLAN)
    planted = torch.stack(gradients_of(world.module, world.canaries))
    lengths = planted.norm(dim=1)
    assert lengths.min() >= canaries.LENGTH * PLAN.clipping_norm
    units = torch.cat([planted / lengths[:, None], torch.stack(gradients_of(world.module, world.records))])
    cosine = units[:5] @ (units / units.norm(dim=1, keepdim=True)).T
    assert (cosine - torch.eye(5, 5 + len(records))).abs().max() < 0.02


@EVERY_MODEL
def test_the_party_s_own_records_meet_the_model_they_had(name: str) -> None:
    module, records = some(name)
    before = weights.weights_of(module)
    world = canaries.gradient_canaries(module, records, 5, PLAN)
    with torch.no_grad():
        answers = module(torch.from_numpy(records.features))
        found = world.module(torch.from_numpy(world.records.features))
    torch.testing.assert_close(found, answers)
    np.testing.assert_equal(weights.weights_of(module), before)
    stack = layers.linear_stack(module) is not None
    assert (layers.linear_stack(world.module) is not None) == stack, "the same path is to be audited"
    assert len(world.with_canaries(np.array([True, False, True, False, False]))) == len(records) + 2


@EVERY_PATH
@EVERY_MODEL
def test_without_noise_the_readout_says_who_was_in_the_batch(name: str, gradients: str) -> None:
    """In units of C, exactly 1 or 0: C, the expected batch and the learning rate cancel."""
    module, records = some(name)
    world = canaries.gradient_canaries(module, records, 6, PLAN)
    inside = np.array([True, False, True, True, False, False])
    x = read(world, inside, PLAN, gradients=gradients)
    assert x.shape == (3, 4, 6)
    np.testing.assert_allclose(x, np.broadcast_to(inside, x.shape), atol=0.02)
    sampled = read(world, inside, replace(PLAN, sample_rate=0.5), gradients=gradients)
    assert np.isin(sampled.round(), [0, 1]).all()
    np.testing.assert_allclose(sampled, sampled.round(), atol=0.02)
    assert 0 < sampled[..., inside].mean() < 1
    assert np.abs(sampled[..., ~inside]).max() < 0.02


def test_with_noise_the_readout_is_normal_about_who_was_in_the_batch() -> None:
    module, records = some("mlp")
    world = canaries.gradient_canaries(module, records, 200, PLAN)
    plan, inside = replace(PLAN, noise_multiplier=1.3), np.arange(200) % 2 == 0
    x = read(world, inside, plan)
    assert stats.kstest(x[..., ~inside].ravel() / 1.3, "norm").pvalue > 1e-3
    assert stats.kstest((x[..., inside].ravel() - 1) / 1.3, "norm").pvalue > 1e-3


def test_adapting_clipping_norms_cancel_as_well() -> None:
    module, records = some("mlp")
    plan = replace(PLAN, clipping="adaptive", noise_multiplier=0.5, clipping_rate=0.5)
    world = canaries.gradient_canaries(module, records, 100, plan)
    inside = np.arange(100) < 4
    x = read(world, inside, plan)[0]  # one round: the norm starts anew in the next
    assert stats.kstest(x[:, ~inside].ravel() / plan.gradient_noise, "norm").pvalue > 1e-3
    assert x[:, inside].mean() == pytest.approx(1, abs=5 * plan.gradient_noise / math.sqrt(16))


@EVERY_PATH
@EVERY_MODEL
def test_a_lone_canary_is_read_whole_and_part_by_part(name: str, gradients: str) -> None:
    world = lone(name)
    (gradient,) = gradients_of(world.module, world.canaries)
    assert gradient.norm() >= canaries.LONE_LENGTH * PLAN.clipping_norm
    direction = torch.cat([part.flatten() for part in world.direction]).double()
    torch.testing.assert_close(direction, gradient / gradient.norm(), rtol=1e-4, atol=1e-6)
    (silent,) = gradients_of(world.module, world.records)
    assert silent.norm() == 0
    assert world.signals[0] == 1
    assert np.sum(world.signals[1:] ** 2) == pytest.approx(1, abs=1e-5)
    assert world.signals[1:].sum() > 1.1, "spread over the parameters"
    for inside in (True, False):
        x = read(world, [inside], PLAN, gradients=gradients)
        expected = np.broadcast_to(world.signals * inside, x.shape)
        np.testing.assert_allclose(x, expected, atol=0.02)


def test_a_lone_canary_changes_nothing_of_the_module_and_follows_its_stream() -> None:
    module, records = some("mlp")
    before = weights.weights_of(module)
    first, again, other = (
        canaries.lone_canary(module, records.shape, PLAN, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_equal(weights.weights_of(module), before)
    np.testing.assert_array_equal(first.canaries.features, again.canaries.features)
    assert not np.array_equal(first.canaries.features, other.canaries.features)


@settings(max_examples=60, deadline=None)
@given(
    x=st.floats(-3, 4),
    q=st.floats(0.01, 1),
    sigma=st.floats(0.3, 5),
    signal=st.floats(0.1, 1.5),
)
def test_the_likelihood_ratio_is_that_of_the_two_densities(x, q, sigma, signal) -> None:
    out = stats.norm.pdf(x, 0, sigma)
    within = (1 - q) * out + q * stats.norm.pdf(x, signal, sigma)
    found = canaries.likelihood_ratio(np.array(x), q, sigma, signal)
    assert found == pytest.approx(math.log(within / out), rel=1e-6, abs=1e-9)


def test_the_likelihood_ratio_beats_the_plain_sum_and_stays_finite_without_noise() -> None:
    stream, q, sigma = np.random.default_rng(0), 1 / 16, 0.5
    inside = np.arange(2000) < 1000
    x = sigma * stream.normal(size=(160, 2000)) + (stream.random((160, 2000)) < q) * inside

    def auc(scores: np.ndarray) -> float:
        return stats.mannwhitneyu(scores[inside], scores[~inside]).statistic / 1000**2

    assert auc(canaries.likelihood_ratio(x, q, sigma).sum(0)) > auc(x.sum(0)) + 0.02
    assert np.isfinite(canaries.likelihood_ratio(np.array([0.0, 1.0, 100.0]), 1.0, 0.0)).all()


@pytest.mark.parametrize("over", ["rounds", "steps", "both"])
def test_repetition_finds_who_is_in_where_noise_repeats(over: str) -> None:
    stream = np.random.default_rng(0)
    shape = {"rounds": (1, 5, 400), "steps": (6, 1, 400), "both": (1, 1, 400)}[over]
    inside = np.arange(400) < 200
    x = 3 * stream.normal(size=shape) + (stream.random((6, 5, 400)) < 0.3) * inside
    scores = canaries.repetition(x)
    assert scores[inside].min() > scores[~inside].max()


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 30), m=st.integers(1, 40), shape=st.sampled_from([(4,), (1, 3, 2)]))
def test_edge_records_stay_within_the_columns_and_are_all_different(n, m, shape) -> None:
    stream = np.random.default_rng(n)
    like = Records(stream.uniform(0, 1, size=(n, *shape)).astype(np.float32), stream.integers(0, 3, n))
    found = canaries.edge_records(like, 3, m, np.random.default_rng(0))
    assert (found.features >= like.features.min(axis=0)).all()
    assert (found.features <= like.features.max(axis=0)).all()
    assert set(found.labels) <= {0, 1, 2}
    assert found.features.dtype == np.float32
    if n > 1:
        assert len(np.unique(found.features.reshape(m, -1), axis=0)) == m


def test_participant_scores_equal_autograd(early: Federation) -> None:
    view, stream = early.view, np.random.default_rng(3)
    shape = view.settings.input_shape
    records = Records(stream.normal(size=(7, *shape)).astype(np.float32), stream.integers(0, 10, 7))
    found = canaries.participant_scores(view, records)
    final = view.module(view.final_model)
    with torch.no_grad():
        logits = final(torch.from_numpy(records.features))
        losses = functional.cross_entropy(logits, torch.from_numpy(records.labels), reduction="none")
    np.testing.assert_allclose(found["final loss"], -losses.numpy(), rtol=1e-5)
    descent = np.zeros(7)
    for t in range(1, view.final_round + 1):
        before = view.module(view.models[t - 1])
        step = torch.cat(
            [torch.from_numpy(view.models[t - 1][k] - view.models[t][k]).flatten() for k in view.models[t]]
        )
        descent += [float(g @ step.double()) for g in gradients_of(before, records)]
    np.testing.assert_allclose(found["descent"], descent, rtol=1e-4, atol=1e-6)
