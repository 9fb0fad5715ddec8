from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from support import shadow_world

from attacks.matrix import shokri
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.signals import outputs

RNG = np.random.default_rng(0)


def of_logits(n: int, shadows: int, classes: int, sharper: float) -> tuple[SignalMatrix, np.ndarray]:
    """Models that answer with random logits; a member's are ``sharper`` times as far from each other."""
    stream = np.random.default_rng(1)
    member = stream.random((shadows + 1, n)) < 0.5
    labels = stream.integers(0, classes, n)
    logits = stream.normal(size=(shadows + 1, n, classes)) * np.where(member, sharper, 1.0)[..., None]
    phi = np.stack([outputs.scaled_logit(z, labels) for z in logits])
    return SignalMatrix(
        target=phi[:1],
        shadows=phi[1:, None],
        inside=np.where(member[1:], 0, -1).astype(np.int8),
        rounds=np.array([1]),
        labels=labels,
        party=np.zeros(n, dtype=np.int8),
        target_logits=logits[0],
        shadow_logits=logits[1:],
    ), member[0]


def test_answers_are_the_log_odds_of_the_label_then_the_other_classes_sorted() -> None:
    matrix, _ = of_logits(40, 1, classes=5, sharper=1)
    assert matrix.target_logits is not None
    found = shokri.answers(matrix.target[0], matrix.target_logits, matrix.labels)
    for row, z, y in zip(found, matrix.target_logits, matrix.labels, strict=True):
        p = softmax(z)
        others = sorted(np.delete(p, y), reverse=True)
        np.testing.assert_allclose(row, [np.log(p[y] / (1 - p[y])), *np.log(others)], atol=1e-9)


def test_two_classes_and_phi_alone_are_the_same_attack() -> None:
    matrix, _ = of_logits(300, 10, classes=2, sharper=2)
    with_logits = shokri.score(matrix, np.random.default_rng(0))
    without = shokri.score(replace(matrix, target_logits=None, shadow_logits=None), np.random.default_rng(0))
    np.testing.assert_array_equal(with_logits, without)


def test_more_than_the_labels_own_answer_is_used() -> None:
    """Labels are noise here: the other classes' shares tell as much of a member as the label's."""
    matrix, member = of_logits(1500, 20, classes=6, sharper=2)
    with_logits = shadow_world.auc(shokri.score(matrix, RNG), member)
    without = shadow_world.auc(
        shokri.score(replace(matrix, target_logits=None, shadow_logits=None), RNG), member
    )
    assert with_logits > without + 0.05 > 0.6


def test_near_the_best_classifier_where_that_is_known() -> None:
    """Two classes, φ ~ N(0, 1) of non-members and N(0, 2²) of members: the best test is |φ|."""
    stream = np.random.default_rng(2)
    n, shadows = 3000, 20
    member = stream.random((shadows + 1, n)) < 0.5
    phi = stream.normal(size=member.shape) * np.where(member, 2.0, 1.0)
    inside = np.where(member[1:], 0, -1).astype(np.int8)
    labels = stream.integers(0, 2, n)
    zeros = np.zeros(n, dtype=np.int8)
    matrix = SignalMatrix(phi[:1], phi[1:, None], inside, np.array([1]), labels, zeros)
    found = shadow_world.auc(shokri.score(matrix, RNG), member[0])
    assert found > shadow_world.auc(np.abs(phi[0]), member[0]) - 0.01
    assert shadow_world.auc(phi[0], member[0]) == pytest.approx(0.5, abs=0.04)


def test_there_is_a_classifier_per_class() -> None:
    """Members have larger φ in class 0, smaller φ in class 1: no single rule serves both."""
    stream = np.random.default_rng(3)
    n, shadows = 2000, 16
    labels = np.repeat([0, 1], n // 2)
    member = stream.random((shadows + 1, n)) < 0.5
    phi = stream.normal(size=member.shape) + 2 * member * np.where(labels == 0, 1, -1)
    inside = np.where(member[1:], 0, -1).astype(np.int8)
    matrix = SignalMatrix(phi[:1], phi[1:, None], inside, np.array([1]), labels, np.zeros(n, dtype=np.int8))
    scores = shokri.score(matrix, RNG)
    for y in (0, 1):
        assert shadow_world.auc(scores[labels == y], member[0][labels == y]) > 0.88
    assert shadow_world.auc(scores, member[0]) > 0.88


def test_a_class_of_which_no_shadow_saw_a_member_is_not_judged() -> None:
    matrix, _ = of_logits(200, 8, classes=3, sharper=3)
    inside = np.where(matrix.labels == 2, -1, matrix.inside).astype(np.int8)
    scores = shokri.score(replace(matrix, inside=inside), RNG)
    assert (scores[matrix.labels == 2] == 0).all() and (scores[matrix.labels != 2] != 0).all()


def test_a_shadow_with_broken_logits_is_left_out() -> None:
    matrix, _ = of_logits(200, 8, classes=3, sharper=3)
    assert matrix.shadow_logits is not None
    logits = matrix.shadow_logits.copy()
    logits[5, :, 1] = np.nan
    found = shokri.score(replace(matrix, shadow_logits=logits), np.random.default_rng(0))
    kept = matrix.subset(np.arange(8) != 5)
    np.testing.assert_array_equal(found, shokri.score(kept, np.random.default_rng(0)))
