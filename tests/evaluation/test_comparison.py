from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, ttest_ind

from fedsim.evaluation import comparison
from fedsim.evaluation import estimates as evaluation_estimates
from fedsim.evaluation.comparison import Comparison, Scored
from fedsim.evaluation.estimates import ERROR, tpr_at_fpr
from fedsim.evaluation.leakage import evaluate, joined

LOSS, ENTROPY = ("participant", "loss"), ("participant", "entropy")


def game(stream: np.random.Generator, n: int, shifts: tuple[float, ...], shared: float = 0.7) -> Scored:
    """Scores of correlated normals: member shift per attack, ``shared`` of the variance in common."""
    member = np.repeat([True, False], n)
    own = stream.normal(size=(len(shifts), 2 * n)) * math.sqrt(1 - shared)
    common = stream.normal(size=2 * n) * math.sqrt(shared)
    return Scored(np.array(shifts)[:, None] * member + own + common, member)


def covers(found: Comparison, truth: float) -> bool:
    return found.low - 1e-12 <= truth <= found.high + 1e-12


def auc_of(shift: float) -> float:
    return float(norm.cdf(shift / math.sqrt(2)))


# Paired DeLong


def delong_by_pairs(game: Scored) -> tuple[np.ndarray, np.ndarray]:
    """The slow, obvious twin: equations 4 to 6, every pair compared."""
    members, others = np.flatnonzero(game.member), np.flatnonzero(~game.member)
    psi = np.array(
        [[[(row[i] > row[j]) + 0.5 * (row[i] == row[j]) for j in others] for i in members]
         for row in game.scores]
    )  # fmt: skip
    values, v10, v01 = psi.mean(axis=(1, 2)), psi.mean(axis=2), psi.mean(axis=1)
    k = len(values)
    covariance = np.zeros((k, k))
    for r in range(k):
        for s in range(k):
            of_members = sum((v10[r] - values[r]) * (v10[s] - values[s])) / (len(members) - 1)
            of_others = sum((v01[r] - values[r]) * (v01[s] - values[s])) / (len(others) - 1)
            covariance[r, s] = of_members / len(members) + of_others / len(others)
    return values, covariance


@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(2, 9), st.sampled_from([1, 3, 20]))
def test_delong_is_its_equations(seed: int, n: int, m: int, levels: int) -> None:
    stream = np.random.default_rng(seed)
    found = Scored(stream.integers(0, levels, (3, n + m)).astype(float), np.repeat([True, False], [n, m]))
    for fast, slow in zip(comparison.delong(found), delong_by_pairs(found), strict=True):
        np.testing.assert_allclose(fast, slow, atol=1e-12)


def test_one_attacks_variance_is_that_of_its_own_interval() -> None:
    found = game(np.random.default_rng(0), 40, (0.5,))
    value, covariance = comparison.delong(found)
    single = evaluation_estimates.auc(found.scores[0][found.member], found.scores[0][~found.member])
    scale = value[0] * (1 - value[0])
    half = (math.log(single.high / (1 - single.high)) - math.log(single.low / (1 - single.low))) / 2
    assert half * scale / math.sqrt(covariance[0, 0]) == pytest.approx(1.99, abs=0.02)  # Student's t at ~78


def test_the_difference_is_signed_and_pairs_the_records() -> None:
    found = game(np.random.default_rng(1), 60, (1.0, 0.6), shared=0.95)
    swapped = Scored(found.scores[::-1], found.member)
    there, back = comparison.compare_auc([found]), comparison.compare_auc([swapped])
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.p == pytest.approx(back.p)
    values, covariance = comparison.delong(found)
    assert there.value == pytest.approx(values[0] - values[1])
    unpaired = math.sqrt(covariance[0, 0] + covariance[1, 1]) * 2 * 1.96
    assert there.high - there.low < unpaired / 2


@pytest.mark.parametrize("games", [1, 3])
@pytest.mark.parametrize("shifts", [(0.5, 0.5), (1.0, 0.4)])
def test_the_interval_of_the_auc_difference_holds(games: int, shifts: tuple[float, float]) -> None:
    stream, truth = np.random.default_rng(0), auc_of(shifts[0]) - auc_of(shifts[1])
    found = [comparison.compare_auc([game(stream, 40, shifts) for _ in range(games)]) for _ in range(300)]
    assert np.mean([covers(each, truth) for each in found]) >= 0.93
    if truth == 0:
        assert np.mean([each.p < 0.05 for each in found]) <= 0.07
    else:
        assert np.mean([each.p < 0.05 for each in found]) > 0.5


def test_the_p_value_and_the_interval_agree() -> None:
    stream = np.random.default_rng(0)
    for games in (1, 2, 4):
        for _ in range(30):
            found = comparison.compare_auc([game(stream, 25, (0.8, 0.2)) for _ in range(games)])
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high)


def test_equal_orders_do_not_differ_and_perfect_against_constant_keeps_an_interval() -> None:
    base = game(np.random.default_rng(0), 20, (0.5,)).scores[0]
    member = np.repeat([True, False], 20)
    same = comparison.compare_auc([Scored(np.stack([base, base**3]), member)])
    assert same == Comparison(0, 0, 0, 1)
    extreme = comparison.compare_auc([Scored(np.stack([member * 1.0, np.zeros(40)]), member)])
    assert extreme.value == 0.5 and extreme.low < 0.4 and extreme.high > 0.6 and extreme.p < 0.001


def test_too_few_records_to_compare_is_said() -> None:
    found = Scored(np.zeros((2, 4)), np.array([True, False, False, False]))
    with pytest.raises(ValueError, match="two members"):
        comparison.compare_auc([found])


# TPR at a fixed FPR


def weighted_tpr_by_copies(found: Scored, attack: int, weights: np.ndarray, alpha: float) -> float:
    """The obvious twin: copy each record as often as it was drawn, and ask `evaluation`."""
    scores = np.repeat(found.scores[attack], weights)
    member = np.repeat(found.member, weights)
    return tpr_at_fpr(scores[member], scores[~member], alpha).value


@given(st.integers(0, 10_000), st.sampled_from([0.1, 0.25, 0.5]), st.sampled_from([3, 1000]))
def test_weights_are_copies_of_records(seed: int, alpha: float, levels: int) -> None:
    stream = np.random.default_rng(seed)
    member = np.repeat([True, False], [9, 14])
    found = Scored(stream.integers(0, levels, (1, 23)).astype(float), member)
    weights = np.zeros((5, 23), dtype=int)
    for side in (member, ~member):
        weights[:, side] = stream.multinomial(side.sum(), np.full(side.sum(), 1 / side.sum()), 5)
    fast = comparison._weighted_tpr(found, 0, weights, alpha)
    slow = [weighted_tpr_by_copies(found, 0, row, alpha) for row in weights]
    np.testing.assert_allclose(fast, slow)


def test_the_difference_is_that_of_the_leakage_table() -> None:
    scores, thresholds, truth = tables(games=3, per_side=160)
    leakage = evaluate(scores, thresholds, truth)
    rows = leakage[(leakage["party"] == "all") & (leakage["game"] == "all")].set_index(["attack", "metric"])
    games = comparison.scored(joined(scores, thresholds, truth), [LOSS, ENTROPY])
    for alpha in (0.1, 0.01):  # the mean over games; ranks pooled over games
        found = comparison.compare_tpr(games, alpha, np.random.default_rng(0), draws=50)
        metric = f"tpr_at_fpr_{alpha}"
        expected = rows.loc[("loss", metric), "value"] - rows.loc[("entropy", metric), "value"]
        assert found.value == pytest.approx(expected)
    with pytest.raises(ValueError, match="n=960 non-members are too few"):
        comparison.compare_tpr(games, 0.001, np.random.default_rng(0))


@pytest.mark.parametrize(("games", "n", "alpha"), [(1, 200, 0.1), (6, 60, 0.1), (6, 100, 0.01)])
@pytest.mark.parametrize("shifts", [(1.0, 1.0), (2.0, 1.0)])
def test_the_interval_of_the_tpr_difference_holds(
    games: int, n: int, alpha: float, shifts: tuple[float, float]
) -> None:
    stream = np.random.default_rng(0)
    truth = float(np.subtract(*[norm.sf(norm.isf(alpha) - shift) for shift in shifts]))
    found = [
        comparison.compare_tpr([game(stream, n, shifts) for _ in range(games)], alpha, stream, draws=200)
        for _ in range(100)
    ]
    assert np.mean([covers(each, truth) for each in found]) >= 0.9
    if truth == 0:
        assert np.mean([each.p < 0.05 for each in found]) <= 0.1


def test_the_bootstrap_draws_whole_games() -> None:
    """Games that differ much widen the interval; records drawn over games alone would not see it."""
    stream = np.random.default_rng(0)
    shifts = [(3.0, 0.0), (0.0, 3.0)] * 3
    mixed = [game(stream, 100, pair) for pair in shifts]
    found = comparison.compare_tpr(mixed, 0.1, stream, draws=500)
    alike = [game(stream, 100, (1.5, 1.5)) for _ in shifts]
    other = comparison.compare_tpr(alike, 0.1, stream, draws=500)
    assert found.high - found.low > 3 * (other.high - other.low)


def test_the_same_stream_gives_the_same_interval() -> None:
    games = [game(np.random.default_rng(0), 50, (1.0, 0.0))]
    first, second = (comparison.compare_tpr(games, 0.1, np.random.default_rng(7), 100) for _ in range(2))
    assert first == second
    same = comparison.compare_tpr([Scored(games[0].scores[[0, 0]], games[0].member)], 0.1,
                                  np.random.default_rng(7), 100)  # fmt: skip
    assert same == Comparison(0, 0, 0, 1)


# Tables


def tables(
    games: int = 2, per_side: int = 20, shifts: tuple[float, float] = (1.0, 0.2)
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Two parties, two attacks; which records are members is drawn in every game."""
    stream, n = np.random.default_rng(0), 4 * per_side
    truth = pd.DataFrame(
        {
            "game": np.repeat(np.arange(games), n),
            "candidate": np.tile(np.arange(n), games),
            "record": np.concatenate([stream.permutation(n) for _ in range(games)]),
            "member": np.tile(np.repeat([True, False], n // 2), games),
        }
    )
    truth["party"] = np.where(truth["record"] % 2 == 0, "a", "b")
    parts = [
        truth[["game", "candidate"]].assign(
            observer="participant", attack=name, score=stream.normal(truth["member"] * shift)
        )
        for name, shift in zip(("loss", "entropy"), shifts, strict=True)
    ]
    thresholds = pd.DataFrame(
        [{"game": g, "attack": a, "threshold": 0.5} for g in range(games) for a in ("loss", "entropy")]
    ).assign(observer="participant")
    return pd.concat(parts, ignore_index=True), thresholds, truth


def test_the_comparison_table_compares_all_with_the_reference() -> None:
    found = joined(*tables(games=4, per_side=80))
    table = comparison.compare_table(found, LOSS, np.random.default_rng(0), draws=100)
    assert list(table["metric"]) == ["auc", "tpr_at_fpr_0.01"] and set(table["attack"]) == {"entropy"}
    assert table["value"].iloc[0] > 0.1 and table["low"].iloc[0] > 0 and table["p"].iloc[0] < 0.05
    alone = comparison.compare_table(found, LOSS, np.random.default_rng(0), alpha=None)
    assert list(alone["metric"]) == ["auc"] and alone["value"].iloc[0] == table["value"].iloc[0]
    small = joined(*tables(games=1, per_side=10))
    table = comparison.compare_table(small, LOSS, np.random.default_rng(0))
    assert list(table["metric"]) == ["auc"]


# The strongest of several


def test_the_strongest_attack_of_each_party_is_found() -> None:
    scores, thresholds, truth = tables(games=3, per_side=40)
    # At party b the other attack finds more.
    at_b = scores.merge(truth, on=["game", "candidate"])["party"] == "b"
    swap = {"loss": "entropy", "entropy": "loss"}
    scores["attack"] = scores["attack"].where(~at_b.to_numpy(), scores["attack"].map(swap))
    found = joined(scores, thresholds, truth)
    best = comparison.strongest(found, np.random.default_rng(0)).set_index("party")
    assert best.loc["a", "attack"] == "loss" and best.loc["b", "attack"] == "entropy"
    leakage = evaluate(scores, thresholds, truth)
    for party in ("all", "a", "b"):
        auc = leakage[(leakage["party"] == party) & (leakage["game"] == "all") & (leakage["metric"] == "auc")]
        row = auc[auc["attack"] == best.loc[party, "attack"]].iloc[0]
        assert best.loc[party, "value"] == pytest.approx(auc["value"].max())
        assert best.loc[party, "low"] < row["low"] and row["high"] < best.loc[party, "high"]
        assert best.loc[party, "n_members"] == row["n_members"]


def test_a_party_without_members_has_no_strongest_attack() -> None:
    scores, thresholds, truth = tables(games=1)
    truth.loc[truth["party"] == "b", "member"] = False
    found = joined(scores, thresholds, truth)
    best = comparison.strongest(found, np.random.default_rng(0)).set_index("party")
    assert math.isnan(best.loc["b", "value"]) and not math.isnan(best.loc["a", "value"])


@pytest.mark.parametrize(("games", "shared"), [(1, 0.0), (1, 0.9), (3, 0.5)])
def test_no_leak_is_seen_in_twenty_attacks_that_find_nothing(shared: float, games: int) -> None:
    """The largest of twenty AUCs lies above .5; its interval must cover .5 all the same."""
    stream, attacks = np.random.default_rng(0), tuple(f"a{k:02d}" for k in range(20))
    naive, honest = [], []
    for _ in range(30):
        drawn = [game(stream, 40, (0.0,) * 20, shared) for _ in range(games)]
        error = comparison.simultaneous_error(drawn, stream, draws=2000)
        for errors, found in ((ERROR, naive), (error, honest)):
            estimates = [comparison._auc_over_games(drawn, k, errors) for k in range(len(attacks))]
            best = max(estimates, key=lambda estimate: estimate.value)
            found.append(best.low <= 0.5)
    assert np.mean(honest) >= 0.92
    if shared == 0 and games == 1:  # over few games the interval is wide enough anyhow
        assert np.mean(naive) < 0.85


def test_the_error_lies_between_one_attacks_and_bonferronis() -> None:
    stream = np.random.default_rng(0)
    alike = game(stream, 60, (0.5,) * 10, shared=1.0)
    apart = game(stream, 60, (0.5,) * 10, shared=0.0)
    assert comparison.simultaneous_error([alike], stream) == pytest.approx(0.05, abs=0.003)
    # Independent: Šidák's 1 − .95^(1/10)
    assert comparison.simultaneous_error([apart], stream) == pytest.approx(1 - 0.95**0.1, rel=0.15)
    constant = Scored(np.zeros((4, 10)), np.repeat([True, False], 5))
    assert 0.05 / 4 <= comparison.simultaneous_error([constant], stream) <= 0.05


# Exposure


def test_exposure_has_a_row_for_each_adversary_and_victim() -> None:
    first = evaluate(*tables(shifts=(1.0, 0.2)))
    second = evaluate(*tables(shifts=(0.2, 1.0)))
    matrix = comparison.exposure({"x": first, "y": second})
    assert list(zip(matrix["adversary"], matrix["victim"], matrix["attack"], strict=True)) == [
        ("x", "a", "loss"), ("x", "b", "loss"), ("y", "a", "entropy"), ("y", "b", "entropy"),
    ]  # fmt: skip
    keys = (first["attack"] == "loss") & (first["party"] == "b") & (first["game"] == "all")
    row = first[keys & (first["metric"] == "auc")].iloc[0]
    assert matrix.iloc[1][["value", "low", "high"]].tolist() == row[["value", "low", "high"]].tolist()
    assert set(comparison.exposure({"x": first, "y": second}, "entropy")["attack"]) == {"entropy"}
    with pytest.raises(ValueError, match="no figure of attack 'lira'"):
        comparison.exposure({"x": first}, "lira")


# Records


def records(stream: np.random.Generator, games: int, shift: np.ndarray, sd: Any = 0.05) -> pd.DataFrame:
    """Ranks of each record in each game: noise around its own place, plus its shift where it is a member."""
    n = len(shift)
    member = stream.random((games, n)) < 0.5
    rank = stream.uniform(0.2, 0.5, n) + shift * member + sd * stream.normal(size=(games, n))
    return pd.DataFrame(
        {
            "game": np.repeat(np.arange(games), n), "party": "a", "record": np.tile(np.arange(n), games),
            "member": member.ravel(), "rank": rank.ravel(), "score": rank.ravel(), "threshold": 0.5,
        }
    )  # fmt: skip


def test_vulnerability_of_a_record_by_hand() -> None:
    found = pd.DataFrame(
        {
            "party": "a", "record": [5, 5, 5, 5, 9, 9], "member": [True, True, False, False, True, False],
            "rank": [0.9, 0.7, 0.3, 0.1, 0.5, 0.4], "score": [2.0, 0, 0, 0, 1, 1], "threshold": 1.0,
        }
    )  # fmt: skip
    table = comparison.vulnerability(found).set_index("record")
    assert table.loc[5, "value"] == pytest.approx(0.6) and table.loc[9, "value"] == pytest.approx(0.1)
    assert (table.loc[5, "games_in"], table.loc[9, "games_out"]) == (2, 1)
    variance = (2 * 0.1**2 + 2 * 0.1**2) / 2  # two sides of two games each leave two degrees of freedom
    assert table.loc[9, "error"] == pytest.approx(math.sqrt(2 * variance))
    assert (table.loc[5, "success"], table.loc[9, "success"]) == (0.75, 0.5)
    exact = binomtest(3, 4).proportion_ci(method="exact")
    assert (table.loc[5, "success_low"], table.loc[5, "success_high"]) == pytest.approx(tuple(exact))


def test_one_records_interval_is_students_with_equal_variances() -> None:
    found = records(np.random.default_rng(0), 12, np.array([0.2]))
    sides = [found["rank"][found["member"] == member] for member in (True, False)]
    expected = ttest_ind(*sides).confidence_interval()
    row = comparison.vulnerability(found).iloc[0]
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("games", [3, 10])
def test_the_intervals_of_the_records_hold_on_average(games: int) -> None:
    stream, shift = np.random.default_rng(0), np.linspace(0, 0.4, 300)
    spread = np.repeat([0.03, 0.06], 150)  # records differ in how much their rank varies
    table = comparison.vulnerability(records(stream, games, shift, spread)).dropna()
    covered = (table["low"] <= shift[table["record"]]) & (shift[table["record"]] <= table["high"])
    assert covered.mean() >= 0.93 and len(table) > 150


def test_a_record_always_on_one_side_has_no_value() -> None:
    found = records(np.random.default_rng(0), 3, np.zeros(40))
    found.loc[found["record"] == 7, "member"] = True
    row = comparison.vulnerability(found).set_index("record").loc[7]
    assert math.isnan(row["value"]) and math.isnan(row["low"]) and row["games_out"] == 0
    single = comparison.vulnerability(found[found["game"] == 0])
    assert single["value"].isna().all() and len(single) == 40
