from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import polygamma
from scipy.stats import multivariate_normal, norm
from support import shadow_world

from attacks.matrix import lira, lira_rounds
from attacks.matrix.signal_matrix import SignalMatrix

RNG = np.random.default_rng(0)


def world(seed: int, n: int, rounds: int, shadows: int) -> tuple[SignalMatrix, np.ndarray]:
    stream = np.random.default_rng(seed)
    return shadow_world.varied(n, rounds, stream).matrix(shadows, stream)


def unshrunk(matrix: SignalMatrix) -> np.ndarray:
    """Fisher's discriminant of every record by itself."""
    scores = []
    for i, phi in enumerate(matrix.target.T.astype(float)):
        values, member = matrix.shadows[:, :, i].astype(float), matrix.member[:, i]
        inside, outside = values[member], values[~member]
        covariance = (np.cov(inside.T) + np.cov(outside.T)) / 2
        means = inside.mean(axis=0), outside.mean(axis=0)
        scores.append((means[0] - means[1]) @ np.linalg.solve(covariance, phi - np.mean(means, axis=0)))
    return np.array(scores)


@pytest.mark.parametrize("shadows", [9, 200])
def test_score_is_the_log_ratio_of_scipys_multivariate_densities(shadows: int) -> None:
    matrix, _ = world(0, n=20, rounds=4, shadows=shadows)
    model = lira_rounds.fit_rounds(*lira.fit_sides(matrix, slice(None)))
    expected = []
    for i, phi in enumerate(matrix.target.T.astype(float)):
        half, cov = model.difference[i] / 2, model.covariance[i]
        inside = multivariate_normal.logpdf(phi, model.middle[i] + half, cov)
        expected.append(inside - multivariate_normal.logpdf(phi, model.middle[i] - half, cov))
    np.testing.assert_allclose(lira_rounds.score(matrix, RNG), expected, rtol=1e-6, atol=1e-8)


def test_fit_is_a_slow_transcription_of_empirical_bayes() -> None:
    n, rounds = 40, 3
    matrix, _ = world(1, n, rounds, shadows=30)
    inside, outside = lira.fit_sides(matrix, slice(None))
    freedom = inside.count + outside.count - 2
    scatter = inside.scatter + outside.scatter

    variance = np.empty((n, rounds))
    for t in range(rounds):
        logs = np.log(scatter[:, t, t] / freedom)
        noise = polygamma(1, freedom / 2)
        spread = logs.var() - noise.mean()
        assert spread > 0
        for i in range(n):
            share = spread / (spread + noise[i])
            variance[i, t] = np.exp(share * logs[i] + (1 - share) * logs.mean())

    own = np.array([s / np.sqrt(np.outer(np.diag(s), np.diag(s))) for s in scatter])
    common = sum(k * r for k, r in zip(freedom, own, strict=True)) / freedom.sum()
    pairs = [(s, t) for s in range(rounds) for t in range(rounds) if s != t]
    noise = np.array([sum((1 - common[p] ** 2) ** 2 for p in pairs) / k for k in freedom])
    observed = np.array([sum((r[p] - common[p]) ** 2 for p in pairs) for r in own])
    spread = (observed - noise).mean()
    assert spread > 0
    correlation = [
        0.999 * (common + spread / (spread + noise[i]) * (own[i] - common)) + 0.001 * np.eye(rounds)
        for i in range(n)
    ]

    deviation = np.sqrt(variance)
    own = (inside.mean - outside.mean) / deviation
    noise = [c * (1 / a + 1 / b) for c, a, b in zip(correlation, inside.count, outside.count, strict=True)]
    between = np.cov(own.T, bias=True) - np.mean(noise, axis=0)
    assert np.linalg.eigvalsh(between).min() > 0
    posterior = [
        own.mean(axis=0) + between @ np.linalg.inv(between + noise[i]) @ (own[i] - own.mean(axis=0))
        for i in range(n)
    ]

    model = lira_rounds.fit_rounds(inside, outside)
    np.testing.assert_allclose(model.middle, (inside.mean + outside.mean) / 2)
    np.testing.assert_allclose(model.difference, posterior * deviation, rtol=1e-8)
    for i in range(n):
        expected = correlation[i] * np.outer(deviation[i], deviation[i])
        np.testing.assert_allclose(model.covariance[i], expected, rtol=1e-8)


def test_with_many_shadows_nothing_is_shrunk() -> None:
    matrix, _ = world(2, n=30, rounds=3, shadows=20_000)
    own, found = unshrunk(matrix), lira_rounds.score(matrix, RNG)
    np.testing.assert_allclose(found, own, atol=0.05 * own.std())


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("shadows", [16, 256])
def test_optimal_among_gaussians_of_one_kind(rounds: int, shadows: int) -> None:
    """Its AUC is Φ(√(dᵀ Σ⁻¹ d / 2)), which 16 shadows nearly reach: the records pool what is common."""
    known = shadow_world.alike(3000, rounds, distance=1.2, correlation=0.6)
    matrix, member = known.matrix(shadows, np.random.default_rng(3))
    d, covariance = known.difference[0], known.covariance[0]
    best = norm.cdf(np.sqrt(d @ np.linalg.solve(covariance, d) / 2))
    found = shadow_world.auc(lira_rounds.score(matrix, RNG), member)
    assert found == pytest.approx(best, abs=0.03 if shadows == 256 else 0.06)


def test_more_rounds_than_shadows_do_no_harm() -> None:
    """24 rounds from 12 shadows, where no record's own covariance has full rank."""
    known = shadow_world.alike(1500, 24, distance=1.2, correlation=0.8)
    matrix, member = known.matrix(12, np.random.default_rng(4))
    all_rounds = shadow_world.auc(lira_rounds.score(matrix, RNG, rounds=24), member)
    assert all_rounds > shadow_world.auc(lira.online(matrix, RNG), member) + 0.05


def test_shrinking_serves_records_that_differ() -> None:
    gains = []
    for seed in range(3):
        matrix, member = world(seed, n=1000, rounds=5, shadows=20)
        found = shadow_world.auc(lira_rounds.score(matrix, RNG), member)
        gains.append(found - shadow_world.auc(unshrunk(matrix), member))
    assert min(gains) > 0.004


def test_several_rounds_beat_the_last_one() -> None:
    matrix, member = world(5, n=2000, rounds=5, shadows=128)
    several = shadow_world.auc(lira_rounds.score(matrix, RNG), member)
    assert several > shadow_world.auc(lira.online(matrix, RNG), member) + 0.05


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(-30, 30), st.integers(6, 60))
def test_a_constant_added_to_a_record_changes_nothing(seed: int, shift: float, shadows: int) -> None:
    matrix, _ = world(seed, n=6, rounds=3, shadows=shadows)
    matrix = replace(matrix, shadows=matrix.shadows.astype(float), target=matrix.target.astype(float))
    shifts = shift * np.arange(18).reshape(3, 6)
    moved = replace(matrix, shadows=matrix.shadows + shifts, target=matrix.target + shifts)
    np.testing.assert_allclose(
        lira_rounds.score(moved, RNG), lira_rounds.score(matrix, RNG), rtol=1e-6, atol=1e-6
    )


def test_a_round_without_variance_counts_for_nothing() -> None:
    """As w_0, which all shadows share and which has seen no record."""
    matrix, _ = world(6, n=50, rounds=3, shadows=60)
    padded = replace(
        matrix,
        target=np.concatenate([np.ones((1, 50), np.float32), matrix.target]),
        shadows=np.concatenate([np.ones((60, 1, 50), np.float32), matrix.shadows], axis=1),
        rounds=np.arange(1, 5),
    )
    found, expected = lira_rounds.score(padded, RNG), lira_rounds.score(matrix, RNG)
    np.testing.assert_allclose(found, expected, atol=0.05 * expected.std())


@pytest.mark.parametrize(
    ("rounds", "count", "expected"),
    [
        (range(41), 4, [10, 20, 30, 40]),
        (range(1, 41), 8, [5, 10, 15, 20, 25, 30, 35, 40]),
        (range(4), 8, [1, 2, 3]),
        ([10, 20, 30, 40], 8, [10, 20, 30, 40]),
        ([0, 7], 1, [7]),
        ([0], 8, [0]),
    ],
)
def test_rounds_are_spread_and_include_the_last(rounds: list[int], count: int, expected: list[int]) -> None:
    rounds = np.array(rounds)
    assert rounds[lira_rounds.spread(rounds, count)].tolist() == expected


def test_differences_that_chance_explains_are_taken_as_one() -> None:
    """Records that vary less than their sampling error does: nothing tells them apart."""
    own = np.random.default_rng(7).normal(size=(100, 3)) * 0.1 + [1.0, 2.0, 3.0]
    noise = np.broadcast_to(np.eye(3), (100, 3, 3))
    found = lira_rounds._shrunk_differences(own, noise, np.ones(100, dtype=bool))
    np.testing.assert_allclose(found, np.broadcast_to(own.mean(axis=0), (100, 3)), atol=1e-12)
