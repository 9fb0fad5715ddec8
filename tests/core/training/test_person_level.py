"""DP-SGD whose unit is a person: a slow twin, the bound on what she contributes, and what she is promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from torch import nn

from fedsim.core.data.records import Records
from fedsim.core.models.weights import weights_of
from fedsim.core.privacy.persons import person_epsilon
from fedsim.core.privacy.plan import Plan, make_plan
from fedsim.core.privacy.rdp import rdp_epsilon
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import dp
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.persons import bounded, train_by_person
from fedsim.core.training.steps import LocalTraining

SETTINGS = TrainingSettings(lr=0.5, batch=4, epochs=1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


def drawn(n: int, seed: int = 0) -> Records:
    stream = np.random.default_rng(seed)
    return Records(3 * stream.normal(size=(n, 3)).astype(np.float32), stream.integers(0, 2, n))


def everyone(persons: int, clipping_norm: float, steps: int = 1, noise: float = 0.0) -> Plan:
    """A plan that draws all persons in every step."""
    plan = make_plan(DPSettings(noise_multiplier=1.0, unit="person"), SETTINGS, n=persons, rounds=1)
    changes = {"sample_rate": 1.0, "expected_batch": float(persons), "steps_per_round": steps}
    return Plan(**{**vars(plan), **changes, "noise_multiplier": noise, "clipping_norm": clipping_norm})


def streams() -> PartyDraws:
    return PartyDraws(torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))


def after(records: Records, person: np.ndarray, plan: Plan) -> np.ndarray:
    module = net()
    train_by_person(module, records, person, LocalTraining(SETTINGS), plan, streams())
    return np.concatenate([w.ravel() for w in weights_of(module).values()]).astype(np.float64)


def slowly(records: Records, person: np.ndarray, plan: Plan) -> np.ndarray:
    """One gradient after another, in float64."""
    module = net().double()
    for _ in range(plan.steps_per_round):
        total = [torch.zeros_like(p) for p in module.parameters()]
        for one in np.unique(person):
            rows = torch.tensor(np.flatnonzero(person == one))
            logits = module(torch.tensor(records.features).double()[rows])
            loss = nn.functional.cross_entropy(logits, torch.tensor(records.labels)[rows])  # their mean
            gradient = torch.autograd.grad(loss, list(module.parameters()))
            norm = torch.sqrt(sum(g.square().sum() for g in gradient))
            for sum_, g in zip(total, gradient, strict=True):
                sum_ += g * min(1.0, plan.clipping_norm / float(norm))
        with torch.no_grad():
            for p, sum_ in zip(module.parameters(), total, strict=True):
                p -= SETTINGS.lr * sum_ / plan.expected_batch
    return np.concatenate([p.detach().numpy().ravel() for p in module.parameters()])


@pytest.mark.parametrize("clipping_norm", [0.05, 100.0])
def test_a_step_is_the_clipped_mean_gradient_of_each_person(clipping_norm: float) -> None:
    records, person = drawn(12), np.array([7, 7, 7, 2, 2, 9, 9, 9, 9, 9, 4, 1])
    plan = everyone(5, clipping_norm, steps=3)
    np.testing.assert_allclose(after(records, person, plan), slowly(records, person, plan), atol=1e-5)


def test_of_one_record_each_it_is_dp_sgd() -> None:
    records, plan = drawn(9), make_plan(DPSettings(noise_multiplier=1.0), SETTINGS, n=9, rounds=1)
    module = net()
    dp.train_private(module, records, LocalTraining(SETTINGS, gradients="per-sample"), plan, streams())
    by_record = np.concatenate([w.ravel() for w in weights_of(module).values()])
    np.testing.assert_allclose(after(records, 5 * np.arange(9), plan), by_record, atol=1e-6)


@given(st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=20)
def test_a_person_moves_a_step_by_no_more_than_the_norm(hers: int, seed: int) -> None:
    """Without noise: whoever has 12 records moves the sum by C at most, as whoever has one does."""
    records, person = drawn(6 + hers, seed), np.array([0, 0, 1, 1, 2, 3] + [4] * hers)
    plan = everyone(4, 0.1)
    others = records.take(np.arange(6))
    moved = np.linalg.norm(after(records, person, plan) - after(others, person[:6], plan))
    assert moved * plan.expected_batch / SETTINGS.lr <= 0.1 + 1e-5


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 4), st.integers(0, 99))
def test_at_most_so_many_records_of_each_person_are_trained_on(
    owner: list[int], most: int, seed: int
) -> None:
    person = np.array(owner)
    rows = bounded(person, most, np.random.default_rng(seed))
    assert len(set(rows)) == len(rows) and (np.diff(rows) > 0).all()
    sizes, kept = np.bincount(person), np.bincount(person[rows], minlength=person.max() + 1)
    assert (kept == np.minimum(sizes, most)).all()


def test_without_records_or_with_mixed_ones_nothing_is_trained() -> None:
    none = drawn(4).take(np.arange(0))
    with pytest.raises(ValueError, match="0 records"):
        train_by_person(net(), none, np.arange(0), LocalTraining(SETTINGS), everyone(1, 1.0), streams())


ENTRIES = [(1.0, 0.1, 50)]


def test_a_person_with_one_record_is_promised_what_a_record_is() -> None:
    assert person_epsilon(ENTRIES, 1e-5, 1) == pytest.approx(rdp_epsilon(ENTRIES, 1e-5), rel=1e-6)


def test_more_records_are_promised_less_and_no_less_than_group_privacy_says() -> None:
    promised = [person_epsilon(ENTRIES, 1e-5, k) for k in (1, 2, 3, 6)]
    assert promised == sorted(promised) and promised[1] > promised[0]
    # The lemma: (kε, δ (e^kε − 1)/(e^ε − 1)) from (ε, δ); at the δ that makes the right side 1e-5.
    for k, ours in ((2, promised[1]), (3, promised[2])):
        by_lemma = min(
            k * epsilon
            for delta in np.geomspace(1e-40, 1e-6, 60)
            if delta * np.expm1(k * (epsilon := rdp_epsilon(ENTRIES, delta))) / np.expm1(epsilon) <= 1e-5
        )
        assert ours < by_lemma


def test_the_promise_is_that_of_an_independent_accountant() -> None:
    """Google's privacy loss distributions, whose ε is some per cent smaller than any by Rényi divergences."""
    noise, rate, steps = ENTRIES[0]
    for k in (2, 4):
        shares = binom.pmf(np.arange(k + 1), k, rate)
        one = privacy_loss_distribution.from_mixture_gaussian_mechanism(
            noise, np.arange(k + 1.0), shares, value_discretization_interval=0.01
        )
        tight = one.self_compose(steps).get_epsilon_for_delta(1e-5)
        assert 0.97 * tight <= person_epsilon(ENTRIES, 1e-5, k) <= 1.25 * tight
