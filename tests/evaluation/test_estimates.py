"""Every estimate against a slow, obvious twin, and its interval against repeated draws."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, ks_2samp, mannwhitneyu, norm
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from fedsim.evaluation import estimates
from fedsim.evaluation.estimates import Estimate

SCORES = st.lists(st.integers(-5, 5).map(float) | st.floats(-5, 5), min_size=2, max_size=15).map(np.array)


def coverage(truth: float, draw: Callable[[], Estimate], draws: int) -> float:
    found = (draw() for _ in range(draws))
    return float(np.mean([found.low - 1e-12 <= truth <= found.high + 1e-12 for found in found]))


# AUC


@given(SCORES, SCORES)
def test_auc_is_scikit_learns_and_scipys(members: np.ndarray, nonmembers: np.ndarray) -> None:
    value = estimates.auc(members, nonmembers).value
    truth = np.repeat([1, 0], [len(members), len(nonmembers)])
    assert value == pytest.approx(roc_auc_score(truth, np.concatenate([members, nonmembers])))
    u = mannwhitneyu(members, nonmembers).statistic
    assert value == pytest.approx(u / len(members) / len(nonmembers))


def delong_by_pairs(members: np.ndarray, nonmembers: np.ndarray) -> tuple[float, float, float, float]:
    """The slow, obvious twin: every pair compared; DeLong's two variances, of members and of non-members."""
    psi = np.array([[(x > y) + 0.5 * (x == y) for y in nonmembers] for x in members])
    of_members = sum((row.mean() - psi.mean()) ** 2 for row in psi) / (len(members) - 1) / len(members)
    columns = [(column.mean() - psi.mean()) ** 2 for column in psi.T]
    of_others = sum(columns) / (len(nonmembers) - 1) / len(nonmembers)
    return psi.mean(), of_members, of_others, of_members + of_others


@given(SCORES, SCORES)
def test_auc_interval_is_delongs_on_the_logit_scale(members: np.ndarray, nonmembers: np.ndarray) -> None:
    found = estimates.auc(members, nonmembers)
    value, v, w, variance = delong_by_pairs(members, nonmembers)
    if value in (0, 1) or variance < 1e-18:
        return
    freedom = variance**2 / (v**2 / (len(members) - 1) + w**2 / (len(nonmembers) - 1))
    odds = math.log(value / (1 - value))
    floor = (estimates.FLOOR / min(len(members), len(nonmembers))) ** 2
    reach = student.ppf(0.975, freedom) * math.sqrt(variance + floor) / (value * (1 - value))
    expected = [1 / (1 + math.exp(min(-odds + sign * reach, 700))) for sign in (1, -1)]
    k = min(len(members), len(nonmembers))  # pairs without a record in common, at most
    widest = estimates.clopper_pearson(value * k, k)
    expected = [max(expected[0], widest[0]), min(expected[1], widest[1])]
    np.testing.assert_allclose([found.low, found.high], expected, atol=1e-9)


def test_an_auc_with_one_pair_in_the_wrong_order_has_an_interval_that_says_something() -> None:
    members, nonmembers = np.arange(44) + 43.5, np.arange(44.0)
    nonmembers[-1] = 43.7  # above the lowest member
    found = estimates.auc(members, nonmembers, error=0.05 / 35)
    assert found.value == pytest.approx(1 - 1 / 44**2)
    assert 0.8 < found.low < 0.9 < found.high < 1


@given(SCORES, SCORES)
def test_auc_depends_on_the_order_alone(members: np.ndarray, nonmembers: np.ndarray) -> None:
    # Rounded, so that the transform keeps unequal scores unequal.
    members, nonmembers = members.round(3), nonmembers.round(3)
    moved = estimates.auc(np.arctan(members) ** 3, np.arctan(nonmembers) ** 3)
    found = estimates.auc(members, nonmembers)
    assert (moved.value, moved.low, moved.high) == pytest.approx((found.value, found.low, found.high))


@given(SCORES, SCORES)
def test_swapping_the_truth_mirrors_the_auc(members: np.ndarray, nonmembers: np.ndarray) -> None:
    found, swapped = estimates.auc(members, nonmembers), estimates.auc(nonmembers, members)
    mirrored = (1 - swapped.value, 1 - swapped.high, 1 - swapped.low)
    assert (found.value, found.low, found.high) == pytest.approx(mirrored, abs=1e-9)


@pytest.mark.parametrize(("members", "nonmembers"), [(50, 50), (30, 120), (20, 20)])
@pytest.mark.parametrize("truth", [0.5, 0.6, 0.8, 0.95])
def test_auc_interval_holds(truth: float, members: int, nonmembers: int) -> None:
    stream, shift = np.random.default_rng(0), math.sqrt(2) * norm.ppf(truth)

    def draw() -> Estimate:
        return estimates.auc(stream.normal(shift, 1, members), stream.normal(0, 1, nonmembers))

    assert coverage(truth, draw, draws=500) >= 0.93


@pytest.mark.parametrize("n", [3, 20, 100])
def test_a_perfect_or_constant_score_keeps_an_interval(n: int) -> None:
    ones, zeros = np.ones(n), np.zeros(2 * n)
    perfect, hopeless = estimates.auc(ones, zeros), estimates.auc(zeros, ones)
    # n of n pairs that share no record are in order: binomial, all successes
    assert (perfect.value, perfect.high) == (1, 1)
    assert perfect.low == pytest.approx(binomtest(n, n).proportion_ci().low)
    assert (hopeless.value, hopeless.low, hopeless.high) == pytest.approx((0, 0, 1 - perfect.low))
    constant = estimates.auc(ones, np.ones(2 * n))
    assert constant.value == 0.5 and constant.low < 0.45 and constant.high > 0.55


# Rates


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_rate_interval_is_scipys_clopper_pearson(case: tuple[int, int]) -> None:
    hits, n = case
    found, exact = estimates.rate(hits, n), binomtest(hits, n).proportion_ci(method="exact")
    assert (found.value, found.low, found.high) == pytest.approx((hits / n, exact.low, exact.high), abs=1e-12)


@pytest.mark.parametrize(("tpr", "fpr"), [(0.5, 0.5), (0.6, 0.4), (0.9, 0.1), (0.02, 0.01), (0.99, 0.01)])
@pytest.mark.parametrize(("members", "nonmembers"), [(40, 40), (100, 30)])
def test_balanced_accuracy_interval_holds(tpr: float, fpr: float, members: int, nonmembers: int) -> None:
    stream = np.random.default_rng(0)

    def draw() -> Estimate:
        hits, alarms = stream.binomial(members, tpr), stream.binomial(nonmembers, fpr)
        return estimates.balanced_accuracy(estimates.rate(hits, members), estimates.rate(alarms, nonmembers))

    assert coverage((tpr + 1 - fpr) / 2, draw, draws=500) >= 0.93


def test_balanced_accuracy_by_hand() -> None:
    found = estimates.balanced_accuracy(Estimate(0.8, 0.7, 0.86), Estimate(0.2, 0.16, 0.24))
    # MOVER: below sqrt(.1² + .04²) / 2, above sqrt(.06² + .04²) / 2
    assert found.value == pytest.approx(0.8)
    assert found.low == pytest.approx(0.8 - math.sqrt(0.0116) / 2)
    assert found.high == pytest.approx(0.8 + math.sqrt(0.0052) / 2)


# TPR at a fixed FPR


@given(SCORES, SCORES, st.sampled_from([0.5, 0.25, 0.1]))
def test_tpr_at_fpr_lies_between_the_cuts_next_to_that_fpr(
    members: np.ndarray, nonmembers: np.ndarray, alpha: float
) -> None:
    found = estimates.tpr_at_fpr(members, nonmembers, alpha)
    if len(nonmembers) * alpha < 1:
        assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high)
        assert found.note == f"not resolvable at n={len(nonmembers)}"
        return
    m, largest_first = len(nonmembers), sorted(nonmembers, reverse=True)
    medians = [0.0] + [(j - 1 / 3) / (m + 1 / 3) for j in range(1, m + 1)]  # nobody is above j = 0
    rates = [0.0] + [float(np.mean(members > cut)) for cut in largest_first]
    if alpha >= medians[1]:
        assert found.value == pytest.approx(np.interp(alpha, medians, rates))
    assert found.low <= found.value + 1e-12 and found.value <= found.high + 1e-12
    assert found.note == ("" if (1 - alpha) ** m < 0.0125 else f"no lower bound at n={m}")


def test_the_true_fpr_at_the_cut_is_as_often_above_as_below() -> None:
    beta_of = [(m, alpha, estimates.place(m, alpha)) for m in (120, 1056) for alpha in (0.01, 0.1)]
    for m, alpha, j in beta_of:
        assert beta.cdf(alpha, j, m + 1 - j) == pytest.approx(0.5, abs=0.01)


def test_tpr_at_a_low_fpr_does_not_err_upwards() -> None:
    """The mean over many small samples is near the TPR at the true FPR; at the sample's own cut far above."""
    stream, truth = np.random.default_rng(0), float(norm.sf(norm.isf(0.01) - 2))
    values, naive = [], []
    for _ in range(1500):
        members, nonmembers = stream.normal(2, 1, 60), stream.normal(0, 1, 120)
        values.append(estimates.tpr_at_fpr(members, nonmembers, 0.01).value)
        naive.append(np.mean(members > np.sort(nonmembers)[-2]))
    assert abs(np.mean(values) - truth) < 0.35 * abs(np.mean(naive) - truth)


def test_tied_nonmembers_never_pass_the_rate() -> None:
    nonmembers = np.array([0.0] * 8 + [1.0] * 2)  # a cut at 1 would have FPR 0.2
    members = np.array([1.0, 1.0, 2.0, 0.0])
    assert estimates.tpr_at_fpr(members, nonmembers, 0.1).value == 0.25
    # 2.4th of ten: two fifths of the way from the second, 1, to the third, 0
    assert estimates.tpr_at_fpr(members, nonmembers, 0.2).value == pytest.approx(0.6 * 0.25 + 0.4 * 0.75)


@pytest.mark.parametrize(("n", "alpha"), [(10, 0.1), (100, 0.01), (1000, 0.001), (700, 0.01), (30, 0.1)])
def test_a_rate_is_resolvable_from_one_expected_nonmember_on(n: int, alpha: float) -> None:
    members = np.full(5, 0.5)
    nonmembers = np.concatenate([np.ones(round(n * alpha)), np.zeros(n - round(n * alpha))])
    found = estimates.tpr_at_fpr(members, nonmembers, alpha)
    # All members lie between the n α non-members above the cut in the sample and the others.
    assert found.value == pytest.approx(max(0.0, estimates.place(n, alpha) - round(n * alpha)))
    assert bool(found.note) == (n * alpha < 4.4)
    assert not estimates.resolvable(round(1 / alpha) - 1, alpha)


@pytest.mark.parametrize(("alpha", "n"), [(0.1, 20), (0.1, 200), (0.01, 100), (0.01, 400), (0.001, 1000)])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_tpr_at_fpr_interval_holds(alpha: float, n: int, shift: float) -> None:
    stream = np.random.default_rng(0)

    def draw() -> Estimate:
        return estimates.tpr_at_fpr(stream.normal(shift, 1, n), stream.normal(0, 1, n), alpha)

    assert coverage(float(norm.sf(norm.isf(alpha) - shift)), draw, draws=400) >= 0.95


def test_the_estimated_threshold_is_what_widens_the_interval() -> None:
    """Clopper–Pearson alone, at the empirical threshold, would not hold."""
    stream, truth = np.random.default_rng(0), float(norm.sf(norm.isf(0.01) - 1))

    def draw() -> Estimate:
        found = estimates.tpr_at_fpr(stream.normal(1, 1, 2000), stream.normal(0, 1, 100), 0.01)
        return estimates.rate(round(found.value * 2000), 2000)

    assert coverage(truth, draw, draws=300) < 0.5


# Several games


def test_the_mean_over_games_by_hand() -> None:
    found = estimates.mean([Estimate(0.5, 0.4, 0.7), Estimate(0.54, 0.44, 0.74)])
    s2, below, above = 0.0008, (0.1 / norm.ppf(0.975)) ** 2, (0.2 / norm.ppf(0.975)) ** 2
    low, high = (student.ppf(0.975, 3) * math.sqrt((s2 + w2) / 2) for w2 in (below, above))
    assert (found.value, found.low, found.high) == pytest.approx((0.52, 0.52 - low, 0.52 + high))
    wide = estimates.mean([Estimate(0.4, 0.3, 0.5), Estimate(0.5, 0.4, 0.6), Estimate(0.6, 0.5, 0.7)])
    reach = student.ppf(0.975, 2 * (1 + below / 0.01)) * math.sqrt((0.01 + below) / 3)
    assert wide.high - wide.value == pytest.approx(reach)
    assert estimates.mean([Estimate(0.1, 0, 0.9), Estimate(0.9, 0.1, 1)]) == Estimate(0.5, 0, 1)


@pytest.mark.parametrize(
    ("truth", "games", "spread"),
    [
        (0.5, 1, 0.0), (0.5, 3, 0.6), (0.5, 12, 0.0), (0.7, 2, 0.6), (0.7, 4, 0.3), (0.95, 1, 0.0),
        (0.95, 4, 0.6), (0.95, 12, 0.6), (0.995, 1, 0.0), (0.995, 4, 0.6), (0.995, 8, 0.3), (0.995, 12, 0.6),
    ],
)  # fmt: skip
def test_the_interval_of_a_mean_auc_holds_whatever_lies_between_games(
    truth: float, games: int, spread: float
) -> None:
    """Games differ by a random shift of the members' scores; the truth is the mean over all such games."""
    stream, n = np.random.default_rng(0), 177
    centre = float(norm.ppf(truth)) * math.sqrt(2 + spread**2)

    def draw() -> Estimate:
        shifts = stream.normal(centre, spread, games)
        return estimates.mean_auc(
            [estimates.auc(stream.normal(shift, 1, n), stream.normal(0, 1, n)) for shift in shifts]
        )

    assert coverage(truth, draw, draws=250) >= 0.91  # 0.93 less two standard errors of 250 draws


def test_a_mean_auc_by_hand() -> None:
    found = estimates.mean_auc([Estimate(0.8, 0.7, 0.85), Estimate(0.9, 0.8, 0.95)])
    z, slope = norm.ppf(0.975), 0.85 * 0.15
    for end, sign, step in ((found.low, -1, 0.1), (found.high, 1, 0.05)):
        deviation = math.sqrt((0.005 + 0.05 * (step / z) ** 2) / 2)
        odds = math.log(0.85 / 0.15) + sign * student.ppf(0.975, 1) * deviation / slope
        assert end == pytest.approx(1 / (1 + math.exp(-odds)))
    one = Estimate(0.7, 0.6, 0.8)
    assert estimates.mean_auc([one]) == one
    perfect = estimates.mean_auc([Estimate(1.0, 0.9, 1.0)] * 3)
    assert perfect.value == 1 and perfect.low < 1


def test_games_that_are_nearly_all_perfect_say_something() -> None:
    """Seven games of ten members and ten others in perfect order, and one with a single pair out of order."""
    perfect = estimates.auc(np.arange(10.0) + 10, np.arange(10.0))
    nearly = estimates.auc(np.append(np.arange(9.0) + 10, 8.5), np.arange(10.0))
    assert nearly.value == 0.99
    found = estimates.mean_auc([perfect] * 7 + [nearly])
    assert 0.85 < found.low < 0.95 and 0.999 < found.high < 1
    stream, n = np.random.default_rng(0), 10

    def draw() -> Estimate:
        games = [(stream.normal(3.64, 1, n), stream.normal(0, 1, n)) for _ in range(5)]
        return estimates.mean_auc([estimates.auc(*game) for game in games])

    assert coverage(float(norm.cdf(3.64 / math.sqrt(2))), draw, draws=250) >= 0.93


def test_the_mean_of_rare_rates_over_games_keeps_an_interval() -> None:
    stream, truth, games, n = np.random.default_rng(0), 0.005, 4, 20

    def draw() -> Estimate:
        return estimates.mean([estimates.rate(stream.binomial(n, truth), n) for _ in range(games)])

    assert coverage(truth, draw, draws=300) >= 0.95
    assert estimates.mean([estimates.rate(0, n)] * games).high > 0.05


def test_games_without_a_value_are_left_out_and_named() -> None:
    nothing = Estimate(math.nan, math.nan, math.nan, "no members among the candidates")
    some = Estimate(0.6, 0.5, 0.7)
    assert estimates.mean([some]) == some
    assert estimates.mean([nothing]) is nothing
    assert estimates.mean([nothing, some]) == Estimate(0.6, 0.5, 0.7, "1 of 2 games")
    assert estimates.mean([nothing, some, some]).note == "2 of 3 games"


# Advantage


@given(SCORES, SCORES)
def test_the_largest_advantage_is_scipys_one_sided_smirnov_statistic(
    members: np.ndarray, nonmembers: np.ndarray
) -> None:
    found = estimates.max_advantage(members, nonmembers)
    assert found.value == pytest.approx(ks_2samp(members, nonmembers, alternative="less").statistic)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_the_two_bands_are_what_simulated_uniforms_need() -> None:
    stream = np.random.default_rng(0)
    reach = estimates.max_advantage(np.zeros(40), np.ones(90)).high
    grid_n, grid_m = np.arange(1, 41) / 40, np.arange(1, 91) / 90
    u, v = np.sort(stream.random((4000, 40))), np.sort(stream.random((4000, 90)))
    distances = [
        np.maximum(np.abs(x - grid).max(axis=1), np.abs(x - grid + 1 / len(grid)).max(axis=1))
        for x, grid in ((u, grid_n), (v, grid_m))
    ]
    assert 0.94 < np.mean(sum(distances) <= reach) < 0.99  # the asymptotic quantile errs upwards


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("n", [20, 100])
def test_the_largest_advantages_interval_holds(shift: float, n: int) -> None:
    stream, truth = np.random.default_rng(0), 2 * float(norm.cdf(shift / 2)) - 1

    def draw() -> Estimate:
        return estimates.max_advantage(stream.normal(shift, 1, n), stream.normal(0, 1, 2 * n))

    assert coverage(truth, draw, draws=300) >= 0.95


# Precision under a prior


@pytest.mark.parametrize(("tpr", "fpr", "prior", "expected"), [(1, 0, 0.01, 1), (0.5, 0.5, 0.3, 0.3),
                         (0.8, 0.1, 0.5, 8 / 9), (0.5, 0.01, 0.01, 0.5 / (0.5 + 0.99))])  # fmt: skip
def test_ppv_by_hand(tpr: float, fpr: float, prior: float, expected: float) -> None:
    rates = (Estimate(rate, rate, rate) for rate in (tpr, fpr))
    found = estimates.ppv(*rates, prior)
    assert (found.value, found.low, found.high) == pytest.approx((expected,) * 3)


def test_ppv_is_the_share_of_members_among_the_accused() -> None:
    stream, prior = np.random.default_rng(0), 0.1
    member = stream.random(200_000) < prior
    scores = stream.normal(member * 1.5)
    tpr, fpr = ((scores[side] >= 2).mean() for side in (member, ~member))
    found = estimates.ppv(Estimate(tpr, tpr, tpr), Estimate(fpr, fpr, fpr), prior)
    assert found.value == pytest.approx(member[scores >= 2].mean(), abs=0.005)


@pytest.mark.parametrize(("tpr", "fpr"), [(0.5, 0.5), (0.9, 0.1), (0.3, 0.02), (0.02, 0.02)])
@pytest.mark.parametrize("prior", [0.1, 0.001])
def test_ppv_interval_holds(tpr: float, fpr: float, prior: float) -> None:
    stream, truth = np.random.default_rng(0), prior * tpr / (prior * tpr + (1 - prior) * fpr)

    def draw() -> Estimate:
        hits, alarms = stream.binomial(50, tpr), stream.binomial(80, fpr)
        found = estimates.ppv(estimates.rate(hits, 50), estimates.rate(alarms, 80), prior)
        return found if found.note == "" else Estimate(0, 0, 1)  # nobody accused: nothing is claimed

    assert coverage(truth, draw, draws=400) >= 0.95


def test_ppv_of_no_accusation_has_no_value_but_a_reason() -> None:
    found = estimates.ppv(estimates.rate(0, 9), estimates.rate(0, 9), 0.1)
    assert math.isnan(found.value) and found.note == "the adversary accuses nobody"
    missing = estimates.ppv(estimates.tpr_at_fpr(np.ones(3), np.ones(5), 0.1), Estimate(0.1, 0.1, 0.1), 0.1)
    assert math.isnan(missing.value) and missing.note == "not resolvable at n=5"


def test_a_smaller_error_widens_every_interval() -> None:
    stream = np.random.default_rng(0)
    pairs = [(stream.normal(0.5, 1, 30), stream.normal(0, 1, 30)) for _ in range(3)]
    by_error = [
        estimates.mean([estimates.auc(*pair, error) for pair in pairs], error) for error in (0.05, 0.005)
    ]
    usual, strict = by_error
    assert strict.low < usual.low and usual.high < strict.high and strict.value == usual.value
