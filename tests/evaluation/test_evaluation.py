from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import binomtest, ks_2samp, mannwhitneyu, norm
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from attacks import registry
from fedsim.evaluation import estimates, guarantees
from fedsim.evaluation.estimates import Estimate
from fedsim.evaluation.leakage import Sample, evaluate, measure, ppv_table, roc, roc_table

SCORES = st.lists(st.integers(-5, 5).map(float) | st.floats(-5, 5), min_size=2, max_size=15).map(np.array)
METRICS = [
    "auc", "balanced_accuracy", "fpr", "tpr_at_threshold", "advantage", "advantage_max",
    "tpr_at_fpr_0.1", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001",
]  # fmt: skip


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
    reach = student.ppf(0.975, freedom) * math.sqrt(variance) / (value * (1 - value))
    expected = [1 / (1 + math.exp(min(-odds + sign * reach, 700))) for sign in (1, -1)]
    np.testing.assert_allclose([found.low, found.high], expected, atol=1e-9)


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
def test_tpr_at_fpr_is_the_best_point_of_the_roc(
    members: np.ndarray, nonmembers: np.ndarray, alpha: float
) -> None:
    found = estimates.tpr_at_fpr(members, nonmembers, alpha)
    if len(nonmembers) * alpha < 1:
        assert math.isnan(found.value) and math.isnan(found.low) and math.isnan(found.high)
        assert found.note == f"not resolvable at n={len(nonmembers)}"
        return
    cuts = np.concatenate([members, nonmembers, [np.inf]])
    allowed = [cut for cut in cuts if np.mean(nonmembers >= cut) <= alpha]
    best = max(np.mean(members >= cut) for cut in allowed)
    assert found.value == pytest.approx(best)
    assert found.low <= found.value <= found.high


def test_tied_nonmembers_never_pass_the_rate() -> None:
    nonmembers = np.array([0.0] * 8 + [1.0] * 2)  # a cut at 1 would have FPR 0.2
    assert estimates.tpr_at_fpr(np.array([1.0, 1.0, 2.0, 0.0]), nonmembers, 0.1).value == 0.25
    assert estimates.tpr_at_fpr(np.array([1.0, 1.0, 2.0, 0.0]), nonmembers, 0.2).value == 0.75


@pytest.mark.parametrize(("n", "alpha"), [(10, 0.1), (100, 0.01), (1000, 0.001), (700, 0.01), (30, 0.1)])
def test_a_rate_is_resolvable_from_one_expected_nonmember_on(n: int, alpha: float) -> None:
    members = np.full(5, 0.5)
    nonmembers = np.concatenate([np.ones(round(n * alpha)), np.zeros(n - round(n * alpha))])
    assert estimates.tpr_at_fpr(members, nonmembers, alpha).value == 1
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


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3, 0.5])  # of the AUC: 0 to twice its sampling error
@pytest.mark.parametrize("games", [2, 4, 8])
def test_the_interval_of_the_mean_over_games_holds(games: int, spread: float) -> None:
    """Games differ by a random shift of the members' scores; the truth is the mean over all such games."""
    stream, n = np.random.default_rng(0), 40
    truth = float(norm.cdf(0.3 / math.sqrt(2 + spread**2)))

    def draw() -> Estimate:
        shifts = stream.normal(0.3, spread, games)
        return estimates.mean(
            [estimates.auc(stream.normal(shift, 1, n), stream.normal(0, 1, n)) for shift in shifts]
        )

    assert coverage(truth, draw, draws=300) >= 0.93


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


# The table


def tables(
    games: int = 2, per_side: int = 15, parties: tuple[str, ...] = ("a", "b"), shift: float = 1.0
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Candidates in the order of their numbers: per party its members, then its non-members."""
    stream, n = np.random.default_rng(0), 2 * per_side * len(parties)
    truth = pd.DataFrame(
        {
            "game": np.repeat(np.arange(games), n),
            "candidate": np.tile(np.arange(n), games),
            "record": np.tile(np.arange(n), games),
            "party": np.tile(np.repeat(parties, 2 * per_side), games),
            "member": np.tile(np.repeat([True, False], per_side), games * len(parties)),
        }
    )
    attacks = ["loss", "entropy"]
    scores = pd.concat([truth[["game", "candidate"]].assign(attack=attack) for attack in attacks])
    scores["score"] = stream.normal(np.tile(truth["member"], 2) * shift)
    thresholds = pd.DataFrame(
        [{"game": game, "attack": attack, "threshold": 0.5} for game in range(games) for attack in attacks]
    )
    return scores, thresholds, truth


def cell(leakage: pd.DataFrame, **keys: str) -> Any:
    found = leakage
    for column, value in keys.items():
        found = found[found[column] == value]
    assert len(found) == 1
    return found.iloc[0]


def test_the_table_has_a_row_for_every_attack_party_game_and_metric() -> None:
    leakage = evaluate(*tables())
    assert list(leakage.columns) == [
        "attack", "party", "game", "metric", "value", "low", "high", "n_members", "n_nonmembers", "note",
    ]  # fmt: skip
    keys = leakage[["attack", "party", "game", "metric"]]
    assert not keys.duplicated().any() and len(keys) == 2 * 3 * 3 * len(METRICS)
    assert list(leakage["attack"].unique()) == ["loss", "entropy"]
    assert list(leakage["party"].unique()) == ["all", "a", "b"]
    assert list(leakage["game"].unique()) == ["0", "1", "all"]
    assert list(leakage["metric"].unique()) == METRICS
    assert leakage["note"].map(type).eq(str).all()


def test_each_figure_is_of_its_own_party_and_game() -> None:
    scores, thresholds, truth = tables()
    leakage = evaluate(scores, thresholds, truth)
    joined = scores[scores["attack"] == "entropy"].merge(truth, on=["game", "candidate"])
    for game in (0, 1):
        for party in ("all", "a", "b"):
            rows = joined[(joined["game"] == game) & ((joined["party"] == party) | (party == "all"))]
            tpr = np.mean(rows["score"][rows["member"]] >= 0.5)
            fpr = np.mean(rows["score"][~rows["member"]] >= 0.5)
            expected = {
                "auc": roc_auc_score(rows["member"], rows["score"]),
                "balanced_accuracy": (tpr + 1 - fpr) / 2,
                "fpr": fpr,
                "tpr_at_threshold": tpr,
            }
            for metric, value in expected.items():
                found = cell(leakage, attack="entropy", party=party, game=str(game), metric=metric)
                assert found["value"] == pytest.approx(value)
                assert found["low"] <= value <= found["high"]
                assert found["n_members"] == found["n_nonmembers"] == len(rows) / 2


def test_the_row_of_all_games_is_their_mean_with_all_their_records() -> None:
    leakage = evaluate(*tables(games=4))
    for metric in METRICS[:4]:
        keys = {"attack": "loss", "party": "b", "metric": metric}
        by_game = [cell(leakage, game=str(game), **keys)["value"] for game in range(4)]
        found = cell(leakage, game="all", **keys)
        assert found["value"] == pytest.approx(np.mean(by_game))
        assert found["n_members"] == found["n_nonmembers"] == 60


def test_one_game_is_its_own_mean() -> None:
    leakage = evaluate(*tables(games=1))
    one, mean = (leakage[leakage["game"] == game].drop(columns="game") for game in ("0", "all"))
    pd.testing.assert_frame_equal(one.reset_index(drop=True), mean.reset_index(drop=True))


def test_neither_the_order_of_rows_nor_of_columns_matters() -> None:
    scores, thresholds, truth = tables()
    mixed = [table.sample(frac=1, random_state=0)[sorted(table)] for table in (scores, thresholds, truth)]
    keys = ["attack", "party", "game", "metric"]
    found, again = (
        evaluate(*given).sort_values(keys, ignore_index=True)
        for given in ((scores, thresholds, truth), mixed)
    )
    pd.testing.assert_frame_equal(found, again)


def test_a_rate_below_the_resolution_is_said_so_or_pooled_over_games() -> None:
    leakage = evaluate(*tables(games=4, per_side=30))
    unresolved = cell(leakage, attack="loss", party="a", game="0", metric="tpr_at_fpr_0.01")
    assert math.isnan(unresolved["value"]) and unresolved["note"] == "not resolvable at n=30"
    pooled = cell(leakage, attack="loss", party="a", game="all", metric="tpr_at_fpr_0.01")
    assert 0 <= pooled["low"] <= pooled["value"] <= pooled["high"]
    assert pooled["note"] == "ranks pooled over 4 games"
    still = cell(leakage, attack="loss", party="a", game="all", metric="tpr_at_fpr_0.001")
    assert math.isnan(still["value"]) and still["note"] == "not resolvable at n=120"
    mean = cell(leakage, attack="loss", party="a", game="all", metric="tpr_at_fpr_0.1")
    assert mean["note"] == "" and mean["value"] > 0


def test_pooled_ranks_do_not_care_for_the_scale_of_a_game() -> None:
    scores, thresholds, truth = tables(games=4, per_side=30)
    stretched = scores.assign(score=scores["score"] * 10.0 ** scores["game"] + 100 * scores["game"])
    keys = {"attack": "loss", "party": "all", "game": "all", "metric": "tpr_at_fpr_0.01"}
    found = cell(evaluate(scores, thresholds, truth), **keys)
    again = cell(evaluate(stretched, thresholds, truth), **keys)
    assert (found["value"], found["low"]) == (again["value"], again["low"])


def test_a_party_without_members_has_no_figure_but_a_reason() -> None:
    scores, thresholds, truth = tables(games=1)
    truth.loc[truth["party"] == "b", "member"] = False
    leakage = evaluate(scores, thresholds, truth)
    found = cell(leakage, attack="loss", party="b", game="0", metric="auc")
    assert math.isnan(found["value"]) and found["note"] == "no members among the candidates"
    assert found["n_members"] == 0 and found["n_nonmembers"] == 30
    rate = cell(leakage, attack="loss", party="b", game="0", metric="fpr")
    assert 0 <= rate["value"] <= 1
    missing = cell(leakage, attack="loss", party="b", game="0", metric="balanced_accuracy")
    assert math.isnan(missing["value"]) and missing["note"] == "no such records"


@pytest.mark.parametrize("fault", ["nan", "truth", "threshold"])
def test_tables_that_do_not_fit_are_refused(fault: str) -> None:
    scores, thresholds, truth = tables()
    if fault == "nan":
        scores.iloc[3, scores.columns.get_loc("score")] = np.nan
    elif fault == "truth":
        truth = truth[truth["candidate"] != 7]
    else:
        thresholds = thresholds[thresholds["game"] == 0]
    with pytest.raises(ValueError, match="NaN" if fault == "nan" else "no truth"):
        evaluate(scores, thresholds, truth)


def test_roc_encloses_the_auc() -> None:
    stream = np.random.default_rng(0)
    scores, member = stream.normal(size=300), stream.random(300) < 0.4
    fpr, tpr, thresholds = roc(scores, member)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1) and len(thresholds) == len(fpr)
    assert np.trapezoid(tpr, fpr) == pytest.approx(estimates.auc(scores[member], scores[~member]).value)


# From a federation to the figures


def leakage_of(view: Any, federation: Any, names: list[str]) -> pd.DataFrame:
    findings = registry.run(view, federation.candidates, names, seed=0)
    candidate = np.arange(len(federation.candidates))
    scores = [
        pd.DataFrame({"game": 0, "attack": name, "candidate": candidate, "score": found.scores})
        for name, found in findings.items()
    ]
    thresholds = [
        {"game": 0, "attack": name, "threshold": found.threshold} for name, found in findings.items()
    ]
    party = [f"hospital-{number}" for number in federation.party]
    truth = pd.DataFrame({"game": 0, "candidate": candidate, "party": party, "member": federation.member})
    return evaluate(pd.concat(scores), pd.DataFrame(thresholds), truth)


def test_a_model_that_memorises_leaks_everything(overfitted: Any) -> None:
    leakage = leakage_of(overfitted.view, overfitted, ["loss", "loss-series"])
    for party in ("all", "hospital-1", "hospital-2"):
        found = cell(leakage, attack="loss", party=party, game="all", metric="auc")
        assert found["value"] > 0.97 and found["low"] > 0.8
        assert cell(leakage, attack="loss", party=party, game="all", metric="balanced_accuracy")["low"] > 0.7


def test_a_model_that_never_saw_the_records_leaks_nothing(overfitted: Any, untrained: Any) -> None:
    passive = [attack for attack in registry.SUITE.values() if not attack.active]
    names = [attack.name for attack in passive if not (attack.shadows or attack.simulates)]
    leakage = leakage_of(untrained, overfitted, names)
    for metric in ("auc", "balanced_accuracy"):
        found = leakage[(leakage["metric"] == metric) & (leakage["party"] == "all")]
        assert (found["low"] < 0.5).all() and (found["high"] > 0.5).all()


def test_measure_uses_the_adversarys_own_threshold() -> None:
    sample = Sample("0", 2.0, np.array([1.0, 2, 3, 4]), np.array([0.0, 1, 2]), np.ones(4), np.ones(3))
    found = measure(sample)
    assert (found["tpr_at_threshold"].value, found["fpr"].value) == (3 / 4, 1 / 3)
    assert found["balanced_accuracy"].value == pytest.approx((3 / 4 + 2 / 3) / 2)


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


def test_advantage_is_tpr_minus_fpr_in_each_game_and_over_games() -> None:
    leakage = evaluate(*tables(games=3, shift=-3.0))
    for game in ("0", "all"):
        at = {"attack": "loss", "party": "a", "game": game}
        tpr, fpr = (cell(leakage, metric=name, **at)["value"] for name in ("tpr_at_threshold", "fpr"))
        found = cell(leakage, metric="advantage", **at)
        assert found["value"] == pytest.approx(tpr - fpr)
        assert found["low"] <= found["value"] <= found["high"] and found["low"] < 0


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


def test_ppv_table_follows_the_leakage_table() -> None:
    leakage = evaluate(*tables(games=2))
    table = ppv_table(leakage, priors=[0.2, 0.001])
    assert len(table) == 2 * 3 * 3 * 2 * 4
    at = {"attack": "entropy", "party": "b", "game": "all"}
    tpr = cell(leakage, metric="tpr_at_fpr_0.1", **at)
    found = cell(table[table["prior"] == 0.2], at="fpr_0.1", **at)
    for column in ("value", "low", "high"):
        assert found[column] == pytest.approx(0.2 * tpr[column] / (0.2 * tpr[column] + 0.8 * 0.1))
    for prior in (0.0, 1.0, -0.1, 2.0):
        with pytest.raises(ValueError, match="each must lie in"):
            ppv_table(leakage, priors=[prior])


# What DP leaves


def largest_auc(epsilon: float, delta: float) -> float:
    """The bound as a linear programme: any chance of 'i above j' in four worlds that DP allows.

    Worlds: i in and j out, both out, both in, j in and i out; to maximise P(i above j) in the first plus
    P(j above i) in the last, halved.
    """
    factor, rows, limits = math.exp(epsilon), [], []
    for first, second in [(0, 1), (0, 2), (1, 3), (2, 3)]:
        for a, b in ((first, second), (second, first)):
            row = np.zeros(4)
            row[a], row[b] = 1, -factor
            rows += [row, -row]  # of 'i above j': x_a − e^ε x_b ≤ δ; of its complement
            limits += [delta, delta + factor - 1]
    found = linprog([-0.5, 0, 0, 0.5], A_ub=np.array(rows), b_ub=limits, bounds=(0, 1))
    return 0.5 - float(found.fun)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 3.0, 5.0])  # beyond, the solver's tolerance is too coarse
@pytest.mark.parametrize("delta", [0.0, 1e-5, 0.05])
def test_the_bounds_of_dp_are_a_linear_programmes(epsilon: float, delta: float) -> None:
    assert guarantees.auc_bound(epsilon, delta) == pytest.approx(largest_auc(epsilon, delta), abs=1e-7)
    advantage = guarantees.advantage_bound(epsilon, delta)
    assert advantage == pytest.approx(2 * guarantees.auc_bound(epsilon, delta) - 1)
    assert guarantees.auc_bound(math.inf, delta) == 1


def test_laplace_noise_on_a_sum_reaches_the_bound() -> None:
    """Record i counts 1, record j −1; whoever is in moves the sum, and i is put above j where it is > 0."""
    stream, epsilon = np.random.default_rng(0), 1.0
    sums = np.where(stream.random(200_000) < 0.5, 1, -1)  # i in and j out, or j in and i out
    right = np.mean((sums + stream.laplace(0, 1 / epsilon, len(sums)) > 0) == (sums > 0))
    assert right == pytest.approx(guarantees.auc_bound(epsilon, 0), abs=0.003)
    assert right > math.e / (1 + math.e) + 0.05  # the area under one record's region is exceeded


def largest_tpr(fpr: float, epsilon: float, delta: float) -> float:
    """The linear program: TPR and r, r and FPR, each pair (ε, δ)-close in both directions."""
    e = math.exp(epsilon)
    rows, sides = [], []
    for a, b in ((0, 1), (1, 2)):  # variables: TPR, r, FPR
        for x, y in ((a, b), (b, a)):
            close, complement = np.zeros(3), np.zeros(3)
            close[x], close[y] = 1, -e  # x ≤ e y + δ
            complement[x], complement[y] = -1, e  # 1 − x ≤ e (1 − y) + δ
            rows += [close, complement]
            sides += [delta, e - 1 + delta]
    bounds = [(0, 1), (0, 1), (fpr, fpr)]
    return float(-linprog([-1, 0, 0], A_ub=np.array(rows), b_ub=sides, bounds=bounds).fun)


@given(fpr=st.floats(0, 1), epsilon=st.floats(0, 6), delta=st.floats(0, 0.3))
def test_the_tpr_that_dp_allows_is_a_linear_program_s(fpr: float, epsilon: float, delta: float) -> None:
    assert guarantees.tpr_bound(fpr, epsilon, delta) == pytest.approx(
        largest_tpr(fpr, epsilon, delta), abs=1e-6
    )


@given(tpr=st.floats(0, 1), fpr=st.floats(1e-4, 1), delta=st.floats(0, 0.1))
def test_the_epsilon_that_rates_need_is_the_smallest_that_allows_them(
    tpr: float, fpr: float, delta: float
) -> None:
    needed = guarantees.epsilon_needed(tpr, fpr, delta)
    assert guarantees.tpr_bound(fpr, needed + 1e-6, delta) >= tpr - 1e-9
    if 1e-6 < needed < math.inf:
        assert guarantees.tpr_bound(fpr, needed - 1e-6, delta) < tpr


def test_to_be_certain_of_a_member_needs_an_infinite_epsilon() -> None:
    assert guarantees.epsilon_needed(1.0, 0.5, 0.0) == math.inf
    assert guarantees.epsilon_needed(1.0, 0.5, 1e-5) < math.inf
    assert guarantees.epsilon_needed(1.0, 1.0, 0.0) == 0


def test_the_epsilon_that_rates_need_by_hand() -> None:
    # Two records apart, without δ: TPR ≤ e^{2ε} FPR where that is small.
    assert guarantees.epsilon_needed(0.04, 0.01, 0.0) == pytest.approx(math.log(4) / 2)
    assert guarantees.epsilon_needed(0.01, 0.02, 0.0) == 0.0
    assert guarantees.epsilon_needed(0.5, 0.0, 0.0) == math.inf


def test_without_dp_every_tpr_is_allowed() -> None:
    assert guarantees.tpr_bound(0.0, math.inf, 1e-5) == 1
    assert guarantees.tpr_bound(0.001, 1e6, 0.0) == 1


# ROC


def test_roc_table_meets_the_leakage_table_and_scikit_learns_curve() -> None:
    scores, thresholds, truth = tables(games=1, per_side=50)
    table = roc_table(scores, thresholds, truth, points=3)
    assert list(table["fpr"].unique()) == pytest.approx([0.01, 0.1, 1])
    leakage = evaluate(scores, thresholds, truth)
    for alpha in (0.1, 0.01):
        keys = {"attack": "loss", "party": "all", "game": "all", "metric": f"tpr_at_fpr_{alpha}"}
        point = table[(table["attack"] == "loss") & np.isclose(table["fpr"], alpha)].iloc[0]
        assert point["tpr"] == cell(leakage, **keys)["value"] and point["low"] == cell(leakage, **keys)["low"]
    fine = roc_table(scores, thresholds, truth, points=40)
    found = scores[scores["attack"] == "entropy"].merge(truth, on=["game", "candidate"])
    fpr, tpr, _ = roc(found["score"].to_numpy(), found["member"].to_numpy())
    for point in fine[fine["attack"] == "entropy"].itertuples():
        assert point.tpr == pytest.approx(tpr[fpr <= point.fpr + 1e-12].max())
    assert (fine.groupby("attack")["tpr"].diff().dropna() >= 0).all()


def test_roc_table_pools_games_that_cannot_resolve_alone() -> None:
    table = roc_table(*tables(games=3, per_side=10), points=10)
    assert table["fpr"].min() == pytest.approx(1 / 60)
    pooled = table["note"] == "ranks pooled over 3 games"
    assert pooled[table["fpr"] < 0.049].all() and not pooled[table["fpr"] > 0.051].any()
    assert (table["low"] <= table["tpr"]).all() and (table["tpr"] <= table["high"]).all()


def test_a_smaller_error_widens_every_interval() -> None:
    stream = np.random.default_rng(0)
    pairs = [(stream.normal(0.5, 1, 30), stream.normal(0, 1, 30)) for _ in range(3)]
    by_error = [
        estimates.mean([estimates.auc(*pair, error) for pair in pairs], error) for error in (0.05, 0.005)
    ]
    usual, strict = by_error
    assert strict.low < usual.low and usual.high < strict.high and strict.value == usual.value
