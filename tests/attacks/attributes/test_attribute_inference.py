"""Attribute inference finds what is planted, and nothing where nothing is."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.attributes import COLUMN, Hidden, hidden_world

from attacks.attributes import imputation, inference
from attacks.attributes.problem import flat, options_of, population, pose
from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings
from fedsim.core.data.layout import ColumnLayout
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError
from fedsim.core.scenario.training import ModelSettings, TrainingSettings

NUMBER = ColumnLayout("x", "number", 0, 2, missing=True, bounds=(0, 100))


@cache
def scored(copied: bool, epochs: int) -> tuple[Hidden, dict[str, np.ndarray]]:
    world = hidden_world(copied, epochs)
    owned = population(world.view)
    options = options_of(COLUMN, owned)
    stream = np.random.default_rng(1)
    return world, inference.infer(world.view, options, owned, world.candidates, stream)


def accuracy(world: Hidden, score: np.ndarray, member: bool) -> float:
    rows = world.member == member
    return float(np.mean(score.argmax(axis=1)[rows] == world.value[rows]))


@pytest.mark.parametrize(
    "name", ["yeom", "csmia", "loss-series", "update-cosine", "update-regression", "white-box"]
)
def test_a_memorised_value_is_found_in_members_and_in_nobody_else(name: str) -> None:
    world, scores = scored(copied=False, epochs=60)
    assert accuracy(world, scores[name], True) > 0.62
    assert accuracy(world, scores[name], True) - accuracy(world, scores[name], False) > 0.1
    assert abs(accuracy(world, scores["imputation"], True) - 0.5) < 0.16


def test_a_value_copied_into_the_label_is_found_in_all_and_no_leak() -> None:
    world, scores = scored(copied=True, epochs=60)
    for name in ("yeom", "csmia", "white-box", "imputation"):
        assert accuracy(world, scores[name], True) > 0.95
        assert accuracy(world, scores[name], False) > 0.95


@pytest.mark.parametrize("name", list(inference.SUITE))
def test_a_model_that_never_saw_a_record_tells_nothing_of_it(name: str) -> None:
    world, scores = scored(copied=False, epochs=0)
    gap = accuracy(world, scores[name], True) - accuracy(world, scores[name], False)
    assert abs(gap) < 0.25  # four standard errors of two shares of 120


def test_no_attack_sees_the_value_that_it_is_asked_for() -> None:
    world, _ = scored(copied=False, epochs=60)
    options = options_of(COLUMN, population(world.view))
    changed = flat(world.candidates).copy()
    changed[:, COLUMN.features] = changed[:, COLUMN.features][:, ::-1]
    other = Records(changed, world.candidates.labels)
    both = [
        inference.infer(world.view, options, population(world.view), records, np.random.default_rng(2))
        for records in (world.candidates, other)
    ]
    for name, score in both[0].items():
        assert np.array_equal(score, both[1][name]), name


def logistic(weight: list[list[float]]) -> ParticipantView:
    """A view of the logistic model with logits W x, on two features: one hidden yes/no column."""
    settings = PublicSettings(ModelSettings(name="logistic"), (2,), 2, 1, 2, 2, TrainingSettings(), "fedavg")
    weights = {"output.weight": np.array(weight, np.float32), "output.bias": np.zeros(2, np.float32)}
    nobody = Records(np.zeros((2, 2), np.float32), np.array([0, 1]))
    return ParticipantView(settings, {0: weights, 1: weights}, {}, nobody, nobody)


@pytest.mark.parametrize(
    ("logits", "label", "choice"),
    [
        ([[1.0, 0.0], [0.0, 2.0]], 0, 0),  # only the first value is right
        ([[1.0, 2.0], [0.0, 0.0]], 0, 1),  # both are: the surer one
        ([[1.0, 2.0], [0.0, 0.0]], 1, 0),  # neither is: the less sure one
    ],
)
def test_csmia_chooses_as_in_its_three_cases(logits: list[list[float]], label: int, choice: int) -> None:
    """logits[c][v]: logit of class c at value v, as the columns of W."""
    view = logistic(logits)
    column = ColumnLayout("c", "category", 0, 2, ("no", "yes"))
    record = Records(np.zeros((1, 2), np.float32), np.array([label]))
    problem = pose(options_of(column, record), record)
    score = inference.csmia(view, problem, np.full((1, 2), 0.5), np.random.default_rng(0))
    assert score.argmax() == choice


def test_yeom_is_prior_times_probability_of_the_label() -> None:
    view = logistic([[1.0, 0.0], [0.0, 0.5]])
    column = ColumnLayout("c", "category", 0, 2, ("no", "yes"))
    record = Records(np.zeros((1, 2), np.float32), np.array([0]))
    problem = pose(options_of(column, record), record)
    score = inference.yeom(view, problem, np.array([[0.3, 0.7]]), np.random.default_rng(0))
    by_hand = [[0.3 * np.e / (np.e + 1), 0.7 / (1 + np.exp(0.5))]]
    np.testing.assert_allclose(np.exp(score), by_hand, rtol=1e-6)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.integers(2, 5))
@example([0] * 20 + [1, 2, 3], 2)
def test_every_bin_of_a_number_holds_a_value_and_its_median(values: list[int], bins: int) -> None:
    rows = np.column_stack([np.array(values) / 10, np.zeros(len(values))]).astype(np.float32)
    records = Records(rows, np.zeros(len(values), np.int64))
    if len(set(values)) < 2:
        with pytest.raises(InputError, match="do not differ"):
            options_of(NUMBER, records, bins)
        return
    options = options_of(NUMBER, records, bins)
    assert len(options) <= bins
    assert set(options.index_of(records)) == set(range(len(options)))
    medians = Records(options.encoded, np.zeros(len(options), np.int64))
    assert options.index_of(medians).tolist() == list(range(len(options)))


def test_a_missing_cell_has_no_value() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    records = Records(rows, np.zeros(3, np.int64))
    assert options_of(NUMBER, records).index_of(records).tolist() == [0, 1, -1]


def test_imputation_finds_what_other_columns_tell() -> None:
    stream = np.random.default_rng(0)
    value = stream.integers(0, 2, 200)
    rows = np.column_stack([np.eye(2)[value], value + 0.3 * stream.normal(size=200)]).astype(np.float32)
    records = Records(rows, stream.integers(0, 2, 200))
    options = options_of(COLUMN, records)
    asked = pose(options, records.take(np.arange(100)))
    guess = imputation.impute(asked, records.take(np.arange(100, 200)), 2, stream)
    assert np.mean(guess.argmax(axis=1) == value[:100]) > 0.9
    np.testing.assert_allclose(guess.sum(axis=1), 1)
    assert (guess > 0).all()


def test_the_choice_model_is_the_prior_where_nothing_else_tells_and_learns_what_does() -> None:
    stream = np.random.default_rng(3)
    signal = stream.normal(size=(400, 3, 2))
    p = np.exp(signal @ [1.0, 2.0])
    chosen = np.array([stream.choice(3, p=row / row.sum()) for row in p])
    np.testing.assert_allclose(inference.conditional_logit(signal, chosen), [1, 2], atol=0.4)
    np.testing.assert_allclose(inference.conditional_logit(signal[:0], chosen[:0]), [1, 0])
