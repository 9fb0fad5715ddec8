"""Accounting against Google's dp-accounting, an independent implementation, and against closed forms."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from itertools import pairwise

import dp_accounting
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedsim.core.errors import InputError
from fedsim.core.privacy import accountants, calibration
from fedsim.core.privacy.accountants import Accountant
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.plan import Plan, make_plan, would_exceed
from fedsim.core.privacy.rdp import ORDERS
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.training import TrainingSettings

# (q, σ, steps, δ)
SETTINGS = [
    (0.01, 1.0, 1000, 1e-5),
    (0.01, 1.0, 10000, 1e-5),
    (0.01, 0.7, 1000, 1e-5),
    (0.01, 1.0, 1000, 1e-6),
    (0.0625, 1.0, 320, 1e-5),
    (0.0625, 2.0, 1600, 1e-5),
    (0.05, 4.0, 500, 1e-5),
    (0.2, 1.0, 100, 1e-5),
    (1.0, 10.0, 100, 1e-5),
    (256 / 60000, 1.1, 14062, 1e-5),
    (16 / 44, 6.0, 750, 1e-3),
]


def ledger(q: float, sigma: float, steps: int) -> Ledger:
    return Ledger().add(sigma, q, steps)


def independent(accountant: dp_accounting.PrivacyAccountant, entries: tuple, delta: float) -> float:
    for sigma, q, steps in entries:
        step = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(("q", "sigma", "steps", "delta"), SETTINGS)
def test_prv_lies_above_the_exact_epsilon_by_its_error_bound_at_most(q, sigma, steps, delta) -> None:
    spent = ledger(q, sigma, steps)
    exact = independent(pld.PLDAccountant(), spent.entries, delta)
    assert spent.accounted_by(delta, "prv") == "prv"
    assert exact - 1e-3 <= spent.epsilon(delta, "prv") <= exact + 0.012
    assert spent.epsilon(delta, "prv") == pytest.approx(exact, rel=0.01, abs=0.012)


@pytest.mark.parametrize(("q", "sigma", "steps", "delta"), SETTINGS)
def test_rdp_equals_dp_accounting(q, sigma, steps, delta) -> None:
    spent = ledger(q, sigma, steps)
    found = independent(rdp.RdpAccountant(), spent.entries, delta)
    assert spent.epsilon(delta, "rdp") == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize(
    "entries",
    [
        ((1.0, 1 / 16, 16),),
        ((0.7, 0.01, 1000),),
        ((0.6, 0.3, 10),),
        ((1.0, 0.9, 5),),
        ((1.0, 1 / 16, 48), (2.0, 1 / 8, 21)),
    ],
)
def test_epsilon_is_opacus_own(entries: tuple, accountant: Accountant) -> None:
    from opacus.accountants import create_accountant

    theirs = create_accountant(accountant)
    theirs.history = list(entries)
    assert Ledger(entries).epsilon(1e-5, accountant) == pytest.approx(theirs.get_epsilon(1e-5), abs=3e-6)


def test_several_entries_compose_as_dp_accounting_says() -> None:
    spent = ledger(1 / 16, 1.0, 16).add(1.5, 1 / 8, 30).add(1.0, 1 / 16, 5)
    exact = independent(pld.PLDAccountant(), spent.entries, 1e-5)
    assert len(spent.entries) == 3
    assert exact - 1e-3 <= spent.epsilon(1e-5) <= exact + 0.012


@pytest.mark.parametrize(("sigma", "steps"), [(5.0, 1), (10.0, 40), (30.0, 1000)])
def test_full_batches_have_the_gaussian_mechanism_s_closed_form(sigma: float, steps: int) -> None:
    """Balle & Wang 2018, theorem 8, with μ = √steps / σ."""
    mu = math.sqrt(steps) / sigma

    def excess(epsilon: float) -> float:
        above = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
        return above - 1e-5

    exact = brentq(excess, 1e-6, 50)
    assert exact <= ledger(1.0, sigma, steps).epsilon(1e-5) <= exact + 0.012


def test_epsilon_of_rounds_is_that_of_all_steps_together() -> None:
    spent, found = Ledger(), []
    for _ in range(3):
        spent = spent.add(1.0, 1 / 16, 16)
        found.append(spent.epsilon(1e-5, "prv"))
    assert found == pytest.approx([2.2525, 2.8062, 3.2507], abs=2e-4)
    assert spent == ledger(1 / 16, 1.0, 48)


def one_by_one(entries: Iterable[tuple[float, float, int]]) -> list[tuple[float, float]]:
    return [(sigma, q) for sigma, q, steps in entries for _ in range(steps)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.1, 1.0]), st.integers(0, 20))))
def test_a_ledger_merges_neighbours_and_survives_a_round_trip(history: list) -> None:
    spent = Ledger()
    for entry in history:
        spent = spent.add(*entry)
    assert one_by_one(spent.entries) == one_by_one(history)
    assert all(a[:2] != b[:2] for a, b in pairwise(spent.entries))
    config = spent.to_config()
    assert all(isinstance(column, list) for column in config.values())
    assert Ledger.from_config(config) == spent


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_epsilon_never_falls_over_rounds(accountant: Accountant) -> None:
    series = [ledger(0.25, 3.0, 4 * t).epsilon(1e-5, accountant) for t in range(1, 70)]
    # The grid, and with it the rounding, changes at powers of two.
    assert all(after > before - 1e-4 for before, after in pairwise(series))
    assert series[-1] > series[0] > 0


def test_a_broken_config_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        Ledger.from_config({"noise_multiplier": [1.0], "sample_rate": [], "steps": [3]})
    with pytest.raises(KeyError):
        Ledger.from_config({"noise_multiplier": [1.0], "steps": [3]})


def test_nothing_spent_costs_nothing() -> None:
    assert Ledger().epsilon(1e-5, "prv") == Ledger().epsilon(1e-5, "rdp") == 0
    assert Ledger().add(1.0, 0.1, 0) == Ledger()


@pytest.mark.parametrize(
    ("q", "sigma", "steps"),
    [(0.1, 0.3, 100), (0.5, 0.5, 20000), (0.1, 0.05, 10), (1.0, 0.4, 800), (0.001, 0.8, 200000)],
)
def test_rdp_stands_in_where_prv_would_take_minutes(q: float, sigma: float, steps: int) -> None:
    spent, started = ledger(q, sigma, steps), time.perf_counter()
    assert spent.accounted_by(1e-5, "prv") == "rdp"
    assert spent.epsilon(1e-5, "prv") == spent.epsilon(1e-5, "rdp")
    assert time.perf_counter() - started < 5


def test_epsilon_after_each_of_fifty_rounds_is_cheap() -> None:
    ledger(1 / 16, 1.1, 800).epsilon(1e-5)  # imports
    spent, started = Ledger(), time.perf_counter()
    for _ in range(50):
        spent = spent.add(1.05, 1 / 16, 16)
        spent.epsilon(1e-5, "prv")
    assert time.perf_counter() - started < 10  # Opacus' own accountant: 50 × 0.3 s
    entry = spent.entries
    before = accountants.spent.cache_info().hits
    Ledger(entry).epsilon(1e-5, "prv")
    assert accountants.spent.cache_info().hits == before + 1


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize("epsilon", [0.3, 1.0, 8.0, 60.0])
@pytest.mark.parametrize(("n", "rounds"), [(44, 50), (2000, 5), (10, 20)])
def test_a_target_is_met_by_the_whole_run_within_one_percent(accountant, epsilon, n, rounds) -> None:
    training = TrainingSettings(batch=16, epochs=5)
    plan = make_plan(DPSettings(epsilon=epsilon, accountant=accountant), training, n, rounds)
    spent = Ledger()
    for _ in range(rounds):
        spent = plan.spend(spent)
    assert plan.epsilon == spent.epsilon(plan.delta, accountant)
    assert 0.99 * epsilon <= plan.epsilon <= epsilon


def test_a_target_between_the_accountants_is_met_from_below() -> None:
    """Where PRV gives way to RDP, at σ = 0.4, no σ gives an ε between the two bounds."""
    above, below = (Ledger().add(sigma, 0.01, 2000).epsilon(1e-5, "prv") for sigma in (0.3999, 0.4))
    assert above > below * 1.02
    sigma = calibration.solve_noise_multiplier((above + below) / 2, 1e-5, 0.01, 2000, "prv")
    assert sigma == pytest.approx(0.4, abs=1e-6)
    assert sigma >= 0.4


@pytest.mark.parametrize(("epsilon", "accountant"), [(0.005, "prv"), (1e-4, "rdp")])
def test_a_target_that_no_noise_reaches_is_refused(epsilon: float, accountant: Accountant) -> None:
    settings = DPSettings(epsilon=epsilon, accountant=accountant)
    with pytest.raises(InputError, match=rf"dp\.epsilon = {epsilon:g}.*delta = 1e-05"):
        make_plan(settings, TrainingSettings(), 44, 50)


@pytest.mark.parametrize(
    ("n", "batch", "epochs", "steps", "expected"),
    [
        (44, 16, 5, None, (16 / 44, 15, 16)),
        (48, 16, 5, None, (1 / 3, 15, 16)),
        (10, 16, 5, None, (1.0, 5, 10)),  # fewer records than a batch: all of them, every step
        (100, 10, 3, 7, (0.1, 7, 10)),
    ],
)
def test_sample_rate_and_steps(n, batch, epochs, steps, expected) -> None:
    training = TrainingSettings(batch=batch, epochs=epochs, steps=steps)
    plan = make_plan(DPSettings(noise_multiplier=1.5), training, n, 2)
    assert (plan.sample_rate, plan.steps_per_round, plan.expected_batch) == expected
    assert plan.noise_multiplier == 1.5
    assert plan.budget == math.inf
    assert plan.epsilon == ledger(plan.sample_rate, 1.5, 2 * plan.steps_per_round).epsilon(1e-5)


def rounds_until_refusal(plan: Plan) -> int:
    spent = Ledger()
    for done in range(100):
        if would_exceed(spent, plan):
            return done
        spent = plan.spend(spent)
    return 100


def test_training_is_refused_exactly_when_the_budget_would_be_exceeded() -> None:
    training = TrainingSettings(batch=16, steps=16)
    costs = [ledger(1 / 16, 1.0, 16 * t).epsilon(1e-5) for t in (1, 2, 3)]
    for budget, rounds in [(costs[0] * 0.999, 0), (costs[0], 1), (costs[1] * 0.999, 1), (costs[2], 3)]:
        dp = DPSettings(noise_multiplier=1.0, budget=budget)
        assert rounds_until_refusal(make_plan(dp, training, 256, 50)) == rounds


def test_a_planned_run_is_never_refused_and_the_round_after_it_is() -> None:
    plan = make_plan(DPSettings(epsilon=3), TrainingSettings(), 88, 12)
    assert plan.budget == 3
    assert rounds_until_refusal(plan) == 12


def test_without_a_budget_nothing_is_refused() -> None:
    plan = make_plan(DPSettings(noise_multiplier=0.5), TrainingSettings(), 44, 2)
    assert not would_exceed(ledger(1.0, 0.01, 10**6), plan)


def test_a_tiny_delta_still_has_an_answer() -> None:
    spent = ledger(0.01, 1.0, 100)
    assert 0 < spent.epsilon(1e-5) < spent.epsilon(1e-13) < 20


def adaptive(noise_multiplier: float = 1.0, batch: int = 16, **settings) -> Plan:
    dp = DPSettings(noise_multiplier=noise_multiplier, clipping="adaptive", **settings)
    return make_plan(dp, TrainingSettings(batch=batch, steps=10), 10 * batch, 4)


@pytest.mark.parametrize(("sigma", "batch"), [(0.6, 16), (1.3, 40), (4.0, 4)])
def test_adaptive_clipping_costs_what_flat_clipping_with_sigma_costs(sigma: float, batch: int) -> None:
    """Both noisy answers of a step as one Poisson-sampled event of Google's dp-accounting."""
    plan = adaptive(sigma, batch)
    both = dp_accounting.ComposedDpEvent(
        [
            dp_accounting.GaussianDpEvent(plan.gradient_noise),
            dp_accounting.GaussianDpEvent(plan.count_noise / 0.5),  # a record moves the count by a half
        ]
    )
    accountant = rdp.RdpAccountant(orders=ORDERS)
    steps = plan.steps_per_round * plan.rounds
    accountant.compose(dp_accounting.PoissonSampledDpEvent(plan.sample_rate, both), steps)
    spent = Ledger().add(sigma, plan.sample_rate, steps)
    assert spent.epsilon(1e-5, "rdp") == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    assert plan.epsilon == spent.epsilon(plan.delta, plan.accountant)
    assert sigma < plan.gradient_noise <= 2 / math.sqrt(3) * sigma * (1 + 1e-12)


def test_the_clipping_norm_follows_the_share_of_short_gradients() -> None:
    plan = adaptive(clipping_quantile=0.25, clipping_rate=0.2)
    all_short, none_short, quantile = 8.0, -8.0, 16 * (0.25 - 0.5)  # Σ (b − ½) of an expected batch of 16
    assert plan.next_clipping_norm(2.0, all_short) == pytest.approx(2 * math.exp(-0.2 * 0.75))
    assert plan.next_clipping_norm(2.0, none_short) == pytest.approx(2 * math.exp(0.2 * 0.25))
    assert plan.next_clipping_norm(2.0, quantile) == pytest.approx(2.0)
    assert plan.next_clipping_norm(2.0, 1e9) == plan.next_clipping_norm(2.0, all_short)


def test_flat_clipping_has_all_its_noise_on_the_gradients() -> None:
    plan = make_plan(DPSettings(noise_multiplier=1.7), TrainingSettings(), 44, 2)
    assert plan.gradient_noise == plan.noise_multiplier == 1.7
