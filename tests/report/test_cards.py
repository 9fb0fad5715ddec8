"""Every figure of the first screen is one of a row of the run's Parquet files, or follows from such rows."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta
from support.runs import finished_run
from test_report import Page

from fedsim import report
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation import guarantees
from fedsim.evaluation.confidence import EDGES
from fedsim.evaluation.truth import read_truth
from fedsim.report import cards, findings, verdicts
from fedsim.report.page import number
from fedsim.runs import play, twins

ATTACKS = {"attacks": ["loss", "gap", "loss-series"]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, RunDirectory]:
    """A run without DP and its twin at ε = 2."""
    run = finished_run(tmp_path_factory.mktemp("pair"), n=150, adversary=ATTACKS)
    twin = twins.prepared(run, "all=2", None)
    play.federate(twin)
    return run, twin


def table(run: RunDirectory, name: str) -> pd.DataFrame:
    """A run's table, read without fedsim."""
    return pd.read_parquet(run.path / f"{name}.parquet")


def auc_of(run: RunDirectory, attack: str) -> pd.Series:
    rows = table(run, "leakage").query("metric == 'auc' and party == 'all' and game == 'all'")
    return rows[(rows["attack"] == attack) & (rows["observer"] == "participant")].iloc[0]


def test_a_twin_differs_by_its_dp_alone(pair: tuple[RunDirectory, RunDirectory]) -> None:
    run, twin = pair
    assert run.manifest["twins"] == [twin.path.name] == ["run-dp-all-2"]
    assert read_truth(run.path).equals(read_truth(twin.path))
    first, second = (run.read_model(0, 0) for run in pair)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    settings = [one.scenario.model_dump(exclude={"dp"}) for one in pair]
    for one in settings:
        one["adversary"].pop("shadows")
    assert settings[0] == settings[1]


def test_each_switch_is_of_its_runs_own_tables(pair: tuple[RunDirectory, RunDirectory]) -> None:
    rows = cards.switches(pair[0], [pair[1]], 0.1)
    assert [row.label for row in rows] == ["off", "ε = 2"]
    page = Page(report.write(pair[0]).read_text(encoding="utf-8"))
    for row, run in zip(rows, pair, strict=True):
        auc = auc_of(run, row.leak.attack)
        overall = table(run, "leakage").query("metric == 'auc' and party == 'all' and game == 'all'")
        assert auc["value"] == overall["value"].max() == pytest.approx(row.leak.value)
        assert row.leak.low <= auc["low"] and row.leak.high >= auc["high"], "allows for having chosen it"
        assert f"AUC {number(row.leak.value, 2)} {number(row.leak.low, 2)} to" in page.text
        rounds = table(run, "rounds")
        last = rounds[(rounds["party"] == "all") & (rounds["round"] == 3)].iloc[0]
        hits, n = last["accuracy"] * last["n_heldout"], last["n_heldout"]
        assert (row.accuracy.value, row.loss) == (last["accuracy"], last["loss"])
        assert row.accuracy.low == pytest.approx(beta.ppf(0.025, hits, n - hits + 1))
        assert row.accuracy.high == pytest.approx(beta.ppf(0.975, hits + 1, n - hits))
        assert f"accuracy {number(last['accuracy'], 2)}" in page.text
        assert f"loss {number(last['loss'], 2)}" in page.text
    spent = table(pair[1], "rounds").query("party != 'all' and party != 'hospital-1'")["epsilon"].max()
    assert (rows[1].epsilon, rows[1].delta) == (spent, 1e-5)
    assert rows[1].bound == guarantees.auc_bound(spent, 1e-5) and rows[0].bound is None
    assert "Both are true: ε = 2" in page.text and "run-dp-all-2" in page.text


def test_accusations_follow_from_the_rates_of_the_table(pair: tuple[RunDirectory, RunDirectory]) -> None:
    found = findings.gather(pair[0])
    (rung,) = cards.ladder(found, 0.1, "patient")
    rows = table(pair[0], "leakage").query("party == 'all' and game == 'all'")
    rates = rows[rows["attack"] == rung.leak.attack].set_index("metric")
    tpr, fpr = rates.loc["tpr_at_threshold"], rates.loc["fpr"]
    low = 0.1 * tpr["low"] / (0.1 * tpr["low"] + 0.9 * fpr["high"])
    value = 0.1 * tpr["value"] / (0.1 * tpr["value"] + 0.9 * fpr["value"])
    expected = (
        f"of 100 patients it names, {round(100 * value)} are" if low > 0.1 else "not shown to be better"
    )
    assert expected in rung.named
    assert rung.verdict == verdicts.verdict(found.overall)


def test_the_ladder_is_its_own_table(pair: tuple[RunDirectory, RunDirectory]) -> None:
    run = pair[0]
    found = findings.gather(run)
    rows = [("all", 0.9, 0.8, 0.95), ("half", 0.6, 0.45, 0.7)]
    columns = ["attack", "attacks", "value", "low", "high", "n_members", "n_nonmembers"]
    ladder = pd.DataFrame(
        [(world, "loss", 3, value, low, high, 50, 50) for world, value, low, high in rows],
        columns=["world", *columns],
    )
    run.write_table("ladder", ladder)
    try:
        first, second = cards.ladder(found, 0.1, "patient")
    finally:
        (run.path / "ladder.parquet").unlink()
    assert (first.verdict.words, second.verdict.words) == ("severe leak", "no leak shown")
    assert (first.leak.value, second.leak.high) == (0.9, 0.7)
    assert "every record" in first.owns and "half" in second.owns


def test_the_picture_is_the_models_own(pair: tuple[RunDirectory, RunDirectory]) -> None:
    """The histogram against the scores of an attack: 'loss' is −log p_y, φ follows from it."""
    run = pair[0]
    scores = table(run, "scores").query("attack == 'loss'").sort_values("candidate")["score"].to_numpy()
    phi = -np.log(np.expm1(-scores))
    member = read_truth(run.path).sort_values("candidate")["member"].to_numpy(bool)
    last = table(run, "confidence").query("round == 3")
    inside = np.histogram(np.clip(phi[member], EDGES[0], EDGES[-1] - 1e-9), EDGES)[0]
    assert last["members"].tolist() == inside.tolist()
    assert last["nonmembers"].sum() == (~member).sum()
    by_round = table(run, "confidence_rounds").set_index("round")
    assert by_round.loc[3, "auc"] == pytest.approx(auc_of(run, "loss")["value"])
    drawn = json.loads(
        re.findall(r'type="application/json">(.*?)</script>', report.write(run).read_text(encoding="utf-8"))[
            0
        ]
    )
    assert [frame["round"] for frame in drawn["gap"]["frames"]] == by_round.index.tolist() == [0, 1, 2, 3]
    for frame in drawn["gap"]["frames"]:
        for name in ("tpr", "fpr", "auc", "threshold"):
            assert frame[name] == pytest.approx(by_round.loc[frame["round"], name], abs=1e-5)
        assert sum(frame["members"]) == pytest.approx(1, abs=1e-3)
    leak = next(trace for trace in drawn["by-round"]["data"] if trace.get("name", "").startswith("leakage"))
    assert leak["y"] == pytest.approx(by_round["auc"].tolist(), abs=1e-5)


def test_the_surest_records_are_those_of_the_highest_scores(pair: tuple[RunDirectory, RunDirectory]) -> None:
    run = pair[0]
    overall = findings.gather(run).overall
    assert overall is not None
    rows = cards.surest(run, overall, most=5)
    scores = table(run, "scores")
    scores = scores[scores["attack"] == overall.attack].merge(read_truth(run.path), on=["game", "candidate"])
    cut = scores["score"].nlargest(5).min()
    assert set(scores[scores["score"] > cut]["record"]) <= {row["record"] for row in rows}
    truth = scores.set_index("record")["member"]
    assert all(row["member"] == truth[row["record"]] for row in rows)


def test_one_sentence_reconciles_promise_and_measurement(pair: tuple[RunDirectory, RunDirectory]) -> None:
    off, private = cards.switches(pair[0], [pair[1]], 0.1)
    assert cards.reconciled([off]) == ""
    said = cards.reconciled([off, private])
    assert f"allows no attack an AUC above {private.bound:.3f}" in said
    assert f"found an AUC of {private.leak.value:.2f}" in said
    vacuous = cards.Switch(**{**private.__dict__, "bound": 0.99999, "label": "ε = 8"})
    assert "by itself rules out hardly any attack" in cards.reconciled([off, vacuous])
    assert not math.isnan(private.leak.value)


def test_attacks_by_round_are_drawn_from_their_table(pair: tuple[RunDirectory, RunDirectory]) -> None:
    run = pair[0]
    drawn = json.loads(
        re.findall(r'type="application/json">(.*?)</script>', report.write(run).read_text(encoding="utf-8"))[
            0
        ]
    )
    rows = table(run, "leakage_by_round").query("metric == 'auc' and game == 'all'")
    rows = rows[rows["observer"] == "participant"]
    assert set(rows["attack"]) == {"loss"}
    for attack, of_attack in rows.groupby("attack"):
        named = [
            trace for trace in drawn["by-round"]["data"] if f"AUC of {attack} on" in trace.get("name", "")
        ]
        assert len(named) == 1
        assert named[0]["y"] == pytest.approx(of_attack.sort_values("round")["value"].tolist(), abs=1e-5)
