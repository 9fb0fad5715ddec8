"""Lower bounds on ε: published and independently computed figures, slow twins, and exact coverage."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsim.audit import bounds as auditing
from fedsim.audit import canaries
from fedsim.audit.bounds import (
    GAUSSIAN,
    clopper_pearson,
    correct_guesses,
    dp_sgd,
    gaussian_epsilon,
    in_family,
    steinke_p_value,
)
from fedsim.core.privacy import gaussian

# (m, r, v, δ) → ε by Steinke et al. 2023, and by Mahloujifar et al. 2024; from other code than ours.
ONE_RUN = [
    (1000, 100, 75, 1e-4, 0.672985, 0.841724),
    (100, 100, 60, 1e-5, 0.051680, 0.079005),
    (100, 100, 90, 1e-5, 1.630358, 3.587927),
    (100, 20, 20, 1e-5, 1.819597, 3.239393),
    (500, 100, 90, 1e-5, 1.628491, 2.706786),
    (500, 100, 100, 1e-5, 3.479195, 6.121754),
    (1000, 1000, 600, 1e-5, 0.297227, 0.583540),
    (1000, 1000, 1000, 1e-5, 5.782283, 12.334570),
]
COUNTS = st.integers(1, 60).flatmap(
    lambda m: st.integers(1, m).flatmap(
        lambda r: st.tuples(st.just(m), st.just(r), st.integers(0, r), st.sampled_from([0.0, 1e-5, 1e-2]))
    )
)


@pytest.mark.parametrize(("m", "r", "v", "delta", "steinke", "f_dp"), ONE_RUN)
def test_one_run_bounds_equal_the_reference_to_all_its_digits(m, r, v, delta, steinke, f_dp) -> None:
    assert auditing.steinke(r, v, m, delta) == pytest.approx(steinke, abs=1e-6)
    assert auditing.f_dp(r, v, m, delta) == pytest.approx(f_dp, abs=1.5e-6)


def test_a_large_audit_and_p_values_equal_the_reference() -> None:
    assert auditing.steinke(1510, 1439, 100_000, 1e-5) == pytest.approx(2.675851, abs=1e-6)
    found = [steinke_p_value(epsilon, 100, 75, 1000, 1e-4) for epsilon in (0.5, 1.0)]
    assert found == pytest.approx([0.0145872, 0.4005545], abs=1e-7)


@pytest.mark.parametrize(
    ("counts", "expected"), [((500, 500, 0), 4.905584), ((250, 500, 5), 2.977553), ((90, 100, 10), 1.542140)]
)
def test_clopper_pearson_equals_the_reference(counts, expected) -> None:
    hits, n, false_alarms = counts
    assert clopper_pearson(hits, n, false_alarms, n, 1e-5) == pytest.approx(expected, abs=1e-6)


def test_the_gaussian_family_equals_the_reference() -> None:
    assert in_family(90, 100, 10, 100, 1e-5) == pytest.approx(9.143879, abs=1e-6)
    found = [gaussian_epsilon(mu, 1e-5) for mu in (1.0, 1.859714, 2.0)]
    assert found == pytest.approx([4.377178, 9.143879, 9.997256], abs=1e-5)
    assert gaussian_epsilon(-1.0, 1e-5) == 0


@pytest.mark.parametrize(("r", "expected"), [(10, 1.05), (100, 3.49), (500, 5.11)])
def test_the_ceiling_of_pure_dp_is_that_of_r_right_guesses(r: int, expected: float) -> None:
    x = 0.05 ** (1 / r)
    assert auditing.steinke(r, r, r, 0.0) == pytest.approx(math.log(x / (1 - x)), abs=1e-6)
    assert auditing.steinke(r, r, r, 0.0) == pytest.approx(expected, abs=0.005)


def slow_p_value(epsilon: float, r: int, v: int, m: int, delta: float) -> float:
    """Appendix D of Steinke et al. 2023, term by term."""
    q = 1 / (1 + math.exp(-epsilon))
    mass = [math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(r + 1)]
    beta = sum(mass[v:])
    alpha = max((sum(mass[v - i : v]) / i for i in range(1, v + 1)), default=0.0)
    return min(1.0, beta + 2 * m * delta * alpha)


@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, epsilon=st.floats(0, 6))
def test_p_values_equal_the_sum_over_all_outcomes(counts, epsilon: float) -> None:
    m, r, v, delta = counts
    expected = slow_p_value(epsilon, r, v, m, delta)
    assert steinke_p_value(epsilon, r, v, m, delta) == pytest.approx(expected, abs=1e-9)


def slow_f_dp_rejects(mu: float, r: int, v: int, m: int, error: float) -> bool:
    """Algorithm 3 of Mahloujifar et al. 2024 with the trade-off function 1 − Φ(Φ⁻¹(1 − α) − μ) spelt out."""
    h, rho = [error * (r - v) / m], [error * v / m]
    for i in range(v - 1, -1, -1):
        least_wrong = stats.norm.cdf(stats.norm.ppf(rho[-1]) - mu)
        h.append(max(h[-1], least_wrong))
        rho.append(rho[-1] + i / (r - i) * (h[-1] - h[-2]))
    return rho[-1] + h[-1] > r / m


@settings(max_examples=30, deadline=None)
@given(counts=COUNTS)
def test_the_f_dp_bound_lies_where_the_slow_test_stops_rejecting(counts) -> None:
    m, r, v, _ = counts
    bound = auditing.f_dp(r, v, m, 1e-5)
    if bound:
        mu = 1 / gaussian.noise_for(bound, 1e-5)
        assert slow_f_dp_rejects(mu * (1 - 1e-6), r, v, m, 0.05)
        assert not slow_f_dp_rejects(mu * (1 + 1e-6), r, v, m, 0.05)
    else:
        largest_of_nothing = 1 / gaussian.noise_for(1e-3, 1e-5)
        assert v == 0 or not slow_f_dp_rejects(largest_of_nothing, r, v, m, 0.05)


@settings(max_examples=40, deadline=None)
@given(counts=COUNTS)
def test_one_run_bounds_grow_with_what_is_right_and_are_zero_at_chance(counts) -> None:
    m, r, v, delta = counts
    for bound in (auditing.steinke, auditing.f_dp):
        found = bound(r, v, m, delta or 1e-5)
        assert found >= 0
        if v < r:
            assert bound(r, v + 1, m, delta or 1e-5) >= found
        if v <= r / 2:
            assert found == 0
        assert bound(r, v, m, delta or 1e-5, error=0.01) <= found


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), m=st.integers(1, 200), hits=st.floats(0, 1), alarms=st.floats(0, 1))
def test_many_run_bounds_grow_with_hits_and_the_gaussian_one_is_the_larger(n, m, hits, alarms) -> None:
    """The trade-off of Gaussian noise with an (ε, δ) allows less than (ε, δ)-DP does."""
    tp, fp = round(hits * n), round(alarms * m)
    general, special = (bound(tp, n, fp, m, 1e-5) for bound in (clopper_pearson, in_family))
    assert 0 <= general <= special + 1e-9 or hits < alarms
    if tp < n:
        assert in_family(tp + 1, n, fp, m, 1e-5) >= special
    if tp / n <= fp / m:
        assert special == 0


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("r", [20, 100])
def test_randomised_response_is_overstated_with_probability_error_at_most(epsilon: float, r: int) -> None:
    """Exactly: under pure ε-DP v is binomial at its most likely, and every v has its bound."""
    mass = stats.binom.pmf(np.arange(r + 1), r, 1 / (1 + math.exp(-epsilon)))
    bounds = np.array([auditing.steinke(r, v, r, 0.0) for v in range(r + 1)])
    risk = mass[bounds > epsilon + 1e-9].sum()
    assert risk <= 0.05
    assert risk > 0.005 or epsilon > bounds.max(), "a bound that never errs would say nothing"


@pytest.mark.parametrize(("mu", "delta"), [(0.5, 1e-3), (1.7, 1e-5)])
def test_independent_gaussian_canaries_are_overstated_in_at_most_the_error(mu: float, delta: float) -> None:
    m, r, games = 200, 60, 2000
    stream = np.random.default_rng(4)
    truth = gaussian_epsilon(mu, delta)
    coins = stream.random((games, m)) < 0.5
    scores = stream.normal(size=(games, m)) + mu * coins
    correct = [correct_guesses(s, c, r) for s, c in zip(scores, coins, strict=True)]
    for bound in (auditing.steinke, auditing.f_dp):
        by_correct = {v: bound(r, v, m, delta) for v in set(correct)}
        above = np.mean([by_correct[v] > truth for v in correct])
        assert above <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / games)


@pytest.mark.parametrize("cut", [0.0, 1.0])
def test_many_run_bounds_of_a_gaussian_mechanism_are_above_it_in_at_most_the_error(cut: float) -> None:
    """Exactly, over all outcomes of 25 + 25 runs."""
    n, mu, delta = 25, 1.0, 1e-5
    truth = gaussian_epsilon(mu, delta)
    hit, alarm = stats.norm.sf(cut - mu), stats.norm.sf(cut)
    risk = {clopper_pearson: 0.0, in_family: 0.0}
    for tp, fp in product(range(n + 1), repeat=2):
        mass = stats.binom.pmf(tp, n, hit) * stats.binom.pmf(fp, n, alarm)
        for bound in risk if mass > 1e-12 else ():
            risk[bound] += mass * (bound(tp, n, fp, n, delta) > truth)
    assert max(risk.values()) <= 0.05


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (2.0, 9)])
def test_dp_sgd_on_all_records_is_the_gaussian_family(noise: float, steps: int) -> None:
    family, mu = dp_sgd(noise, 1.0, steps), math.sqrt(steps) / noise
    found, exact = family.trade_off(1 / noise), GAUSSIAN.trade_off(mu)
    for rate in (0.001, 0.01, 0.1, 0.3, 0.5, 0.9):
        assert exact(rate) - 0.005 < found(rate) <= exact(rate) + 1e-4
    assert family.epsilon(1 / noise, 1e-5) == pytest.approx(gaussian_epsilon(mu, 1e-5), abs=0.02)
    assert family.epsilon(0.0, 1e-5) == 0
    counts = (95, 100, 20, 100, 1e-5)
    exactly = in_family(*counts)
    assert 0.93 * exactly < in_family(*counts, family=family) <= exactly + 0.02


def test_the_trade_off_of_dp_sgd_is_below_what_its_best_test_does_and_close_to_it() -> None:
    """Neyman & Pearson: no test of canaries in against canaries out goes below f, the best one touches it."""
    noise, rate, steps, n = 1.1, 0.5, 8, 200_000
    stream, ratio = np.random.default_rng(0), np.zeros((2, n))
    for _ in range(steps):
        x = noise * stream.normal(size=(2, n))
        x[0] += stream.random(n) < rate
        ratio += canaries.likelihood_ratio(x, rate, noise)
    inside, outside = ratio
    f = dp_sgd(noise, rate, steps).trade_off(1 / noise)
    for cut in np.quantile(ratio, [0.1, 0.3, 0.5, 0.7, 0.9]):
        fnr, fpr = np.mean(inside <= cut), np.mean(outside > cut)
        assert f(fpr) - 0.005 < fnr or f(fnr) - 0.005 < fpr
        assert min(fnr - f(fpr), fpr - f(fnr)) < 0.03, "f is the lower of both directions"
        below = dp_sgd(1.5 * noise, rate, steps).trade_off(1 / (1.5 * noise))
        assert fnr < below(fpr), "less noise than that is seen"


def test_the_trade_off_of_dp_sgd_falls_with_the_rate_and_with_less_noise() -> None:
    family, rates = dp_sgd(1.0, 0.1, 50), np.linspace(0, 1, 200)
    curves = [[family.trade_off(s)(rate) for rate in rates] for s in (0.5, 1.0, 2.0)]
    for curve in curves:
        assert np.all(np.diff(curve) <= 0)
        assert 0.98 < curve[0] <= 1
        assert curve[-1] == 0
    assert np.all(np.diff(curves, axis=0) <= 1e-6)


def test_many_run_bounds_of_dp_sgd_are_above_it_in_at_most_the_error() -> None:
    """The member of the family that it is must be rejected with probability error at most: all outcomes."""
    n, noise, rate, steps = 25, 1.1, 0.5, 8
    stream, ratio = np.random.default_rng(1), np.zeros((2, 100_000))
    for _ in range(steps):
        x = noise * stream.normal(size=ratio.shape)
        x[0] += stream.random(ratio.shape[1]) < rate
        ratio += canaries.likelihood_ratio(x, rate, noise)
    hit, alarm = (ratio > 0.5).mean(axis=1)
    family = dp_sgd(noise, rate, steps)
    truth, risk = family.epsilon(1 / noise, 1e-5), 0.0
    for tp, fp in product(range(n + 1), repeat=2):
        mass = stats.binom.pmf(tp, n, hit) * stats.binom.pmf(fp, n, alarm)
        if mass > 1e-6:
            risk += mass * (in_family(tp, n, fp, n, 1e-5, family=family) > truth)
    assert risk <= 0.05


@settings(max_examples=50, deadline=None)
@given(m=st.integers(2, 40), seed=st.integers(0, 99))
def test_guesses_are_in_for_the_highest_and_out_for_the_lowest(m: int, seed: int) -> None:
    stream = np.random.default_rng(seed)
    scores, inside = stream.permutation(m).astype(float), stream.random(m) < 0.5
    guesses = int(stream.integers(1, m + 1))
    low, high = guesses // 2, m - (guesses - guesses // 2)
    right = sum(bool(i) for s, i in zip(scores, inside, strict=True) if s >= high)
    right += sum(not i for s, i in zip(scores, inside, strict=True) if s < low)
    assert correct_guesses(scores, inside, guesses) == right
    assert correct_guesses(-scores, ~inside, guesses - guesses % 2) == correct_guesses(
        scores, inside, guesses - guesses % 2
    )


def test_impossible_counts_are_refused() -> None:
    for r, v, m in ((10, 11, 20), (10, 5, 9), (0, 0, 5)):
        with pytest.raises(ValueError, match="impossible"):
            auditing.steinke(r, v, m, 1e-5)
        with pytest.raises(ValueError, match="impossible"):
            auditing.f_dp(r, v, m, 1e-5)
    for counts in ((3, 2, 0, 2), (0, 0, 0, 1), (0, 1, 2, 1)):
        with pytest.raises(ValueError, match="no rates"):
            clopper_pearson(*counts, 1e-5)
