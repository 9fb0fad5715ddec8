from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import polygamma
from scipy.stats import invgamma, norm, rankdata, t
from support import shadow_world

from attacks.matrix import bavaria, lira
from attacks.matrix.bavaria import Prior
from attacks.matrix.lira import Fit
from attacks.matrix.signal_matrix import SignalMatrix

RNG = np.random.default_rng(0)


def side_of(values: list[np.ndarray]) -> Fit:
    """The statistics of records with these φ each."""
    scatter = [((v - v.mean()) ** 2).sum() for v in values]
    return Fit(
        np.array([float(len(v)) for v in values]),
        np.array([[v.mean()] for v in values]),
        np.array(scatter)[:, None, None],
    )


def test_the_predictive_density_is_the_integral_over_what_is_unknown() -> None:
    """p(φ | data) = ∫∫ N(φ; μ, σ²) p(μ, σ² | data) dμ dσ², by Bayes' rule from the densities alone."""
    prior, values, phi = Prior(0.5, 0.7, 2.5, 1.5), np.array([0.1, 1.3, 2.2, -0.4]), 1.9

    def joint(variance: float, extra: list[float]) -> float:
        """∫ p(data and extra | μ, σ²) p(μ | σ²) dμ: they are jointly Gaussian."""
        data = np.append(values, extra)
        covariance = variance * (np.eye(len(data)) + 1 / prior.kappa)
        apart = data - prior.mean
        _, logdet = np.linalg.slogdet(2 * np.pi * covariance)
        density = np.exp(-0.5 * (apart @ np.linalg.solve(covariance, apart) + logdet))
        return float(density * invgamma.pdf(variance, prior.alpha, scale=prior.beta))

    both = [quad(joint, 0, np.inf, args=(extra,), epsabs=1e-13)[0] for extra in ([phi], [])]
    freedom, centre, scale = bavaria.predictive(side_of([values]), prior)
    assert t.pdf(phi, freedom[0], centre[0], scale[0]) == pytest.approx(both[0] / both[1], rel=1e-6)


def test_the_prior_is_read_off_many_records() -> None:
    stream = np.random.default_rng(1)
    alpha, beta, kappa, mean = 4.0, 6.0, 0.5, 1.5
    variance = invgamma.rvs(alpha, scale=beta, size=6000, random_state=stream)
    level = stream.normal(mean, np.sqrt(variance / kappa))
    values = [stream.normal(m, np.sqrt(v), 12) for m, v in zip(level, variance, strict=True)]
    found = bavaria.fit_prior(side_of(values))
    assert found.alpha == pytest.approx(alpha, rel=0.15) and found.beta == pytest.approx(beta, rel=0.15)
    assert found.mean == pytest.approx(mean, abs=0.1) and found.kappa == pytest.approx(kappa, rel=0.15)


@pytest.mark.parametrize("value", [1e-8, 0.01, 0.5, 3.0, 1e3, 1e9])
def test_the_inverse_of_trigamma(value: float) -> None:
    assert polygamma(1, bavaria._inverse_trigamma(value)) == pytest.approx(value, rel=1e-3)


def test_with_many_shadows_it_is_lira_with_a_variance_a_record() -> None:
    matrix = shadow_world.varied(40, 1, RNG).matrix(20_000, RNG)[0]
    np.testing.assert_allclose(bavaria.online(matrix, RNG), lira.online(matrix, RNG), rtol=0.01, atol=0.005)
    order = rankdata(bavaria.offline(matrix, RNG))
    assert np.corrcoef(order, rankdata(lira.offline(matrix, RNG)))[0, 1] > 0.999


def test_few_shadows_need_no_switch() -> None:
    """Variances that differ a hundredfold: better than one for all, and than each record's own."""
    gains = []
    for seed in range(6):
        stream = np.random.default_rng(seed)
        deviation = np.exp(stream.normal(0, 1.2, 1500))
        member = stream.random((13, 1500)) < 0.5
        phi = (deviation * (1.2 * member + stream.normal(size=member.shape))).astype(np.float32)
        inside = np.where(member[1:], 0, -1)
        nothing = np.zeros(1500, int)
        matrix = SignalMatrix(phi[:1], phi[1:, None], inside, np.array([1]), nothing, nothing)
        scores = (bavaria.online, lira.online_fixed, lambda m, r: lira._online(m, few=0))
        gains.append([shadow_world.auc(score(matrix, RNG), member[0]) for score in scores])
    ours, pooled, own = np.mean(gains, axis=0)
    assert ours > pooled + 0.005 and ours > own + 0.005


def test_far_tails_are_told_apart() -> None:
    matrix = shadow_world.varied(3, 1, RNG).matrix(60, RNG)[0]
    mean = matrix.shadows[:, -1].mean(axis=0)
    far = replace(matrix, target=(mean + 100 * np.array([1, 2, 3]))[None])
    found = bavaria.offline(far, RNG)
    assert np.isfinite(found).all() and len(set(found)) == 3
    assert norm.cdf(100) == 1
