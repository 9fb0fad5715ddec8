"""The outsider's suite: its budget, its thresholds, its shadows; against slow twins and simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks.released import suite
from attacks.released.answers import ask_all, share_out
from attacks.released.shadows import ShadowSettings, log_odds
from attacks.released.suite import Finding
from attacks.signals import outputs
from attacks.views.outsider import OutsiderView
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.privacy.output import answered, softmax
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training import sgd
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining
from fedsim.evaluation.outsider import judge, judge_curve, ranked

MODEL = ModelSettings(hidden=[32])
SHADOWS = ShadowSettings(
    shadows=16, model=MODEL, training=TrainingSettings(epochs=20, lr=0.2, batch=8), ages=(1, 4)
)


def some_records(n: int, seed: int) -> Records:
    stream = np.random.default_rng(seed)
    return Records(stream.normal(size=(n, 20)).astype(np.float32), stream.integers(0, 2, n))


class Asked:
    """A released model that counts."""

    def __init__(self, members: Records, policy: OutputPolicy | None = None) -> None:
        self.module = zoo.build(MODEL, members.shape, 2, seed=9)
        settings = TrainingSettings(epochs=100, lr=0.2, batch=8)
        draws = PartyDraws(torch.Generator().manual_seed(1), None)
        sgd.train(self.module, members, LocalTraining(settings), draws)
        self.policy, self.queries = policy or OutputPolicy(), 0

    def __call__(self, features: np.ndarray) -> np.ndarray:
        self.queries += len(features)
        p = softmax(outputs.logits(self.module.eval(), features))
        return answered(p, self.policy, np.random.default_rng(0))


@pytest.fixture(scope="module")
def world() -> tuple[Records, Records, np.ndarray]:
    """Candidates, of whom the first half are members, known outsiders, and the truth."""
    candidates = some_records(60, 0)
    return candidates, some_records(30, 1), np.arange(60) < 30


@pytest.fixture(scope="module")
def model(world: tuple[Records, Records, np.ndarray]) -> Asked:
    return Asked(world[0].take(np.flatnonzero(world[2])))


@given(st.integers(1, 300), st.integers(0, 300), st.none() | st.integers(1, 20_000))
def test_no_budget_is_overspent_and_none_is_wasted(
    candidates: int, outsiders: int, queries: int | None
) -> None:
    spending = share_out(candidates, outsiders, queries)
    assert 1 <= spending.candidates <= candidates and 0 <= spending.outsiders <= outsiders
    if queries is None:
        assert spending == type(spending)(candidates, outsiders, 32)
        return
    assert spending.queries <= queries
    if spending.records < candidates + outsiders:
        assert spending.queries == queries
    elif spending.copies < 32:
        assert queries - spending.queries < spending.records


def test_what_is_asked_is_what_was_planned(model: Asked, world: tuple[Records, Records, np.ndarray]) -> None:
    candidates, outsiders, _ = world
    for budget in (7, 90, 500):
        model.queries = 0
        view = OutsiderView(model, 2, budget)
        answers = ask_all(view, candidates, outsiders, np.random.default_rng(0))
        assert model.queries == answers.spending.queries <= budget
        assert (
            np.isfinite(answers.candidates).all() and len(answers.candidates) == answers.spending.candidates
        )


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=20),
    st.lists(st.integers(-3, 3), min_size=1, max_size=20),
)
def test_a_p_value_is_a_rank_among_the_known_outsiders(scores: list[int], known: list[int]) -> None:
    finding = Finding(np.array(scores, float), np.array(known, float), 0)
    slow = [(1 + sum(other >= score for other in known)) / (len(known) + 1) for score in scores]
    np.testing.assert_allclose(finding.p_values, slow)


def test_nothing_is_said_without_outsiders_or_of_who_was_not_asked() -> None:
    assert np.isnan(Finding(np.array([1.0]), np.empty(0), 0).p_values).all()
    p_values = Finding(np.array([np.nan, 2.0]), np.array([1.0, np.nan]), 0).p_values
    assert np.isnan(p_values[0]) and p_values[1] == 0.5


def test_outsiders_are_accused_no_more_often_than_said() -> None:
    """Exchangeable scores with ties: the share below α is at most α, over 4000 candidates."""
    stream = np.random.default_rng(5)
    shares = []
    for _ in range(200):
        scores = np.round(stream.normal(size=59), 1)
        shares.append(np.mean(Finding(scores[:20], scores[20:], 0).p_values <= 0.05))
    assert np.mean(shares) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000) * 2


def test_shadows_find_members_of_an_overfitted_model(
    model: Asked, world: tuple[Records, Records, np.ndarray]
) -> None:
    candidates, outsiders, member = world
    found = suite.run(OutsiderView(model, 2, None), OutputPolicy(), candidates, outsiders, 3, SHADOWS)
    assert set(found.findings) == set(suite.NAMES) and found.age in (1, 4)
    for name in ("loss", "shokri", "lira", "lira-offline"):
        estimate = ranked(found.findings[name].scores, member)
        assert estimate.low > 0.6, name
    table = judge({n: (f.scores, f.p_values, f.queries) for n, f in found.findings.items()}, member, 0.05)
    others = table[table["metric"] == "accused others"]
    assert (others["low"] <= 0.05).all()


def test_more_noisy_copies_and_more_queries_make_a_curve(
    model: Asked, world: tuple[Records, Records, np.ndarray]
) -> None:
    candidates, outsiders, member = world
    found = suite.run(OutsiderView(model, 2, None), OutputPolicy(), candidates, outsiders, 3)
    points = judge_curve([(name, q, f.scores) for name, q, f in found.curve], member)
    copies = points[points["attack"] == "noise-robustness"]
    assert list(copies["queries"]) == [90 * (1 + k) for k in (1, 2, 4, 8, 16, 32)]
    loss = points[points["attack"] == "loss"]
    assert list(loss["queries"]) == [30 + n for n in (7, 15, 30, 60)]
    whole = ranked(found.findings["loss"].scores, member)
    assert loss["value"].iloc[-1] == whole.value


def test_few_outsiders_train_no_shadows_and_no_budget_makes_no_copies(
    model: Asked, world: tuple[Records, Records, np.ndarray]
) -> None:
    candidates, outsiders, _ = world
    few = outsiders.take(np.arange(5))
    found = suite.run(OutsiderView(model, 2, 70), OutputPolicy(), candidates, few, 3, SHADOWS)
    assert set(found.not_run) == {"noise-robustness", *suite.WITH_SHADOWS}
    assert "20 known outsiders" in found.not_run["lira"]
    settings = (OutputPolicy(policy="hamp"), candidates, outsiders, 3, SHADOWS)
    assert (
        "cannot answer by the policy 'hamp'"
        in suite.run(OutsiderView(model, 2, None), *settings).not_run["lira"]
    )


def test_shadows_are_seen_through_the_policy(world: tuple[Records, Records, np.ndarray]) -> None:
    """At labels alone φ has two values, and no attack on one answer knows more than the gap attack."""
    candidates, outsiders, member = world
    policy = OutputPolicy(policy="label")
    told = Asked(candidates.take(np.flatnonzero(member)), policy)
    found = suite.run(OutsiderView(told, 2, None), policy, candidates, outsiders, 3, SHADOWS)
    assert len(np.unique(found.findings["loss"].scores)) == 2
    assert np.isfinite(found.findings["lira"].scores).all()


def test_what_is_rounded_to_nothing_counts_as_half_of_the_last_decimal() -> None:
    told = np.array([[1.0, 0.0], [0.0, 1.0]])
    phi = log_odds(told, np.array([0, 0]), OutputPolicy(policy="rounded", digits=2))
    np.testing.assert_allclose(phi, [np.log(1 / 0.005), -np.log(1 / 0.005)])
