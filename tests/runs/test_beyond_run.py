"""What follows membership, end to end on a small run."""

from __future__ import annotations

import numpy as np
import pytest
from support.runs import finished_run
from support.truth import flip

from attacks.reconstruction.gradient import Effort
from attacks.reconstruction.model import Descent
from fedsim.core.errors import InputError
from fedsim.core.files import read_arrays
from fedsim.core.run_directory import RunDirectory
from fedsim.runs import beyond
from fedsim.runs.sent import Setting

QUICK = Effort(starts=1, dlg_iterations=40, geiping_iterations=60)
ADVERSARY = {"attacks": ["loss"], "observers": ["participant", "server"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return finished_run(tmp_path_factory.mktemp("run"), n=120, adversary=ADVERSARY, games=2)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("private")
    return finished_run(folder, n=120, adversary=ADVERSARY, dp={"all": {"epsilon": 0.25}})


def test_attribute_inference_judges_members_and_held_out_apart(run: RunDirectory) -> None:
    table = beyond.attribute(run, "ward").set_index(["attack", "records", "metric"])
    assert table.loc[("yeom", "members", "accuracy"), "n"] == 2 * 40
    assert table.loc[("imputation", "difference", "leak"), "value"] == 0
    beyond.attribute(run, "age")
    assert set(run.table("attributes")["column"]) == {"ward", "age"}
    with pytest.raises(InputError, match="did you mean 'ward'"):
        beyond.attribute(run, "warp")


def test_under_a_strong_guarantee_nothing_leaks(private: RunDirectory) -> None:
    table = beyond.attribute(private, "ward").set_index(["attack", "records", "metric"])
    for attack in ("yeom", "csmia", "white-box", "update-regression"):
        leak = table.loc[(attack, "difference", "leak")]
        assert leak["low"] <= 0 <= leak["high"], attack
    counts = beyond.count(private).set_index(["what", "score", "estimator", "metric"])
    gain = counts.loc[("lists", "scaled-logit", "mean", "gain over prior")]
    assert gain["low"] <= 0


def test_no_attack_reads_the_truth(run: RunDirectory) -> None:
    """With members and held-out records called each other's names, the leak changes its sign and no more."""
    before = beyond.attribute(run, "ward").set_index(["attack", "records", "metric"])["value"]
    flip(run)
    after = beyond.attribute(run, "ward").set_index(["attack", "records", "metric"])["value"]
    flip(run)
    for attack in ("yeom", "white-box"):
        leaks = [values[attack, "difference", "leak"] for values in (before, after)]
        assert leaks[0] == pytest.approx(-leaks[1])
        assert before[attack, "members", "accuracy"] == after[attack, "held out", "accuracy"]


def test_typical_records_are_kept_and_judged(run: RunDirectory) -> None:
    table = beyond.invert(run, Descent(iterations=50))
    assert set(table["source"]) == {"class mean", "released", "released from mean", "rounds", "answer"}
    records = read_arrays(run.path / "inverted.safetensors")
    assert records["0/released/all"].shape == (2, 5)
    nearer = table[table["metric"] == "nearer"]
    assert ((nearer["low"] <= nearer["value"]) & (nearer["value"] <= nearer["high"])).all()


def test_a_batch_of_one_is_recovered_and_not_under_dp_or_in_a_sum(run: RunDirectory) -> None:
    settings = [Setting(1), Setting(1, 1, "ε = 1"), Setting(4, 1, "participant"), Setting(2, 2, "sparsified")]
    table = beyond.gradient(run, settings, repeats=3, effort=QUICK)
    rows = table[table["metric"] == "rows"].set_index(["method", "protection"])["value"]
    assert rows["analytic", "none"] == 1 and rows["dlg", "none"] == 1
    assert rows["analytic", "ε = 1"] == 0
    assert rows["analytic", "participant"] < 0.5
    again = beyond.gradient(run, settings[:1], repeats=3, effort=QUICK)
    assert again.equals(table[table["protection"] == "none"].reset_index(drop=True))


def test_counts_and_shares_lie_within_their_bounds(run: RunDirectory) -> None:
    table = beyond.count(run, "ward")
    shares = table[table["metric"].str.startswith("share")]
    assert {"ward=A, others", "ward=B, hospital-2"} <= set(shares["what"])
    assert shares["value"].between(0, 1).all() and shares["truth"].between(0, 1).all()
    counts = table[table["metric"].str.startswith("count")]
    assert (counts["truth"] == 40).all() and counts["value"].between(0, 80).all()
    assert np.isfinite(table.loc[table["what"] == "lists", ["value", "low", "high"]]).all(axis=None)


def test_only_plain_sgd_can_be_simulated(run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> None:
    training = {"epochs": 1, "batch": 8, "optimizer": "adam", "lr": 0.01}
    other = finished_run(tmp_path_factory.mktemp("adam"), adversary={"attacks": ["loss"]}, training=training)
    with pytest.raises(InputError, match="plain SGD"):
        beyond.gradient(other)
    with pytest.raises(InputError, match="no model of round 8"):
        beyond.gradient(run, round=9)
