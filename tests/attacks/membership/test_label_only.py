from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from attacks.membership import label_only
from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.models.weights import weights_of
from fedsim.core.scenario.training import ModelSettings, TrainingSettings


def stream() -> np.random.Generator:
    return np.random.default_rng(0)


def linear_view(d: int = 6, n: int = 60) -> tuple[ParticipantView, np.ndarray, float]:
    """A logistic regression, whose boundary is the plane ⟨w, x⟩ + b = 0."""
    rng = stream()
    w, b = rng.normal(size=d), 0.3
    weights = {
        "output.weight": np.stack([-w / 2, w / 2]).astype(np.float32),
        "output.bias": np.array([-b / 2, b / 2], np.float32),
    }
    settings = PublicSettings(ModelSettings(name="logistic"), (d,), 2, 1, 2, 2, TrainingSettings(), "fedavg")
    view = ParticipantView(settings, {1: weights}, {}, drawn(rng, n, d), drawn(rng, n, d))
    return view, w, b


def drawn(rng: np.random.Generator, n: int, d: int) -> Records:
    return Records(rng.normal(size=(n, d)).astype(np.float32), rng.integers(0, 2, n))


def signed_distance(records: Records, w: np.ndarray, b: float) -> np.ndarray:
    return (2 * records.labels - 1) * (records.features @ w + b) / np.linalg.norm(w)


def test_only_labels_are_asked_for(overfitted: Any) -> None:
    view, candidates = overfitted.view, overfitted.candidates
    answers = label_only.oracle(view)(candidates.features)
    np.testing.assert_array_equal(answers, view.logits(12, candidates).argmax(axis=1))


def test_scores_depend_on_labels_alone(overfitted: Any) -> None:
    """Logits twice as large are other probabilities and other losses, but the same labels."""
    view, few = overfitted.view, overfitted.candidates.take(np.arange(0, 80, 4))
    final = view.final_model
    doubled = {key: 2 * value if key.startswith("output") else value for key, value in final.items()}
    other = replace(view, models={12: doubled}, _kept={})
    for attack in (label_only.noise_robustness, label_only.boundary_distance):
        np.testing.assert_array_equal(attack(other, few, stream()), attack(view, few, stream()))


def test_kept_label_is_a_count_over_moved_copies(early: Any) -> None:
    few = early.candidates.take(np.arange(0, 80, 5))
    answer, shifts = label_only.oracle(early.view), stream().normal(size=(7, 40)).astype(np.float32)
    expected = [
        np.mean([answer((x + shift)[None])[0] == y for shift in shifts])
        for x, y in zip(few.features, few.labels, strict=True)
    ]
    np.testing.assert_allclose(label_only.kept_label(answer, few, shifts), expected)
    assert len(set(expected)) > 3


def test_robustness_to_noise_of_a_linear_model_is_the_normal_distribution() -> None:
    """⟨w, x + σε⟩ + b keeps its sign with probability Φ(distance / σ)."""
    view, w, b = linear_view()
    candidates = drawn(stream(), 50, 6)
    shifts = 0.7 * stream().normal(size=(4000, 6)).astype(np.float32)
    found = label_only.kept_label(label_only.oracle(view), candidates, shifts)
    np.testing.assert_allclose(found, norm.cdf(signed_distance(candidates, w, b) / 0.7), atol=0.03)


def test_the_noise_is_of_the_scale_that_tells_the_own_records_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members one unit further from the boundary than others: seen at a scale of that size only."""
    view, w, b = linear_view()
    away = (w / np.linalg.norm(w)).astype(np.float32)

    def at(n: int, distance: float) -> Records:
        flat = stream().normal(size=(n, 6)).astype(np.float32)
        flat += np.outer(distance - (flat @ w + b) / np.linalg.norm(w), away).astype(np.float32)
        return Records(flat, np.ones(n, np.int64))

    view = replace(view, own_train=at(40, 2.0), own_heldout=at(40, 1.0))
    scores = label_only.noise_robustness(view, Records.concatenate([at(30, 2.0), at(30, 1.0)]), stream())
    assert scores[:30].min() > scores[30:].max()
    monkeypatch.setattr(label_only, "SCALES", np.array([2.0**-6]))
    blind = label_only.noise_robustness(view, Records.concatenate([at(30, 2.0), at(30, 1.0)]), stream())
    assert np.ptp(blind) == 0


@pytest.mark.parametrize(("d", "loose"), [(2, 1.02), (6, 1.05), (30, 1.25)])
def test_distance_to_a_plane_is_found_from_above(d: int, loose: float) -> None:
    view, w, b = linear_view(d)
    candidates = drawn(np.random.default_rng(1), 200, d)
    exact = signed_distance(candidates, w, b)
    found = label_only.boundary_distance(view, candidates, stream())
    np.testing.assert_array_equal(np.sign(found), np.sign(exact))
    ratio = found / exact
    assert ratio.min() > 0.999
    assert np.median(ratio) < loose


def test_distance_to_a_circle() -> None:
    """A boundary that is curved: labels are 1 inside the unit circle; the distance is |1 − ‖x‖|."""
    records = Records(stream().normal(size=(100, 2)).astype(np.float32), np.ones(100, np.int64))

    def answer(features: np.ndarray) -> np.ndarray:
        return (np.linalg.norm(features, axis=1) < 1).astype(np.int64)

    radius = np.linalg.norm(records.features, axis=1)
    directions = stream().normal(size=(4, 48, 2)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    starts = stream().normal(size=(200, 2)).astype(np.float32)
    found = label_only.distances(answer, records, starts, radius < 1, directions)
    assert (found > np.abs(1 - radius) - 1e-5).all()
    assert np.median(found - np.abs(1 - radius)) < 0.01


def test_the_search_keeps_to_its_queries(overfitted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, oracle = [], label_only.oracle

    def counting(view: ParticipantView) -> label_only.Oracle:
        answer = oracle(view)

        def count(features: np.ndarray) -> np.ndarray:
            asked.append(len(features))
            return answer(features)

        return count

    monkeypatch.setattr(label_only, "oracle", counting)
    n, own = len(overfitted.candidates), 40
    label_only.boundary_distance(overfitted.view, overfitted.candidates, stream())
    assert sum(asked) <= 266 * n + own
    asked.clear()
    label_only.noise_robustness(overfitted.view, overfitted.candidates, stream())
    assert sum(asked) == (32 + 1) * 7 * (n + own)


def test_where_no_own_record_is_on_the_other_side_the_distance_is_to_the_furthest() -> None:
    view, _, _ = linear_view()
    constant = {key: np.zeros_like(value) for key, value in view.final_model.items()}  # always answers 0
    view = replace(view, models={1: constant})
    candidates = drawn(stream(), 8, 6)
    own = Records.concatenate([view.own_train, view.own_heldout]).features
    furthest = np.linalg.norm(candidates.features[:, None] - own, axis=2).max(axis=1)
    found = label_only.boundary_distance(view, candidates, stream())
    np.testing.assert_allclose(found, np.where(candidates.labels == 0, furthest, -furthest), rtol=1e-5)


def test_images_are_moved_as_images() -> None:
    rng = stream()
    settings = PublicSettings(
        ModelSettings(name="cnn", hidden=[4]), (1, 6, 6), 3, 1, 2, 2, TrainingSettings(), "fedavg"
    )
    weights = weights_of(zoo.build(settings.model, (1, 6, 6), 3, seed=1))
    own = [
        Records(rng.normal(size=(30, 1, 6, 6)).astype(np.float32), rng.integers(0, 3, 30)) for _ in range(2)
    ]
    view = ParticipantView(settings, {1: weights}, {}, *own)
    for attack in (label_only.noise_robustness, label_only.boundary_distance):
        scores = attack(view, own[0], stream())
        assert scores.shape == (30,) and np.isfinite(scores).all() and np.ptp(scores) > 0


def test_no_answer_no_score(overfitted: Any) -> None:
    broken = {name: np.full_like(array, np.nan) for name, array in overfitted.view.final_model.items()}
    view = replace(overfitted.view, models={12: broken}, _kept={})
    for attack in (label_only.noise_robustness, label_only.boundary_distance):
        assert np.isnan(attack(view, overfitted.candidates, stream())).all()
