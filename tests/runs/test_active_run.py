"""The malicious client as it acts inside the federation: what it sends, and what that costs and shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import final_sha, finished_run, prepared_run, scenario

from attacks import deviation
from attacks.shadows import suite
from attacks.shadows.members import Membership
from attacks.shadows.plan import Ascent
from attacks.shadows.simulate import ShadowRequest, Shadows
from attacks.views import observations
from attacks.views.participant import ParticipantView
from attacks.views.settings import Weights
from fedsim.core import files, rng
from fedsim.core.data.records import Records
from fedsim.core.data.store import TARGETS, read_pool
from fedsim.core.errors import InputError
from fedsim.core.models import weights
from fedsim.core.run_directory import RunDirectory
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.sgd import train as train_locally
from fedsim.core.training.steps import LocalTraining
from fedsim.runs import attack, play, prepare
from fedsim.server import replies, server_app
from fedsim.server.federation import Federation

ASCENT = {"active": "gradient-ascent", "ascent_every": 2}
POISON = {"active": "poisoning", "poison_copies": 2, "targets": 5}
SEPARATION = {"active": "separation", "least_cosine": 0.5, "most_loss": 0.05}
BOTH = pytest.mark.parametrize("acts", [ASCENT, POISON, SEPARATION], ids=["ascent", "poison", "separation"])


def adversary(acts: dict[str, object], *attacks: str) -> dict[str, object]:
    return {**acts, "candidates": 12, "shadows": 16, "attacks": list(attacks or ["loss"])}


def view_of(run: RunDirectory) -> ParticipantView:
    return observations.load_view(run.observations(0))


def trained(run: RunDirectory, sent: Weights, records: Records, round: int) -> Weights:
    """What hospital-1 answers in a round if it trains on ``records`` as the protocol asks."""
    view, settings = view_of(run), run.scenario
    module = view.module(sent)
    order = rng.torch_generator(settings.seed, "training", game=0, party="hospital-1", round=round)
    train_locally(module, records, LocalTraining(settings.training), PartyDraws(order, None))
    return weights.weights_of(module)


def length_of(before: Weights, after: Weights) -> float:
    return float(np.sqrt(sum(np.sum((after[name].astype(float) - before[name]) ** 2) for name in before)))


# What it holds.


@BOTH
def test_it_holds_the_targets_before_round_1_and_no_truth(tmp_path: Path, acts: dict) -> None:
    run = prepared_run(tmp_path, adversary=adversary(acts))
    folder = run.party_folder(0, 0, "hospital-1")
    arrays = files.read_arrays(folder / "targets.safetensors")
    assert set(arrays) == {"features", "labels", "party"}
    targets, candidates = read_pool(folder, TARGETS), run.read_candidates(0)
    n = acts.get("targets", 12)
    assert len(targets) == n
    np.testing.assert_array_equal(targets.records.features, candidates.records.features[:n])
    for k in (1, 2):
        assert not (run.party_folder(0, k, f"hospital-{k + 1}") / "targets.safetensors").exists()


def test_an_honest_but_curious_adversary_holds_and_does_nothing_more(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary={"attacks": ["loss"]})
    assert not (run.party_folder(0, 0, "hospital-1") / "targets.safetensors").exists()
    view = view_of(run)
    assert view.poison is None and not view.ascents
    for t in (1, 2, 3):
        expected = trained(run, view.models[t - 1], view.own_train, t)
        for name, array in view.own_replies[t].items():
            np.testing.assert_array_equal(array, expected[name])


def test_few_candidates_are_acted_on_by_default(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, n=150, adversary={"active": "poisoning", "attacks": ["loss"]})
    assert len(run.read_candidates(0)) == run.scenario.adversary.candidates == deviation.FEW


def test_an_ascent_without_a_round_to_watch_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    settings = scenario(tmp_path, adversary={"active": "gradient-ascent"})
    with pytest.raises(InputError, match=r"adversary.ascent_every = 5: federation.rounds = 3 leaves"):
        prepare.check(settings, None)


# What it sends.


def test_the_poison_is_in_its_training_set_in_its_weight_and_in_its_notes(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary=adversary(POISON))
    view, candidates = view_of(run), run.read_candidates(0).records
    assert view.poison is not None and len(view.poison) == 10
    np.testing.assert_array_equal(view.poison.features, np.repeat(candidates.features[:5], 2, axis=0))
    assert (view.poison.labels != np.repeat(candidates.labels[:5], 2)).all()
    everything = Records.concatenate([view.own_train, view.poison])
    for t in (1, 3):
        expected = trained(run, view.models[t - 1], everything, t)
        for name, array in view.own_replies[t].items():
            np.testing.assert_array_equal(array, expected[name])
    assert view.settings.sizes == (20, 10, 10), "its poison counts among its records"
    told = files.read_json(run.party_folder(0, 2, "hospital-3") / "party.json")["info"]["sizes"]
    assert tuple(told) == view.settings.sizes
    assert len(view.own_train) == 10, "its thresholds rest on its honest records"


def test_its_shadows_train_on_the_same_poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run(tmp_path, adversary=adversary(POISON))
    view, candidates = view_of(run), observations.load_candidates(run.observations(0))
    asked: list[tuple[Records, Membership]] = []
    train_shadows = suite.train_shadows

    def spy(request: ShadowRequest, resources: suite.Laboratory) -> Shadows:
        asked.append((request.pool, request.membership))
        assert request.plan.sizes.tolist() == [20, 10, 10]
        return train_shadows(request, resources)

    monkeypatch.setattr(suite, "train_shadows", spy)
    matrix = suite.simulate(view, candidates, run.scenario.seed)
    [(pool, membership)] = asked
    assert view.poison is not None
    everything = Records.concatenate([view.own_train, view.poison])
    for members in membership.members[:, 0]:
        mine = pool.take(members[members >= 0])
        np.testing.assert_array_equal(mine.features, everything.features)
        np.testing.assert_array_equal(mine.labels, everything.labels)
    assert matrix.shadows.shape[2] == len(candidates) + len(view.auxiliary or [])
    assert set(np.unique(matrix.inside)) == {-1, 1, 2}, "a copy does not make its target a member"


def test_poison_in_target_and_shadows_alike(tmp_path: Path) -> None:
    """The poisoned target looks like one more of the poisoned shadows, and unlike an honest one."""
    heavy = {"active": "poisoning", "poison_copies": 8, "candidates": 10, "shadows": 64, "attacks": ["lira"]}
    run = finished_run(tmp_path, n=150, adversary=heavy, federation={"rounds": 6})
    view, candidates = view_of(run), observations.load_candidates(run.observations(0))
    matrix = suite.simulate(view, candidates, run.scenario.seed)
    phi, shadows = matrix.target[-1, :10], matrix.shadows[:, -1, :10]
    assert np.abs((phi - shadows.mean(axis=0)) / shadows.std(axis=0)).mean() < 2
    honest = finished_run(tmp_path, n=150, out="b", adversary={"attacks": ["loss"]}, federation={"rounds": 6})
    answers = view_of(honest).logits(6, candidates)
    without = suite.outputs.scaled_logit(answers, candidates.labels)
    assert without.mean() > shadows.mean() + 3 * shadows.mean(axis=1).std()


def test_an_ascent_in_target_and_shadows_alike(tmp_path: Path) -> None:
    """The raised target looks like one more of its shadows, and unlike shadows in which nobody ascends."""
    heavy = {"ascent_every": 2, "ascent_rate": 10.0, "ascent_limit": 40.0, "candidates": 10, "shadows": 64}
    settings = {"active": "gradient-ascent", "attacks": ["lira"], **heavy}
    run = finished_run(tmp_path, n=150, adversary=settings, federation={"rounds": 8})
    view, candidates = view_of(run), observations.load_candidates(run.observations(0))
    own = [side.take(np.arange(5)) for side in (view.own_train, view.own_heldout)]
    pushed = Records.concatenate([candidates, *own])
    assert view.raised is not None
    np.testing.assert_array_equal(view.raised.features, pushed.features)
    plan = suite.federation_plan(view, 8)
    assert plan.ascent == Ascent(view.settings.own, (2, 4, 6), 10.0, 40.0)
    assert suite.observed_rounds(view) == [2, 4, 6, 8], "right after the ascents, and at the end"
    matrix = suite.simulate(view, candidates, run.scenario.seed)
    honest = suite.simulate(replace(view, raised=None), candidates, run.scenario.seed)
    phi = matrix.target[0, :10]
    away = [
        np.abs((phi - shadows.mean(axis=0)) / shadows.std(axis=0)).mean()
        for shadows in (matrix.shadows[:, 0, :10], honest.shadows[:, 0, :10])
    ]
    assert away[0] < 2 and away[1] > 5


def test_an_ascent_is_added_to_its_honest_answer_in_the_chosen_rounds(tmp_path: Path) -> None:
    acts = {**ASCENT, "ascent_rate": 0.01, "ascent_limit": 100.0}
    run = finished_run(tmp_path, adversary=adversary(acts), federation={"rounds": 6})
    view = view_of(run)
    assert list(view.ascents) == [2, 4], "the last round is one of watching"
    targets = run.read_candidates(0).records
    pushed = Records.concatenate(
        [targets, view.own_train.take(np.arange(6)), view.own_heldout.take(np.arange(6))]
    )
    for t in range(1, 7):
        honest = trained(run, view.models[t - 1], view.own_train, t)
        step = deviation.ascent(view.module(honest), pushed, 0.01)
        for name, array in view.own_replies[t].items():
            if t in view.ascents:
                np.testing.assert_allclose(view.ascents[t][name], step[name], rtol=1e-6, atol=1e-8)
                np.testing.assert_array_equal(array, honest[name] + view.ascents[t][name])
            else:
                np.testing.assert_array_equal(array, honest[name])


def test_an_ascent_is_no_longer_than_the_limit_times_its_honest_update(tmp_path: Path) -> None:
    acts = {**ASCENT, "ascent_rate": 1e6, "ascent_limit": 0.5}
    run = finished_run(tmp_path, adversary=adversary(acts))
    view = view_of(run)
    honest = trained(run, view.models[1], view.own_train, 2)
    assert deviation.length(view.ascents[2]) == pytest.approx(
        0.5 * length_of(view.models[1], honest), rel=1e-4
    )
    assert (run.table("rounds")["status"] == "ok").all(), "no answer was refused for what it held"


def test_a_separating_answer_stays_within_its_budget(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary=adversary(SEPARATION))
    view, moved = view_of(run), 0
    assert list(view.ascents) == [1, 2, 3]
    for t in (1, 2, 3):
        honest = trained(run, view.models[t - 1], view.own_train, t)
        learnt = {name: honest[name] - view.models[t - 1][name] for name in honest}
        sent = {name: view.own_replies[t][name] - view.models[t - 1][name] for name in honest}
        step = view.ascents[t]
        assert deviation.length(step) <= deviation.length(learnt) * (1 + 1e-5)
        assert deviation.cosine(sent, learnt) >= 0.5 - 1e-6
        losses = [deviation.loss_after(view.module(honest), s, view.own_heldout) for s in ({}, step)]
        assert losses[1] <= losses[0] + 0.05 + 1e-6
        for name in honest:
            np.testing.assert_allclose(
                view.own_replies[t][name], honest[name] + step[name], rtol=1e-6, atol=1e-7
            )
        moved += deviation.length(step) > 0
    assert moved, "a budget that allows no step at all would test nothing"


def test_no_shadow_follows_a_separating_adversary(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot with adversary\.active = 'separation'"):
        prepared_run(tmp_path, adversary=adversary(SEPARATION, "lira"))
    everything = scenario(tmp_path, adversary={"active": "separation"})
    notices = prepare.check(everything, None).encoded.notices
    assert any("shadows do not follow adversary.active = 'separation'" in notice for notice in notices)


# Deterministic, resumable, repeatable.


@BOTH
@pytest.mark.parametrize("dp", [{}, {"all": {"noise_multiplier": 1.0}}], ids=["open", "dp"])
def test_workers_do_not_change_a_bit(tmp_path: Path, acts: dict, dp: dict) -> None:
    second = {"gradient-ascent": "gradient-ascent", "poisoning": "lira", "separation": "round-decoding"}
    attacks = ["loss", second[acts["active"]]]
    alone = finished_run(tmp_path, out="a", adversary=adversary(acts, *attacks), dp=dp)
    run = prepared_run(tmp_path, out="b", adversary=adversary(acts, *attacks), dp=dp)
    play.federate(run, workers=2)
    assert final_sha(run) == final_sha(alone)
    pd.testing.assert_frame_equal(run.table("scores"), alone.table("scores"))
    assert list(run.table("scores")["attack"].unique()) == attacks


@BOTH
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    tmp_path: Path, acts: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"adversary": adversary(acts), "federation": {"rounds": 6}}
    whole = finished_run(tmp_path, out="whole", **settings)
    run = prepared_run(tmp_path, out="stopped", **settings)
    end_round = server_app._end_round

    def stop(federation: Federation, round: int) -> None:
        if round == 4:  # after the answers of round 4 were noted, before they count
            raise KeyboardInterrupt
        end_round(federation, round)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(server_app, "_end_round", stop)
        play.federate(run)
    play.federate(RunDirectory.open(run.path))
    assert final_sha(run) == final_sha(whole)
    pd.testing.assert_frame_equal(run.table("scores"), whole.table("scores"))
    before = run.table("scores")
    attack.attack_again(run)
    pd.testing.assert_frame_equal(run.table("scores"), before)


# What a server could notice.


@BOTH
def test_the_norm_and_the_cosine_of_every_update_are_noted(tmp_path: Path, acts: dict) -> None:
    run = finished_run(tmp_path, adversary=adversary(acts))
    view, rounds = view_of(run), run.table("rounds")
    trained_in = rounds[(rounds["round"] > 0) & (rounds["party"] != "all")]
    assert (trained_in["update_norm"] > 0).all() and trained_in["update_cosine"].between(-1, 1).all()
    assert rounds[rounds["party"] == "all"]["update_norm"].isna().all()
    weight = np.array(view.settings.sizes, float)[0] / sum(view.settings.sizes)
    for t in (1, 2, 3):
        row = trained_in[(trained_in["round"] == t) & (trained_in["party"] == "hospital-1")].iloc[0]
        before = view.models[t - 1]
        assert row["update_norm"] == pytest.approx(length_of(before, view.own_replies[t]), rel=1e-6)
        mine = np.concatenate([(view.own_replies[t][k].astype(float) - before[k]).ravel() for k in before])
        whole = np.concatenate([(view.models[t][k].astype(float) - before[k]).ravel() for k in before])
        others = whole - weight * mine  # the others are of one size: their mean, but for a factor
        cosine = mine @ others / np.linalg.norm(mine) / np.linalg.norm(others)
        assert row["update_cosine"] == pytest.approx(cosine, abs=1e-4)


def test_a_long_ascent_shows_in_the_norm_of_its_rounds_alone(tmp_path: Path) -> None:
    acts = {**ASCENT, "ascent_rate": 1e6, "ascent_limit": 10.0}
    run = finished_run(tmp_path, adversary=adversary(acts), federation={"rounds": 5})
    norms = run.table("rounds").set_index(["party", "round"])["update_norm"]
    others = (norms["hospital-2"] + norms["hospital-3"]) / 2
    ratio = norms["hospital-1"] / others
    assert (ratio[[2, 4]] > 5).all() and ratio[1] < 2


def test_a_party_alone_and_an_update_of_nothing_have_no_direction() -> None:
    zero, unit = np.zeros(3), np.eye(3)[0]
    assert np.isnan(replies._cosine(unit, zero)) and np.isnan(replies._cosine(zero, unit))


@given(st.integers(0, 2**32 - 1))
def test_the_cosine_is_that_of_the_angle(seed: int) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, 5))
    cosine = replies._cosine(a, b)
    assert cosine == pytest.approx(replies._cosine(b, 3 * a), abs=1e-12)
    along = a / np.linalg.norm(a)
    rest = b - (b @ along) * along  # b² = (b cos)² + rest²
    assert (np.linalg.norm(b) * cosine) ** 2 + rest @ rest == pytest.approx(b @ b)


def test_what_is_assumed_is_printed_with_the_results(tmp_path: Path) -> None:
    from rich.console import Console

    from fedsim.terminal import run_tables

    run = finished_run(tmp_path, adversary=adversary(POISON))
    console = Console(record=True, width=200)
    run_tables.show(run, console)
    assert "trains on 2 mislabelled copies of each" in " ".join(console.export_text().split())
