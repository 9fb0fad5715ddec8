from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks.membership import crossfit, trajectory
from attacks.views.participant import ParticipantView
from attacks.views.rounds import as_assumed, over, parse_rounds
from attacks.views.settings import PublicSettings, Weights
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError
from fedsim.core.scenario.training import ModelSettings, TrainingSettings


def stream() -> np.random.Generator:
    return np.random.default_rng(0)


def flat(weights: Weights) -> np.ndarray:
    return np.concatenate([np.ravel(array) for array in weights.values()])


def gradient(view: ParticipantView, t: int, records: Records, i: int) -> np.ndarray:
    module = view.module(view.models[t])
    output = module(torch.tensor(records.features[i : i + 1]))
    torch.nn.functional.cross_entropy(output, torch.tensor(records.labels[i : i + 1])).backward()
    return np.concatenate([p.grad.numpy().ravel() for p in module.parameters()]).astype(np.float64)


@pytest.fixture
def one_step(early: Any) -> Any:
    """The federation of `early`, said to train as it does: one full-batch step of size .05 a round."""
    training = TrainingSettings(lr=0.05, batch=20, epochs=1)
    view = replace(early.view, settings=replace(early.view.settings, training=training), _kept={})
    return replace(early, view=view)


# Update difference.


def test_the_others_step_is_the_sum_of_their_members_gradients(one_step: Any) -> None:
    """G_t = −Δ_t · c, with nothing left over: the scale is exact for plain gradient descent."""
    view = one_step.view
    members = one_step.candidates.take(one_step.member)
    scale = trajectory.gradients_in_a_step(view.settings, own_size=20)
    assert scale == pytest.approx(60 / 0.05)
    for t in (1, 10):
        total = sum(gradient(view, t - 1, members, i) for i in range(len(members)))
        found = -scale * flat(view.others_update(t))
        np.testing.assert_allclose(found, total, atol=2e-3 * np.abs(total).max())


def test_update_difference_is_its_definition(one_step: Any) -> None:
    view, few = one_step.view, one_step.candidates.take(np.array([0, 30, 60]))
    expected = np.zeros(3)
    for t in view.trained_rounds:
        whole = -1200 * flat(view.others_update(t))
        for i in range(3):
            expected[i] += whole @ whole - np.sum((whole - gradient(view, t - 1, few, i)) ** 2)
    scores = trajectory.update_difference(view, few, stream())
    np.testing.assert_allclose(scores, expected / 10, rtol=1e-3)


def test_a_member_makes_the_difference(one_step: Any) -> None:
    scores = trajectory.update_difference(one_step.view, one_step.candidates, stream())
    assert roc_auc_score(one_step.member, scores) > 0.75
    assert scores[one_step.member].mean() > 0 > scores[~one_step.member].mean()


def settings(training: TrainingSettings, **changes: Any) -> PublicSettings:
    return replace(PublicSettings(ModelSettings(), (3,), 2, 4, 5, 5, training, "fedavg"), **changes)


@pytest.mark.parametrize(
    ("training", "changes", "expected"),
    [
        # N / (η S): 5 parties of 40; S = 5 epochs × 3 batches
        (TrainingSettings(lr=0.1, batch=16, epochs=5), {}, 200 / (0.1 * 15)),
        (TrainingSettings(lr=0.1, steps=7), {}, 200 / (0.1 * 7)),
        (TrainingSettings(lr=0.1, steps=7, momentum=0.9), {}, 20 / (0.1 * 7)),
        (TrainingSettings(lr=0.1, steps=7), {"participants": 2}, 80 / (0.1 * 7)),
        (TrainingSettings(lr=0.1, steps=7), {"sizes": (10, 20, 30, 40, 50)}, 150 / (0.1 * 7)),
    ],
)
def test_gradients_in_a_step_by_hand(
    training: TrainingSettings, changes: dict[str, Any], expected: float
) -> None:
    assert trajectory.gradients_in_a_step(settings(training, **changes), 40) == pytest.approx(expected)


# Confidence series.


def test_confidence_series_is_a_logistic_regression_on_p_of_the_label(overfitted: Any) -> None:
    view, candidates = overfitted.view, overfitted.candidates

    def series(records: Records) -> np.ndarray:
        rows = np.arange(len(records))
        return np.stack(
            [softmax(view.logits(t, records), axis=1)[rows, records.labels] for t in range(1, 13)], axis=1
        )

    own = Records.concatenate([view.own_train, view.own_heldout])
    member = np.arange(40) < 20
    fold = crossfit.deal(member, stream())
    fits = [
        make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)).fit(
            series(own)[fold != k], member[fold != k]
        )
        for k in range(5)
    ]
    expected = np.mean([model.decision_function(series(candidates)) for model in fits], axis=0)
    scores = trajectory.confidence_series(view, candidates, stream())
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5)


def test_the_series_shows_what_the_last_model_hides(overfitted: Any) -> None:
    """Two kinds of record end at the same confidence; members were there from the start."""
    before, after = overfitted.view.models[0], overfitted.view.models[12]
    view = replace(overfitted.view, models={1: after, 2: before, 3: before}, _kept={})
    last = replace(view, models={3: before}, _kept={})
    member = overfitted.member
    assert roc_auc_score(member, trajectory.confidence_series(view, overfitted.candidates, stream())) > 0.95
    assert roc_auc_score(member, trajectory.confidence_series(last, overfitted.candidates, stream())) < 0.75


def test_no_trained_round_no_series(overfitted: Any) -> None:
    view = replace(overfitted.view, models={0: overfitted.view.models[0]}, _kept={})
    assert not trajectory.confidence_series(view, overfitted.candidates, stream()).any()


# Chosen rounds.


def test_chosen_rounds_are_all_there_is_to_see(overfitted: Any) -> None:
    view, candidates = overfitted.view, overfitted.candidates
    few = over(view, [9, 3, 3])
    assert few.trained_rounds == [3, 9] and few.final_round == 9
    each = [trajectory.loss_series(over(view, [t]), candidates, stream()) for t in (3, 9)]
    np.testing.assert_allclose(trajectory.loss_series(few, candidates, stream()), np.mean(each, axis=0))


def test_an_update_needs_both_its_rounds(early: Any) -> None:
    view, candidates = early.view, early.candidates
    for attack in (trajectory.update_cosine, trajectory.update_difference):
        assert not attack(over(view, [3, 5, 7]), candidates, stream()).any()
        pair, longer = (attack(over(view, rounds), candidates, stream()) for rounds in ([3, 4], [3, 4, 9]))
        assert pair.any()
        np.testing.assert_array_equal(longer, pair)


@pytest.mark.parametrize(
    ("rounds", "text"),
    [
        ([3, 13], r"rounds = \[3, 13\]: no model of round 13 was seen; valid: 0 … 12"),
        ([0], r"rounds = \[0\]: choose at least one round above 0"),
        ([], r"rounds = \[\]: choose at least one round above 0"),
    ],
)
def test_rounds_that_cannot_be_chosen(overfitted: Any, rounds: list[int], text: str) -> None:
    with pytest.raises(InputError, match=text):
        over(overfitted.view, rounds)


def test_w_0_stays_known_to_simulations(overfitted: Any) -> None:
    view = overfitted.view
    few = over(over(view, [3, 9]), [9])
    assert list(few.models) == [9]
    for name, array in few.initial.items():
        np.testing.assert_array_equal(array, view.models[0][name])


def test_the_rounds_assumed_are_those_looked_at_as_far_as_they_were_seen(overfitted: Any) -> None:
    view = overfitted.view
    assert as_assumed(view) is view
    assumed = view.assumptions.model_copy(update={"rounds": [0, 4, 40]})
    assert sorted(as_assumed(replace(view, assumptions=assumed)).models) == [0, 4]


def test_rounds_as_a_text() -> None:
    assert parse_rounds("1,5,10-12, last", 40) == [1, 5, 10, 11, 12, 40]
    assert parse_rounds("38-last,39", 40) == [38, 39, 40]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,x", "'x' is no round"),
        ("5-3", "'5-3' is no round"),
        ("", "'' is no round"),
        ("1,41", "no model of round 41; valid: 0 … 40"),
        ("0", "choose at least one round above 0"),
    ],
)
def test_texts_that_are_no_rounds(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_rounds(text, 40)
