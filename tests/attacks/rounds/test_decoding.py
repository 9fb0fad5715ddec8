"""Round decoding as an attack: it finds what is there, nothing where nothing is, and reads no truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata
from support.rounds import PARTIES, SIZE, World, added, dp, records, world
from support.runs import finished_run

from attacks.rounds import decoding
from attacks.rounds import knowledge as owned
from attacks.rounds.decoding import Effort, decode, score
from attacks.rounds.sets import draw_contexts, fillers
from attacks.rounds.updates import others_update, readable
from attacks.shadows import aggregation
from attacks.shadows.suite import federation_plan
from attacks.views import observations
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Pool
from fedsim.core.errors import InputError
from fedsim.core.scenario.adversary import AdversarySettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.runs import observers

QUICK = Effort(rounds=(1, 2), sets=80, repeats=1, federations=1e6)
SEEDS = range(3)


def found(given: World, effort: Effort = QUICK) -> np.ndarray:
    return decode(given.view, given.candidates, 9, effort).scores


def auc(worlds: list[World], effort: Effort = QUICK) -> float:
    """Mean area under the ROC curve."""
    areas = []
    for given in worlds:
        ranks = rankdata(found(given, effort))[given.member]
        n = len(ranks)
        areas.append((ranks.mean() - (n + 1) / 2) / np.sum(~given.member))
    return float(np.mean(areas))


def test_scores_are_stretched_alike_and_only_where_no_member_is_unknown() -> None:
    given = world()
    count = len(given.candidates)
    beside = Pool(records(np.random.default_rng(50), count), np.full(count, -1))

    def factor(view: ParticipantView, unknown: float) -> np.ndarray:
        known = owned.of_view(view, given.candidates)
        assert sum(known.unknown(*population) for population in known.populations()) == unknown
        outcome = decode(view, given.candidates, 9, QUICK)
        return np.asarray(outcome.scores / np.mean(list(outcome.ratios.values()), axis=0))

    np.testing.assert_allclose(factor(given.view, SIZE), 1)
    stretched = factor(replace(given.view, auxiliary=beside), 0)
    np.testing.assert_allclose(stretched, stretched[0])
    assert stretched[0] > 1


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("repeats", [0, 1])
def test_it_finds_what_was_learnt_by_heart(told: bool, repeats: int) -> None:
    effort = replace(QUICK, repeats=repeats, gradients=repeats == 0)
    assert auc([world(seed, told=told) for seed in SEEDS], effort) > 0.75


def test_it_finds_nothing_where_no_candidate_was_trained_on() -> None:
    worlds = [world(seed, learns=False) for seed in range(4)]
    assert abs(auc(worlds) - 0.5) < 0.12


def test_it_finds_nothing_where_the_candidates_labels_are_permuted() -> None:
    worlds = []
    for seed in range(4):
        given = world(seed)
        labels = (given.candidates.labels + 1 + seed % 3) % 4
        worlds.append(replace(given, candidates=replace(given.candidates, labels=labels)))
    assert auc(worlds) < 0.65 < auc([world(seed) for seed in range(4)])


def test_noise_of_dp_lowers_what_it_finds_and_what_it_predicts() -> None:
    areas, separations = [], []
    for noise in (0.0, 8.0):
        worlds = [world(seed, privacy=dp(noise)) for seed in SEEDS]
        areas.append(auc(worlds, replace(QUICK, gradients=False)))
        outcomes = [decode(given.view, given.candidates, 9, QUICK) for given in worlds]
        separations.append(np.mean([each.readings["paired"][0].separation.mean() for each in outcomes]))
    assert areas[1] < areas[0] - 0.1
    assert separations[1] < 0.7 * separations[0]


def test_more_rounds_are_read_where_noise_is_drawn_anew_in_each() -> None:
    effort = replace(QUICK, rounds=(1,), noisy_rounds=(1, 2), noisy_sets=30)
    plain = decode(world().view, world().candidates, 9, effort)
    assert plain.rounds == [1]
    noisy = world(privacy=dp(8.0))
    both = decode(noisy.view, noisy.candidates, 9, effort)
    assert both.rounds == [1, 2]
    assert both.cost < plain.cost * 2, "fewer residuals are simulated"
    first = decode(noisy.view, noisy.candidates, 9, replace(effort, noisy_rounds=(1,)))
    told = [each.readings["paired"][0].separation.mean() for each in (first, both)]
    assert told[1] > 1.2 * told[0]
    some = world(privacy=dp(8.0), participants=2)
    assert decode(some.view, some.candidates, 9, effort).rounds == [1], "every round would be kept by itself"


@pytest.mark.parametrize("optimizer", [{"optimizer": "adam", "lr": 0.01}, {"momentum": 0.8, "lr": 0.05}])
def test_other_optimizers_are_read_by_paired_signatures_alone(optimizer: dict) -> None:
    training = TrainingSettings(batch=4, epochs=4, **optimizer)
    worlds = [world(seed, training=training) for seed in SEEDS]
    assert set(decode(worlds[0].view, worlds[0].candidates, 9, QUICK).readings) == {"paired"}
    assert auc(worlds) > 0.7


def test_parties_that_come_and_go_are_read_round_by_round() -> None:
    worlds = [world(seed, participants=2) for seed in SEEDS]
    outcome = decode(worlds[0].view, worlds[0].candidates, 9, QUICK)
    assert len(outcome.readings["paired"]) == 2
    assert auc(worlds) > 0.6


def test_a_projection_and_a_sample_of_rows_find_nearly_as_much() -> None:
    worlds = [world(seed) for seed in SEEDS]
    assert auc(worlds, replace(QUICK, weights=150)) > 0.7
    assert auc(worlds, replace(QUICK, rows=30)) > 0.7


def test_candidates_are_read_one_by_one_where_the_adversary_owns_other_records() -> None:
    areas = []
    for seed in SEEDS:
        given = world(seed)
        disjoint = given.view.assumptions.model_copy(update={"auxiliary": "disjoint"})
        fresh = Pool(records(np.random.default_rng(50 + seed), 4 * SIZE), np.full(4 * SIZE, -1))
        view = replace(given.view, assumptions=disjoint, auxiliary=fresh)
        areas.append(replace(given, view=view))
        known = owned.of_view(view, given.candidates)
        assert not known.asked.any() and not known.drawable[: len(given.candidates)].any()
    assert auc(areas) > 0.7


def test_what_is_said_of_a_record_decoded_alone_does_not_depend_on_the_others_asked_about() -> None:
    given = world()
    disjoint = given.view.assumptions.model_copy(update={"auxiliary": "disjoint"})
    fresh = Pool(records(np.random.default_rng(50), 4 * SIZE), np.full(4 * SIZE, -1))
    view = replace(given.view, assumptions=disjoint, auxiliary=fresh)
    whole = decode(view, given.candidates, 9, replace(QUICK, repeats=0))
    some = np.arange(0, len(given.candidates), 3)
    assert given.view.candidate_party is not None
    fewer = replace(view, candidate_party=given.view.candidate_party[some])
    alone = decode(fewer, given.candidates.take(some), 9, replace(QUICK, repeats=0))
    np.testing.assert_allclose(alone.scores, whole.scores[some], rtol=1e-4)


def test_of_a_coalition_the_other_parties_alone_are_simulated() -> None:
    given = world()
    view = replace(given.view, own_party=np.repeat([0, 2], SIZE // 2))
    known = owned.of_view(view, given.candidates)
    assert known.others == (1,)
    assert {context.party for context in draw_contexts(known, fillers(known, 0), 2, 0)} == {1}


# -------------------------------------------------------------------------------- what it does not look at
def test_the_same_seed_gives_the_same_scores_and_nothing_is_kept_between_calls() -> None:
    given = world()
    first, other = found(given), found(world(1))
    np.testing.assert_array_equal(first, found(given))
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("told", [False, True])
def test_permuted_candidates_have_the_same_scores(told: bool) -> None:
    given = world(told=told)
    order = np.random.default_rng(0).permutation(len(given.candidates))
    party = given.view.candidate_party
    assert party is not None
    view = replace(given.view, candidate_party=party[order])
    moved = replace(given, view=view, candidates=given.candidates.take(order))
    np.testing.assert_array_equal(found(given)[order], found(moved))


def test_a_run_whose_truth_is_flipped_has_the_same_scores(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary={"attacks": ["loss"], "candidates": 20})
    effort, scores = replace(QUICK, rounds=(1,), sets=20), []
    for _ in range(2):
        view = observers.sight(run, 0, "participant")
        candidates = observations.load_candidates(run.observations(0))
        scores.append(decode(view, candidates, 9, effort).scores)
        file = run.path / "truth.parquet"
        truth = pd.read_parquet(file)
        truth.assign(member=~truth["member"]).to_parquet(file)
    np.testing.assert_array_equal(*scores)
    assert np.isfinite(scores[0]).all() and len(set(scores[0])) > 10


def test_score_takes_its_chance_from_the_stream() -> None:
    given, short = world(), Effort(rounds=(1,), sets=12, repeats=1)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(decoding, "effort_of", lambda settings: short)
        one, two, three = (
            score(given.view, given.candidates, np.random.default_rng(seed)) for seed in (1, 1, 2)
        )
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, three)


def test_rounds_are_read_as_long_as_they_can_be_paid_for() -> None:
    given = world()
    cheap = decode(given.view, given.candidates, 9, replace(QUICK, repeats=0))
    assert cheap.rounds == [1, 2] and set(cheap.readings) == {"gradient"}
    dear = decode(given.view, given.candidates, 9, replace(QUICK, federations=1e-9))
    assert dear.rounds == [1] and set(dear.readings) == {"gradient"}
    assert dear.cost == pytest.approx(cheap.cost / 2)


def test_as_many_rounds_are_read_as_a_scenario_asks_for_whatever_they_cost() -> None:
    given = world()
    wanted = decoding.effort_of(AdversarySettings(decoded_rounds=2, prior=0.3))
    assert wanted.rounds == (1, 2) and wanted.prior == 0.3
    assert decoding.effort_of(AdversarySettings()) == Effort()
    read = decode(given.view, given.candidates, 9, replace(wanted, sets=12, repeats=0))
    assert read.rounds == [1, 2]


# ------------------------------------------------------------------------------------------- the server
@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_the_servers_step_is_undone(strategy: str) -> None:
    given = world()
    options = {"server_learning_rate": 0.7, "server_momentum": 0.5} if strategy == "fedavgm" else {}
    settings = replace(given.view.settings, strategy=strategy, options=options)
    plan = replace(federation_plan(given.view, 2), strategy=strategy, options=options)
    step, models, stream = aggregation.server(plan), dict(given.view.models), np.random.default_rng(0)
    names, answers = list(models[0]), {}
    for t in (1, 2):
        answers[t] = [
            added(models[t - 1], stream.normal(scale=0.02, size=_size(models[0]))) for _ in range(3)
        ]
        mean = [torch.tensor(np.mean([a[name] for a in answers[t]], axis=0)) for name in names]
        moved = step([torch.tensor(models[t - 1][name]) for name in names], mean)
        models[t] = {name: array.numpy() for name, array in zip(names, moved, strict=True)}
    replies = {t: each[0] for t, each in answers.items()}
    view = replace(given.view, settings=settings, models=models, own_replies=replies)
    rounds = readable(view, plan, (1, 2, 3))
    assert rounds == ([1] if strategy.startswith("fedad") or strategy == "fedyogi" else [1, 2])
    for t in rounds:
        others = [_flat(answer) - _flat(models[t - 1]) for answer in answers[t][1:]]
        found = others_update(view, plan, t, names)
        np.testing.assert_allclose(found, np.sum(others, axis=0) / PARTIES, atol=2e-4)


def _flat(weights: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in weights.values()]).astype(np.float64)


def _size(weights: dict[str, np.ndarray]) -> int:
    return sum(array.size for array in weights.values())


def test_rounds_that_were_not_seen_are_not_read() -> None:
    given = world()
    view = replace(given.view, models={0: given.view.models[0], 2: given.view.models[2]})
    assert found(replace(given, view=view)).tolist() == [0.0] * len(given.candidates)


def test_a_strategy_that_cannot_be_simulated_is_an_error_of_the_user() -> None:
    given = world()
    krum: ParticipantView = replace(given.view, settings=replace(given.view.settings, strategy="krum"))
    with pytest.raises(InputError, match="krum"):
        decode(krum, given.candidates, 9, QUICK)
