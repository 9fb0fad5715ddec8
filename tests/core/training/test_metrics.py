"""Measures of a model on records, against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from support.open_training import some_records
from support.training import mlp
from torch import nn

from fedsim.core.training import metrics


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_metrics_are_scikit_learn_s(classes: int) -> None:
    module, records = mlp(classes), some_records(200, classes=classes)
    scores = metrics.logits(module, records)
    p = np.exp(scores - np.logaddexp.reduce(scores, 1)[:, None])
    actual = metrics.evaluate(module, records)
    assert actual["accuracy"] == accuracy_score(records.labels, scores.argmax(1))
    assert actual["loss"] == pytest.approx(log_loss(records.labels, p, labels=range(classes)), rel=1e-6)
    expected = roc_auc_score(records.labels, p[:, 1] if classes == 2 else p, multi_class="ovr")
    assert actual["auc"] == pytest.approx(expected, rel=1e-12)
    assert actual["n"] == 200


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auc_counts_ties_as_one_half(pairs: list[tuple[int, bool]]) -> None:
    score = np.array([value / 10 for value, _ in pairs])
    labels = np.array([int(positive) for _, positive in pairs])
    actual = metrics.auc(np.stack([1 - score, score], 1), labels)
    if labels.min() == labels.max():
        assert math.isnan(actual)
    else:
        assert actual == pytest.approx(roc_auc_score(labels, score), abs=1e-12)


def test_auc_is_missing_where_a_class_is_absent_or_a_score_is_not_a_number() -> None:
    p = np.full((3, 3), 1 / 3)
    assert math.isnan(metrics.auc(p, np.array([0, 1, 1])))
    assert metrics.auc(p, np.array([0, 1, 2])) == 0.5
    assert math.isnan(metrics.auc(p * math.nan, np.array([0, 1, 2])))


def test_evaluation_of_nothing_and_of_much() -> None:
    assert metrics.evaluate(mlp(), some_records(0))["n"] == 0
    module, records = mlp().train(), some_records(9000)
    small, large = (metrics.logits(module, records, batch=batch) for batch in (512, 10**6))
    np.testing.assert_allclose(small, large, atol=1e-6)
    assert module.training


def test_evaluation_switches_dropout_off() -> None:
    module = nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    first, again = (metrics.logits(module, some_records()) for _ in range(2))
    np.testing.assert_equal(first, again)
