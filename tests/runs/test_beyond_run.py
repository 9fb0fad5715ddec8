"""What follows membership, end to end on a small run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import finished_run
from support.truth import flip

from attacks.reconstruction import gradient
from attacks.reconstruction.gradient import Effort
from attacks.reconstruction.model import Descent
from fedsim.core import files
from fedsim.core.errors import InputError
from fedsim.core.files import read_arrays
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.training import ModelSettings
from fedsim.runs import beyond, integrity, persons
from fedsim.runs.sent import Setting, default_settings, sent, settings_of, training_records

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
    asked = persons.persons(private, unknown=["ward"], points=2)
    for _, row in asked[asked["metric"] == "auc"].iterrows():
        assert row["low"] <= 0.5 <= row["high"], (row["asked"], row["knows"], row["score"])
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


def test_of_members_drawn_by_lot_nothing_is_found(run: RunDirectory) -> None:
    """The same attacks on the same federation, judged by a membership that has nothing to do with it."""
    path = run.path / "truth.parquet"
    truth = files.read_table(path)
    lot = np.random.default_rng(8).permutation(truth["member"].to_numpy())
    files.write_table(path, truth.assign(member=lot))
    integrity.note(run, path.name)
    attributes = beyond.attribute(run, "ward").set_index(["attack", "records", "metric"])
    asked = persons.persons(run, points=1)
    files.write_table(path, truth)
    integrity.note(run, path.name)
    for attack in ("yeom", "white-box", "update-regression"):
        leak = attributes.loc[(attack, "difference", "leak")]
        assert leak["low"] <= 0 <= leak["high"], attack
    auc = asked[(asked["metric"] == "auc") & (asked["score"] == "update-regression")]
    assert ((auc["low"] <= 0.5) & (auc["high"] >= 0.5)).all()


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


def test_updates_of_momentum_and_adam_in_minibatches_are_asked_for(run: RunDirectory) -> None:
    settings = [
        Setting(1, optimizer="momentum"), Setting(2, minibatches=2, optimizer="sgd"),
        Setting(1, optimizer="adam"),
    ]  # fmt: skip
    table = beyond.gradient(run, settings, repeats=3, effort=QUICK)
    rows = table[table["metric"] == "rows"].set_index(["method", "optimizer"])
    assert rows["value"]["dlg", "momentum"] == 1  # its first step is plain
    assert rows["n"]["dlg", "sgd"] == 12 and rows["minibatches"]["dlg", "sgd"] == 2
    assert rows["value"]["analytic", "adam"] < 1
    with pytest.raises(InputError, match="--optimizer adan: no such optimizer; did you mean 'adam'"):
        settings_of([1], [1], [], [], ["adan"])


def test_a_round_that_was_not_seen_is_refused(run: RunDirectory) -> None:
    with pytest.raises(InputError, match="no model of round 8"):
        beyond.gradient(run, round=9)


PARTY_OWN = {"all": {"l1": 1e-3, "l2": 1e-2, "label_smoothing": 0.1, "epochs": 3}}


def test_what_a_party_sends_is_what_the_server_simulates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FedProx's pull and the party's own penalties included: on the true rows they are the same."""
    federation = {"rounds": 1, "strategy": "fedprox", "options": {"proximal_mu": 0.5}}
    run = finished_run(tmp_path, adversary=ADVERSARY, federation=federation, defences=PARTY_OWN)
    played = beyond.games_of(run)[0]
    module, trains = played.view.module(played.view.models[0]), training_records(run, 0)
    batch, update, local = sent(run, module, Setting(4, 3, "own"), trains, "x", np.random.default_rng(0))
    simulated = gradient._simulation(module, local, batch.shape)
    rows = simulated(torch.tensor(batch.features), torch.tensor(batch.labels))
    for name, array in update.items():
        np.testing.assert_allclose(-rows[name].detach().numpy(), array, atol=1e-6)
    # Of other optimizers, too, minibatch by minibatch where it is known which records are in each.
    for setting in (Setting(4, 3, "own", optimizer="momentum"), Setting(4, 2, "own", optimizer="adam")):
        batch, update, local = sent(run, module, setting, trains, "x", np.random.default_rng(0))
        monkeypatch.setattr(gradient, "SMOOTH", 0.0)
        simulated = gradient._simulation(module, local, batch.shape)
        rows = simulated(torch.tensor(batch.features), torch.tensor(batch.labels))
        for name, array in update.items():
            np.testing.assert_allclose(-rows[name].detach().numpy(), array, atol=2e-6)
    plain = sent(run, module, Setting(4, 3), trains, "x", np.random.default_rng(0))[1]
    assert any(np.abs(update[name] - plain[name]).max() > 1e-4 for name in plain)


def test_a_party_that_clips_its_update_sends_a_clipped_one(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary=ADVERSARY, defences={"all": {"clip_update": 0.01}})
    played = beyond.games_of(run)[0]
    module, trains = played.view.module(played.view.models[0]), training_records(run, 0)
    _, update, _ = sent(run, module, Setting(4, 1, "own"), trains, "x", np.random.default_rng(0))
    assert sum(np.sum(array**2) for array in update.values()) ** 0.5 == pytest.approx(0.01, rel=1e-3)
    assert "own" in {setting.protection for setting in default_settings(run)}


def test_letters_have_no_columns_to_ask_about(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = run.scenario.model_copy(update={"model": ModelSettings(name="gpt")})
    monkeypatch.setattr(RunDirectory, "scenario", property(lambda _: scenario))
    with pytest.raises(InputError, match="letters"):
        beyond.games_of(run)
