from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from sklearn.metrics import roc_auc_score
from support.attacks import PARTICIPANTS, VIEW_ATTACKS, findings

from attacks.calibration import calibrate
from attacks.membership import crossfit, threshold
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records


def stream() -> np.random.Generator:
    return np.random.default_rng(0)


def test_gap_is_whether_the_model_is_right(early: Any) -> None:
    view, candidates = early.view, early.candidates
    right = view.logits(10, candidates).argmax(axis=1) == candidates.labels
    scores = threshold.gap(view, candidates, stream())
    assert 0 < right.mean() < 1
    np.testing.assert_array_equal(scores, right)


def test_gaps_balanced_accuracy_is_the_generalisation_gap(overfitted: Any) -> None:
    """Yeom et al. 2018, theorem 2: its advantage is the training accuracy less the test accuracy."""
    scores = threshold.gap(overfitted.view, overfitted.candidates, stream())
    member = overfitted.member
    advantage = 2 * roc_auc_score(member, scores) - 1
    assert advantage == pytest.approx(scores[member].mean() - scores[~member].mean())


def test_scaled_logit_is_the_log_odds_of_the_final_model(overfitted: Any) -> None:
    logits = overfitted.view.logits(12, overfitted.candidates)
    labels = overfitted.candidates.labels
    expected = [z[y] - logsumexp(np.delete(z, y)) for z, y in zip(logits, labels, strict=True)]
    scores = threshold.scaled_logit(overfitted.view, overfitted.candidates, stream())
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    loss = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    np.testing.assert_array_equal(np.argsort(scores), np.argsort(-loss))


def test_each_class_has_the_threshold_of_its_own_records() -> None:
    rng = stream()
    labels, member = rng.integers(0, 4, 200), rng.random(200) < 0.5
    scores = rng.normal(size=200) + 3 * labels + member
    found = threshold.class_thresholds(scores, labels, member, classes=4)
    for y in range(4):
        of_class = labels == y
        assert found[y] == calibrate(scores[of_class & member], scores[of_class & ~member])
    assert (np.diff(found) > 1).all()


def test_a_class_of_one_kind_only_takes_the_threshold_of_all() -> None:
    scores, labels = np.array([3.0, 1.0, 9.0, 8.0]), np.array([0, 0, 1, 2])
    member = np.array([True, False, True, False])
    found = threshold.class_thresholds(scores, labels, member, classes=4)
    overall = calibrate(scores[member], scores[~member])
    np.testing.assert_array_equal(found, [2.0, overall, overall, overall])


def test_per_class_thresholds_are_taken_off_the_modified_entropy(overfitted: Any) -> None:
    view, candidates = overfitted.view, overfitted.candidates
    own = Records.concatenate([view.own_train, view.own_heldout])
    member = np.arange(40) < 20
    plain = threshold.modified_entropy(view, own, stream())
    fold = crossfit.deal(member, stream())
    thresholds = np.mean(
        [
            threshold.class_thresholds(plain[fold != k], own.labels[fold != k], member[fold != k], 10)
            for k in range(5)
        ],
        axis=0,
    )
    expected = threshold.modified_entropy(view, candidates, stream()) - thresholds[candidates.labels]
    scores = threshold.modified_entropy_per_class(view, candidates, stream())
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_per_class_thresholds_find_what_one_threshold_misses(
    overfitted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes of which one is far easier than the other: member or not is a matter within each."""
    rng = stream()

    def drawn(n: int, member: bool) -> Records:
        labels = rng.integers(0, 2, n)
        features = 100.0 * labels + rng.normal(size=n) + (3 if member else 0)
        return Records(features[:, None].astype(np.float32), labels)

    monkeypatch.setattr(
        threshold, "modified_entropy", lambda view, records, rng: records.features[:, 0].astype(np.float64)
    )
    view = replace(overfitted.view, own_train=drawn(200, True), own_heldout=drawn(200, False))
    candidates = Records.concatenate([drawn(200, True), drawn(200, False)])
    member = np.arange(400) < 200
    assert roc_auc_score(member, candidates.features[:, 0]) < 0.8
    assert roc_auc_score(member, threshold.modified_entropy_per_class(view, candidates, rng)) > 0.97


# All attacks that need no shadows, end to end.


# What reads single steps finds less in rounds of sixty epochs, which are none.
OF_STEPS = {"update-cosine", "glir", "covariance"}


@pytest.mark.parametrize("name", sorted(set(VIEW_ATTACKS) - OF_STEPS))
def test_a_model_that_memorised_everything_gives_everyone_away(overfitted: Any, name: str) -> None:
    finding = findings(overfitted.view, overfitted.candidates, [name], seed=0)[name]
    assert roc_auc_score(overfitted.member, finding.scores) > (0.93 if name == "per-class-entropy" else 0.945)
    assert np.mean((finding.scores >= finding.threshold) == overfitted.member) > 0.8


@pytest.mark.parametrize("name", VIEW_ATTACKS)
def test_a_model_that_never_saw_the_records_gives_no_one_away(untrained: ParticipantView, name: str) -> None:
    rng, member = np.random.default_rng(1), np.arange(800) < 400
    features = rng.normal(size=(800, 40)).astype(np.float32)
    candidates = Records(features, rng.integers(0, 10, 800))
    scores = findings(untrained, candidates, [name], seed=0)[name].scores
    sigma = np.sqrt(801 / (12 * 400 * 400))  # of the AUC where members and others are alike (Mann & Whitney)
    assert abs(roc_auc_score(member, scores) - 0.5) < 2 * sigma


@pytest.mark.parametrize("name", VIEW_ATTACKS)
def test_the_stream_decides_and_nothing_else_does(early: Any, name: str) -> None:
    def scores(seed: int) -> np.ndarray:
        return PARTICIPANTS[name].score(early.view, early.candidates, np.random.default_rng(seed))

    np.testing.assert_array_equal(scores(1), scores(1))
    random = {
        "per-class-entropy", "representation", "noise-robustness", "boundary-distance",
        "confidence-series", "white-box-network",
    }  # fmt: skip
    assert np.array_equal(scores(1), scores(2)) == (name not in random)
