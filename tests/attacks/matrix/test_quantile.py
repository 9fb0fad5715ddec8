from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from support import shadow_world

from attacks.matrix import quantile
from attacks.matrix.signal_matrix import SignalMatrix

RNG = np.random.default_rng(0)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 40))
def test_out_quantiles_are_numpys(seed: int, level: float, shadows: int) -> None:
    stream = np.random.default_rng(seed)
    matrix, _ = shadow_world.varied(6, 2, stream).matrix(shadows, stream)
    found = quantile.out_quantiles(matrix, level)
    for i in range(6):
        outside = matrix.shadows[~matrix.member[:, i], -1, i].astype(float)
        expected = np.quantile(outside, level) if len(outside) else np.nan
        assert found[i] == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)


def test_score_is_the_excess_over_the_quantile_of_nonmembers() -> None:
    stream = np.random.default_rng(1)
    matrix, _ = shadow_world.varied(20, 2, stream).matrix(60, stream)
    expected = matrix.target[-1] - quantile.out_quantiles(matrix, 0.95)
    np.testing.assert_allclose(quantile.score(matrix, RNG, alpha=0.05), expected)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_zero_is_the_threshold_of_the_false_positive_rate_aimed_at(alpha: float) -> None:
    stream = np.random.default_rng(2)
    matrix, member = shadow_world.alike(4000, distance=2).matrix(400, stream)
    said = quantile.score(matrix, RNG, alpha=alpha) > 0
    assert said[~member].mean() == pytest.approx(alpha, abs=0.02)
    assert said[member].mean() == pytest.approx(norm.sf(norm.isf(alpha) - 2), abs=0.03)


def by_features(n: int, shadows: int) -> tuple[SignalMatrix, np.ndarray, np.ndarray]:
    """Records whose mean φ is a smooth function of their features: the matrix, its members, the features."""
    stream = np.random.default_rng(3)
    features = stream.uniform(-2, 2, size=(n, 3))
    mean = (2 * np.sin(features[:, 0]) + features[:, 1])[:, None]
    known = shadow_world.World(mean, np.full((n, 1), 1.5), np.full((n, 1, 1), 0.25))
    matrix, member = known.matrix(shadows, stream)
    return matrix, member, features.astype(np.float32)


def test_regression_on_features_learns_the_quantile() -> None:
    matrix, _, features = by_features(1500, 12)
    found = quantile.regressed_quantiles(matrix, RNG, features, 0.9)
    expected = 2 * np.sin(features[:, 0]) + features[:, 1] + 0.5 * norm.ppf(0.9)
    assert np.abs(found - expected).mean() < 0.2


def test_features_serve_where_a_record_has_few_shadows() -> None:
    matrix, member, features = by_features(1500, 4)
    alone = shadow_world.auc(quantile.score(matrix, RNG, alpha=0.1), member)
    with_features = shadow_world.auc(
        quantile.regression(replace(matrix, features=features), RNG, alpha=0.1), member
    )
    assert with_features > alone + 0.02


def test_the_regression_sees_no_member() -> None:
    """φ of members can be anything: the quantile stays what it was."""
    matrix, _, features = by_features(200, 8)
    raised = matrix.shadows + 100 * matrix.member[:, None]
    expected = quantile.regressed_quantiles(matrix, np.random.default_rng(0), features, 0.9)
    found = quantile.regressed_quantiles(
        replace(matrix, shadows=raised), np.random.default_rng(0), features, 0.9
    )
    np.testing.assert_array_equal(found, expected)


def test_labels_are_a_feature() -> None:
    matrix, _, features = by_features(400, 8)
    shifted = matrix.shadows + 6 * matrix.labels.astype(np.float32)
    q = quantile.regressed_quantiles(replace(matrix, shadows=shifted), RNG, np.zeros_like(features), 0.5)
    assert q[matrix.labels == 1].mean() - q[matrix.labels == 0].mean() == pytest.approx(6, abs=0.5)


@given(st.integers(0, 10**6), st.integers(1, 30))
@settings(max_examples=40)
def test_sampled_pairs_are_kept_entries_each_at_most_once(seed: int, most: int) -> None:
    stream = np.random.default_rng(seed)
    kept = stream.random((4, 7)) < 0.6
    shadow, record = quantile.sampled_pairs(kept, stream, most)
    assert kept[shadow, record].all()
    assert len(set(zip(shadow, record, strict=True))) == len(shadow) == min(most, kept.sum())


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1])
def test_alpha_is_a_rate(alpha: float) -> None:
    matrix, _, _ = by_features(5, 3)
    with pytest.raises(ValueError, match="alpha"):
        quantile.score(matrix, RNG, alpha=alpha)
