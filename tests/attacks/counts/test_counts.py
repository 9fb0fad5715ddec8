"""Counting members and groups: right on average, honest where nothing is to be seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.attributes import COLUMN
from support.federation import initial, train

from attacks.attributes.problem import options_of
from attacks.counts import groups, members
from attacks.views.settings import PublicSettings, module_of
from fedsim.core.data.records import Records
from fedsim.core.scenario.training import ModelSettings, TrainingSettings

ESTIMATORS = list(members.ESTIMATORS.values())


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 1.0])
def test_shares_are_found_from_scores_that_tell_no_single_record(
    estimator: members.Estimator, share: float
) -> None:
    stream, found = np.random.default_rng(0), []
    for _ in range(60):
        inside = stream.random(400) < share
        scores = stream.normal(size=400) + 0.8 * inside
        known = stream.normal(size=(2, 400)) + np.array([[0.8], [0.0]])
        found.append(estimator(scores, known[0], known[1]))
    assert np.mean(found) == pytest.approx(share, abs=0.08)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_intervals_cover(estimator: members.Estimator) -> None:
    stream, hits = np.random.default_rng(1), 0
    for _ in range(40):
        scores = np.concatenate([stream.normal(size=60) + 1, stream.normal(size=40)])
        known = stream.normal(size=(2, 100)) + np.array([[1.0], [0.0]])
        found = members.count(scores, known[0], known[1], estimator, stream, draws=100)
        hits += found.low <= 60 <= found.high
    assert hits >= 34


def test_a_score_that_tells_nothing_excludes_little() -> None:
    stream = np.random.default_rng(2)
    scores, inside, outside = stream.normal(size=(3, 100))
    found = members.count(scores, inside, outside, members.by_mean, stream)
    assert found.low < 20 and found.high > 80
    assert members.by_mean(np.zeros(5), np.zeros(5), np.zeros(5)) == 0.5


@given(st.integers(0, 500), st.integers(1, 30))
def test_a_count_lies_within_its_list(seed: int, n: int) -> None:
    stream = np.random.default_rng(seed)
    scores, inside, outside = stream.integers(0, 4, (3, n)).astype(float)
    for estimator in ESTIMATORS:
        found = members.count(scores, inside, outside, estimator, stream, draws=10)
        assert 0 <= found.low <= found.value <= found.high <= n


def test_counting_needs_known_records() -> None:
    with pytest.raises(ValueError, match="known members"):
        members.count(np.ones(3), np.ones(0), np.ones(3), members.by_mean, np.random.default_rng(0))


def grouped(stream: np.random.Generator, n: int, share: float) -> Records:
    """Group 1 has another first block, and another relation of features and label."""
    value = (stream.random(n) < share).astype(np.int64)
    other = stream.normal(size=(n, 8))
    label = (other[:, 0] * np.where(value, 1, -1) > 0).astype(np.int64)
    return Records(np.column_stack([2.0 * np.eye(2)[value], other]).astype(np.float32), label)


@pytest.mark.parametrize("share", [0.15, 0.5, 0.85])
def test_the_share_of_a_group_is_read_off_an_update(share: float) -> None:
    stream = np.random.default_rng(3)
    settings = PublicSettings(ModelSettings(hidden=[32]), (10,), 2, 1, 2, 2, TrainingSettings(), "fedavg")
    start = initial(settings)
    answer = train(settings, start, grouped(stream, 200, share), 1, 0.1)
    update = {name: answer[name].astype(np.float64) - start[name] for name in start}
    owned = grouped(stream, 200, 0.5)
    group = options_of(COLUMN, owned).index_of(owned)
    found = groups.shares([(module_of(settings, start), update)], owned, group, 2, stream)
    assert found[1].value == pytest.approx(share, abs=0.17)
    assert sum(each.value for each in found) == pytest.approx(1)
    assert found[1].low <= found[1].value <= found[1].high


def test_an_update_of_noise_leaves_the_baseline() -> None:
    stream = np.random.default_rng(4)
    owned = grouped(stream, 50, 0.3)
    group = options_of(COLUMN, owned).index_of(owned)
    found = groups.shares([], owned, group, 2, stream)
    np.testing.assert_allclose([each.value for each in found], groups.baseline(group, 2), atol=1e-6)
