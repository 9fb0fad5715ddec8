from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_ndtr
from scipy.stats import norm, rankdata, t
from support import shadow_world

from attacks.matrix import lira
from attacks.matrix.signal_matrix import SignalMatrix

RNG = np.random.default_rng(0)


def world(seed: int, n: int, shadows: int, share: float = 0.5) -> SignalMatrix:
    stream = np.random.default_rng(seed)
    return shadow_world.varied(n, 1, stream).matrix(shadows, stream, share)[0]


def sides(matrix: SignalMatrix, i: int) -> tuple[np.ndarray, np.ndarray]:
    phi, member = matrix.shadows[:, -1, i].astype(float), matrix.member[:, i]
    return phi[member], phi[~member]


def test_online_is_the_log_ratio_of_scipys_normal_densities() -> None:
    matrix = world(0, n=25, shadows=200)
    expected = []
    for i, phi in enumerate(matrix.target[-1].astype(float)):
        inside, outside = sides(matrix, i)
        densities = [norm.logpdf(phi, side.mean(), side.std()) for side in (inside, outside)]
        expected.append(densities[0] - densities[1])
    np.testing.assert_allclose(lira.online(matrix, RNG), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shadows", [14, 40])
def test_one_variance_serves_all_records_where_shadows_are_few(shadows: int) -> None:
    matrix = world(1, n=25, shadows=shadows)
    both = [sides(matrix, i) for i in range(25)]
    assert all(len(inside) and len(outside) for inside, outside in both)
    pooled = []
    for values in zip(*both, strict=True):
        freedom = sum(len(v) - 1 for v in values)
        pooled.append(np.sqrt(sum(((v - v.mean()) ** 2).sum() for v in values) / freedom))
    expected = [
        norm.logpdf(phi, inside.mean(), pooled[0]) - norm.logpdf(phi, outside.mean(), pooled[1])
        for phi, (inside, outside) in zip(matrix.target[-1].astype(float), both, strict=True)
    ]
    np.testing.assert_allclose(lira.online(matrix, RNG), expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(lira.online_fixed(matrix, RNG), expected, rtol=1e-6, atol=1e-8)


def test_each_side_has_its_own_rule() -> None:
    """With one member in eight, the shadows without a record are enough for its own variance long before."""
    matrix = world(2, n=40, shadows=100, share=1 / 8)
    outside = np.array([sides(matrix, i)[1].var() for i in range(40)])
    means = np.array([sides(matrix, i)[1].mean() for i in range(40)])
    expected = (matrix.target[-1] - means) / np.sqrt(outside)
    np.testing.assert_allclose(lira.offline(matrix, RNG), expected, rtol=1e-5)
    assert np.median(matrix.member.sum(axis=0)) < lira.FEW_SHADOWS
    # What the online score adds is a quadratic in φ − μ_in, with the same two coefficients for all records.
    added = lira.online(matrix, RNG) - (0.5 * expected**2 + 0.5 * np.log(outside))
    distance = matrix.target[-1] - np.array([sides(matrix, i)[0].mean() for i in range(40)])
    slope, offset = np.polyfit(distance**2, added, 1)
    np.testing.assert_allclose(added, slope * distance**2 + offset, atol=1e-4)
    assert offset == pytest.approx(0.5 * np.log(-2 * slope), abs=1e-4)


def test_offline_orders_records_as_phi_of_the_standardised_signal_does() -> None:
    matrix = world(3, n=300, shadows=150)
    fits = [sides(matrix, i)[1] for i in range(300)]
    z = [(phi - v.mean()) / v.std() for phi, v in zip(matrix.target[-1].astype(float), fits, strict=True)]
    np.testing.assert_allclose(lira.offline(matrix, RNG), z, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(rankdata(lira.offline(matrix, RNG)), rankdata(log_ndtr(z)))


def test_offline_tells_apart_what_phi_rounds_to_certainty() -> None:
    matrix = world(4, n=3, shadows=100)
    mean, spread = (np.array([f(sides(matrix, i)[1]) for i in range(3)]) for f in (np.mean, np.std))
    far = replace(matrix, target=(mean + spread * [20, 40, 80])[None])
    assert (norm.cdf([20, 40, 80]) == 1).all()
    np.testing.assert_allclose(lira.offline(far, RNG), [20, 40, 80], rtol=1e-6)


def test_scores_equal_those_of_tensorflow_privacy() -> None:
    matrix, known = shadow_world.published()
    np.testing.assert_allclose(lira.online(matrix, RNG), known["lira_per_record"], rtol=1e-9)
    fixed = lira.online_fixed(matrix, RNG)
    np.testing.assert_array_equal(rankdata(fixed), rankdata(known["lira_fixed"]))
    # Theirs divides by the number of shadows, ours by the degrees of freedom: 40 and 39 on either side.
    slope, offset = np.polyfit(fixed, known["lira_fixed"], 1)
    assert slope == pytest.approx(40 / 39, rel=1e-9)
    np.testing.assert_allclose(slope * fixed + offset, known["lira_fixed"], rtol=1e-9)


@pytest.mark.parametrize("distance", [0.5, 1.5, 3.0])
def test_the_likelihood_ratio_is_optimal_among_equal_gaussians(distance: float) -> None:
    """Its AUC is Φ(d/√2) (4000 records: one deviation of the estimate is at most .009)."""
    stream = np.random.default_rng(5)
    matrix, member = shadow_world.alike(4000, distance=distance).matrix(256, stream)
    best = norm.cdf(distance / np.sqrt(2))
    for score in (lira.online, lira.online_fixed, lira.offline):
        assert shadow_world.auc(score(matrix, RNG), member) == pytest.approx(best, abs=0.025), score.__name__


def test_a_smaller_variance_of_members_is_a_signal_of_its_own() -> None:
    """Equal means, but members vary half as much: the online score sees it, the offline one does not."""
    stream = np.random.default_rng(6)
    member = stream.random((301, 2000)) < 0.5
    phi = (stream.normal(size=member.shape) * np.where(member, 0.5, 1.0)).astype(np.float32)
    zeros = np.zeros(2000, dtype=np.int8)
    inside = np.where(member[1:], 0, -1).astype(np.int8)
    matrix = SignalMatrix(phi[:1], phi[1:, None], inside, np.array([1]), zeros, zeros)
    assert shadow_world.auc(lira.online(matrix, RNG), member[0]) > 0.65
    assert abs(shadow_world.auc(lira.offline(matrix, RNG), member[0]) - 0.5) < 0.05


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.floats(-50, 50), st.floats(0.1, 10), st.integers(6, 90))
def test_units_of_the_signal_do_not_matter(seed: int, shift: float, scale: float, shadows: int) -> None:
    """Every record shifted by its own constant, and all scaled alike: the same scores."""
    matrix = world(seed, n=6, shadows=shadows)
    matrix = replace(matrix, shadows=matrix.shadows.astype(float), target=matrix.target.astype(float))
    shifts = shift * np.arange(6)
    moved = replace(
        matrix, shadows=scale * (matrix.shadows + shifts), target=scale * (matrix.target + shifts)
    )
    for score in (lira.online, lira.online_fixed, lira.offline):
        np.testing.assert_allclose(score(moved, RNG), score(matrix, RNG), rtol=1e-6, atol=1e-6)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(1, 4))
def test_fit_is_numpys_mean_and_covariance(seed: int, shadows: int, rounds: int) -> None:
    stream = np.random.default_rng(seed)
    matrix = shadow_world.varied(5, rounds, stream).matrix(shadows, stream)[0]
    for side, kept in zip(lira.fit_sides(matrix, slice(None)), (matrix.member, ~matrix.member), strict=True):
        for i in range(5):
            values = matrix.shadows[kept[:, i], :, i].astype(float)
            assert side.count[i] == len(values)
            if len(values):
                np.testing.assert_allclose(side.mean[i], values.mean(axis=0), atol=1e-9)
                around = values - values.mean(axis=0)
                np.testing.assert_allclose(side.scatter[i], around.T @ around, atol=1e-9)


def test_a_saturated_record_is_not_infinitely_certain() -> None:
    """Where φ never varied in the shadows, a share of the others' variance keeps the score finite."""
    matrix = world(8, n=10, shadows=200)
    shadows, target = matrix.shadows.copy(), matrix.target.copy()
    shadows[:, :, 0], target[:, 0] = 4.0, 5.0
    shadows[:, :, 1], target[:, 1] = np.where(matrix.member[:, None, 1], 6.0, 2.0), 5.0
    found = lira.online(replace(matrix, shadows=shadows, target=target), RNG)
    assert np.isfinite(found).all()
    assert found[1] > found[2:].max()


def test_a_record_of_few_shadows_has_the_pooled_variance() -> None:
    """Where the others have enough of their own: two values say nothing of a variance."""
    matrix = world(9, n=30, shadows=200)
    inside = matrix.inside.copy()
    inside[:, 0] = np.where(np.arange(200) < 198, 0, -1)
    matrix = replace(matrix, inside=inside)
    _, outside = lira.fit_sides(matrix, slice(-1, None))
    mean = matrix.shadows[198:, -1, 0].astype(float).mean()
    expected = (float(matrix.target[-1, 0]) - mean) / np.sqrt(outside.pooled[0, 0])
    assert lira.offline(matrix, RNG)[0] == pytest.approx(expected)


def test_every_records_own_test_is_students() -> None:
    """p of 'one more value of the same Gaussian', from the two-sample statistic of scipy with n and 1."""
    matrix = world(5, n=20, shadows=60)
    for i, score in enumerate(lira.per_record(matrix, RNG)):
        outside = sides(matrix, i)[1]
        phi, n = float(matrix.target[-1, i]), len(outside)
        low, high = t.interval(1 - 2e-3, n - 1, outside.mean(), outside.std(ddof=1) * np.sqrt(1 + 1 / n))
        assert (score >= 3) == (phi >= high), "p = .001 ends the two-sided prediction interval of .998"
        assert (score <= -np.log10(0.999)) == (phi <= low)


@pytest.mark.parametrize("shadows", [10, 40])
def test_every_record_is_accused_wrongly_as_often_as_is_said(shadows: int) -> None:
    """Whatever its spread, with few shadows as with many; one pooled cut accuses those of large spread."""
    stream, n, draws = np.random.default_rng(7), 40, 1500
    spread = np.repeat([0.2, 3.0], n // 2)
    alarms, pooled = np.zeros(n), np.zeros(n)
    for _ in range(draws):
        phi = (spread * stream.normal(size=(shadows + 1, 1, n))).astype(np.float32)
        matrix = SignalMatrix(
            target=phi[-1], shadows=phi[:-1], inside=np.full((shadows, n), -1), rounds=np.array([3]),
            labels=np.zeros(n, np.int64), party=np.full(n, -1),
        )  # fmt: skip
        alarms += lira.per_record(matrix, RNG) >= 2
        pooled += phi[-1, 0] >= norm.isf(0.01) * spread.max() / 2
    # 40 records: a range of four standard errors of each one's share.
    reach = 4 * np.sqrt(0.01 * 0.99 / draws)
    assert np.abs(alarms / draws - 0.01).max() < reach
    assert np.abs(pooled / draws - 0.01).max() > reach


def test_a_record_of_too_few_shadows_is_not_accused() -> None:
    matrix = world(6, n=5, shadows=12)
    member = np.full((12, 5), 0)
    member[:2] = -1
    assert not lira.per_record(replace(matrix, inside=member), RNG).any()
