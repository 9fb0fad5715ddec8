"""Persons are told by all of their records, and nearly known records by points near them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from support.federation import Federation
from support.layouts import layout_of_features

from attacks.persons import ranges, subject
from attacks.persons.ranges import Range
from fedsim.core.data.layout import Layout
from fedsim.core.data.records import Records

LAYOUT = layout_of_features("a", "b", "b missing", "w=x", "w=y", "w=z", "c")
PLAIN = layout_of_features(*(f"x{i}" for i in range(40)))


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(-9, 9)), min_size=1, max_size=30))
def test_aggregates_are_what_their_names_say(rows: list[tuple[int, float]]) -> None:
    owner, scores = np.array([o for o, _ in rows]), np.array([s for _, s in rows])
    of = [scores[owner == p] for p in range(5)]
    for aggregate, slow in ((subject.mean, np.mean), (subject.largest, np.max)):
        ours = aggregate(scores, owner, 5)
        for p, hers in enumerate(of):
            if len(hers):
                assert ours[p] == pytest.approx(slow(hers))
    standard = (scores - scores.mean()) / (scores.std() or 1)
    summed = [sum(standard[owner == p]) / np.sqrt(max(1, len(of[p]))) for p in range(5)]
    np.testing.assert_allclose(subject.stouffer(scores, owner, 5), summed, atol=1e-9)


def asked(world: Federation) -> tuple[Records, np.ndarray, np.ndarray]:
    """Persons of two records, both on one side: (records, owner, member)."""
    n = len(world.candidates)
    return world.candidates, np.arange(n) // 2, world.member[::2]


@pytest.mark.parametrize("score", list(subject.SCORES))
def test_all_of_her_records_tell_more_than_one(early: Federation, score: str) -> None:
    records, owner, member = asked(early)
    stream = np.random.default_rng(0)
    (scores,) = subject.scored(early.view, [records], subject.SCORES[score], stream)
    whole = roc_auc_score(member, subject.mean(scores, owner, len(member)))
    one = np.mean([roc_auc_score(member, scores[k::2]) for k in (0, 1)])
    assert whole >= one - 0.01
    if score == "update-regression":
        assert whole > 0.9


@pytest.mark.parametrize("score", list(subject.SCORES))
def test_models_that_saw_nobody_tell_nothing(untrained, early: Federation, score: str) -> None:
    records, owner, member = asked(early)
    (scores,) = subject.scored(untrained, [records], subject.SCORES[score], np.random.default_rng(0))
    auc = roc_auc_score(member, np.nan_to_num(subject.mean(scores, owner, len(member))))
    assert abs(auc - 0.5) < 0.3  # three standard errors of 20 + 20 persons


def near(layout: Layout, seed: int = 0, n: int = 30) -> Records:
    from attacks.reconstruction.rows import Rows

    stream = np.random.default_rng(seed)
    return Records(Rows.of(layout).drawn(n, stream), stream.integers(0, 2, n))


@given(st.integers(0, 200), st.floats(0, 0.3))
def test_points_and_what_is_known_lie_in_the_range(seed: int, off: float) -> None:
    records, owned = near(LAYOUT, seed), near(LAYOUT, seed + 1)
    known = Range(LAYOUT, off, (LAYOUT[2],))
    stream = np.random.default_rng(seed)
    blur = ranges.blurred(records, known, stream)
    assert not blur.features[:, LAYOUT[2].features].any()  # nothing of the unknown column is left
    drawn = ranges.points(blur, known, owned, stream)
    for column in known.known_numbers:
        reach = off * (column.high - column.low) + 1e-5
        assert np.abs(blur.features[:, column.start] - records.features[:, column.start]).max() <= reach
        assert np.abs(drawn.features[:, column.start] - blur.features[:, column.start]).max() <= reach
        assert drawn.features[:, column.start].max() <= column.high
    whole = drawn.features[:, LAYOUT[2].features]
    assert (whole.sum(axis=1) == 1).all() and set(whole.ravel()) <= {0.0, 1.0}


def test_a_range_around_members_is_found_though_no_record_is_known(early: Federation) -> None:
    known = Range(PLAIN, 0.05)
    stream = np.random.default_rng(1)
    blur = ranges.blurred(early.candidates, known, stream)
    regression = subject.SCORES["update-regression"]
    drawn = [
        subject.scored(
            early.view, [ranges.points(blur, known, early.view.own_train, stream)], regression, stream
        )[0]
        for _ in range(4)
    ]
    assert roc_auc_score(early.member, ranges.trimmed_mean(drawn)) > 0.8


def test_the_trimmed_mean_is_that_of_the_upper_half() -> None:
    scores = [np.array([1.0, 8.0]), np.array([3.0, 2.0]), np.array([5.0, 4.0]), np.array([0.0, 6.0])]
    np.testing.assert_allclose(ranges.trimmed_mean(scores), [4.0, 7.0])


def test_the_middle_of_a_range_has_the_usual_value_where_nothing_is_known() -> None:
    rows = [[0, 0, 0, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0, 1], [0, 0, 0, 0, 0, 1, 1]]
    owned = Records(np.array(rows, np.float32), np.zeros(3, np.int64))
    guess = ranges.middle(near(LAYOUT, n=2), Range(LAYOUT, 0.0, (LAYOUT[2],)), owned)
    np.testing.assert_array_equal(guess.features[:, LAYOUT[2].features], [[1, 0, 0], [1, 0, 0]])
