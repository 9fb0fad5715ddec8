"""Scores joined with the truth: the leakage table, its ROC and its precision, from tables and federations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from support.attacks import VIEW_ATTACKS, findings

from fedsim.evaluation import estimates
from fedsim.evaluation.leakage import Sample, evaluate, joined, measure, ppv_table, roc, roc_table

METRICS = [
    "auc", "balanced_accuracy", "fpr", "tpr_at_threshold", "advantage", "advantage_max",
    "tpr_at_fpr_0.1", "tpr_at_fpr_0.01", "tpr_at_fpr_0.001",
]  # fmt: skip


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
    scores = pd.concat(
        [truth[["game", "candidate"]].assign(observer="participant", attack=attack) for attack in attacks]
    )
    scores["score"] = stream.normal(np.tile(truth["member"], 2) * shift)
    thresholds = pd.DataFrame(
        [{"game": game, "attack": attack, "threshold": 0.5} for game in range(games) for attack in attacks]
    ).assign(observer="participant")
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
        "observer", "attack", "world", "party", "game", "metric", "value", "low", "high", "n_members",
        "n_nonmembers", "note",
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
    assert pooled["note"] == "ranks pooled over 4 games; no lower bound at n=120"
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
    found = findings(view, federation.candidates, names, seed=0)
    candidate = np.arange(len(federation.candidates))
    key = {"game": 0, "observer": "participant"}
    scores = [
        pd.DataFrame({**key, "attack": name, "candidate": candidate, "score": finding.scores})
        for name, finding in found.items()
    ]
    thresholds = [{**key, "attack": name, "threshold": finding.threshold} for name, finding in found.items()]
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
    leakage = leakage_of(untrained, overfitted, VIEW_ATTACKS)
    for metric in ("auc", "balanced_accuracy"):
        found = leakage[(leakage["metric"] == metric) & (leakage["party"] == "all")]
        assert (found["low"] < 0.5).all() and (found["high"] > 0.5).all()


def test_measure_uses_the_adversarys_own_threshold() -> None:
    sample = Sample("0", 2.0, np.array([1.0, 2, 3, 4]), np.array([0.0, 1, 2]), np.ones(4), np.ones(3))
    found = measure(sample)
    assert (found["tpr_at_threshold"].value, found["fpr"].value) == (3 / 4, 1 / 3)
    assert found["balanced_accuracy"].value == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_advantage_is_tpr_minus_fpr_in_each_game_and_over_games() -> None:
    leakage = evaluate(*tables(games=3, shift=-3.0))
    for game in ("0", "all"):
        at = {"attack": "loss", "party": "a", "game": game}
        tpr, fpr = (cell(leakage, metric=name, **at)["value"] for name in ("tpr_at_threshold", "fpr"))
        found = cell(leakage, metric="advantage", **at)
        assert found["value"] == pytest.approx(tpr - fpr)
        assert found["low"] <= found["value"] <= found["high"] and found["low"] < 0


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


# ROC


def test_roc_table_meets_the_leakage_table_and_scikit_learns_curve() -> None:
    scores, thresholds, truth = tables(games=1, per_side=50)
    table = roc_table(joined(scores, thresholds, truth), points=3)
    assert list(table["fpr"].unique()) == pytest.approx([0.01, 0.1, 1])
    leakage = evaluate(scores, thresholds, truth)
    for alpha in (0.1, 0.01):
        keys = {"attack": "loss", "party": "all", "game": "all", "metric": f"tpr_at_fpr_{alpha}"}
        point = table[(table["attack"] == "loss") & np.isclose(table["fpr"], alpha)].iloc[0]
        assert point["tpr"] == cell(leakage, **keys)["value"] and point["low"] == cell(leakage, **keys)["low"]
    fine = roc_table(joined(scores, thresholds, truth), points=40)
    found = scores[scores["attack"] == "entropy"].merge(truth, on=["game", "candidate"])
    fpr, tpr, _ = roc(found["score"].to_numpy(), found["member"].to_numpy())
    for point in fine[fine["attack"] == "entropy"].itertuples():
        # Between the curve's points next to it: m = 100 non-members, a place of m α + 1/3, about.
        assert tpr[fpr <= point.fpr - 0.01].max(initial=0) <= point.tpr <= tpr[fpr <= point.fpr + 0.02].max()
    assert (fine.groupby("attack")["tpr"].diff().dropna() >= 0).all()


def test_roc_table_pools_games_that_cannot_resolve_alone() -> None:
    table = roc_table(joined(*tables(games=3, per_side=10)), points=10)
    assert table["fpr"].min() == pytest.approx(1 / 60)
    pooled = table["note"].str.startswith("ranks pooled over 3 games")
    assert pooled[table["fpr"] < 0.049].all() and not pooled[table["fpr"] > 0.051].any()
    assert (table["low"] <= table["tpr"]).all() and (table["tpr"] <= table["high"]).all()
