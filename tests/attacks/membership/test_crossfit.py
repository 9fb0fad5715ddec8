from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from attacks.membership import crossfit
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records


def flat(records: Records) -> np.ndarray:
    return records.features.astype(np.float64)


def own_of(view: ParticipantView) -> tuple[Records, np.ndarray]:
    own = Records.concatenate([view.own_train, view.own_heldout])
    return own, np.arange(len(own)) < len(view.own_train)


def logistic(known: np.ndarray, member: np.ndarray, rng: np.random.Generator) -> crossfit.Scorer:
    return crossfit.logistic(known, member, rng)


def test_a_known_record_is_scored_by_the_fit_without_it_all_others_by_the_mean(overfitted: Any) -> None:
    own, member = own_of(overfitted.view)
    fold = crossfit.deal(member, np.random.default_rng(5))
    fits = [
        make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)).fit(
            flat(own)[fold != k], member[fold != k]
        )
        for k in range(5)
    ]
    mean = np.mean([model.decision_function(flat(overfitted.candidates)) for model in fits], axis=0)
    held_out = [fits[k].decision_function(x[None])[0] for k, x in zip(fold, flat(own), strict=True)]
    asked = Records.concatenate([overfitted.candidates, own])
    scores = crossfit.cross_fitted(overfitted.view, asked, flat, logistic, np.random.default_rng(5))
    np.testing.assert_allclose(scores, [*mean, *held_out], rtol=1e-4, atol=1e-6)


def test_what_tells_nothing_tells_nothing_of_the_own_records_either(records: Callable[..., Records]) -> None:
    """In 300 dimensions 100 records of noise can be separated: a fit that saw them scores AUC 1."""
    stream = np.random.default_rng(0)
    view = ParticipantView(None, {}, {}, records(stream, 50, 300), records(stream, 50, 300))  # type: ignore[arg-type]
    own, member = own_of(view)
    assert roc_auc_score(member, crossfit.logistic(flat(own), member, stream)(flat(own))) > 0.99
    scores = crossfit.cross_fitted(view, own, flat, logistic, stream)
    assert 0.3 < roc_auc_score(member, scores) < 0.7


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**32))
def test_folds_share_out_members_and_others_evenly(members: int, others: int, seed: int) -> None:
    member = np.arange(members + others) < members
    fold = crossfit.deal(member, np.random.default_rng(seed))
    folds = min(5, members, others)
    if folds < 2:
        assert (fold == -1).all()
        return
    for kind in (member, ~member):
        counts = np.bincount(fold[kind], minlength=folds)
        assert len(counts) == folds and np.ptp(counts) <= 1


def test_one_record_of_a_kind_still_makes_a_fit(overfitted: Any) -> None:
    view = replace(overfitted.view, own_train=overfitted.view.own_train.take(np.arange(1)))
    own, member = own_of(view)
    scores = crossfit.cross_fitted(view, own, flat, logistic, np.random.default_rng(0))
    np.testing.assert_allclose(
        scores, crossfit.logistic(flat(own), member, np.random.default_rng(0))(flat(own))
    )


def test_no_score_where_there_is_nothing_to_learn_from(overfitted: Any) -> None:
    view, asked = overfitted.view, overfitted.candidates

    def broken(records: Records) -> np.ndarray:
        return np.where(records is asked, 1.0, np.nan) * flat(records)

    none = view.own_train.take(np.arange(0))
    assert np.isnan(crossfit.cross_fitted(view, asked, broken, logistic, np.random.default_rng(0))).all()
    for poor in (replace(view, own_train=none), replace(view, own_heldout=none)):
        assert np.isnan(crossfit.cross_fitted(poor, asked, flat, logistic, np.random.default_rng(0))).all()


def test_a_candidate_that_is_not_finite_spoils_no_other_score(overfitted: Any) -> None:
    def features(records: Records) -> np.ndarray:
        values = flat(records)
        if records is overfitted.candidates:
            values[3] = np.nan
        return values

    def scores(features: crossfit.Features) -> np.ndarray:
        stream = np.random.default_rng(0)
        return crossfit.cross_fitted(overfitted.view, overfitted.candidates, features, logistic, stream)

    found, expected = scores(features), scores(flat)
    assert np.isnan(found[3])
    np.testing.assert_allclose(np.delete(found, 3), np.delete(expected, 3), rtol=1e-12)


@pytest.mark.parametrize("weight", [1.0, np.array([0.5, 2.0, 1.0])])
def test_standardised_features_have_the_deviation_asked_for(weight: np.ndarray | float) -> None:
    known = np.random.default_rng(0).normal(3, [[1, 5, 0]], size=(200, 3))
    found = crossfit.standardised(known, weight)(known)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(found.std(axis=0), np.array([1, 1, 0]) * weight, atol=1e-12)
