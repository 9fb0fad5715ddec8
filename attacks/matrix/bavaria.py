"""LiRA with Bayesian variances (Brännvall 2026, 'BaVarIA').

φ of a record is Gaussian on either side, its mean and variance unknown, with the conjugate normal-inverse-
gamma prior that all records of the side have in common:

    σ² ~ InvGamma(α₀, β₀),   μ | σ² ~ N(m₀, σ²/κ₀)

What the shadows of a side say of a record gives it a posterior; the score is the logarithm of the ratio of
the two predictive densities, Student's t with 2α degrees of freedom (the paper's BaVarIA-t). So no number of
shadows has to be chosen from which on a record has a variance of its own.

As we read the paper, the prior is pooled over the records; how is ours to say: α₀ and β₀ by the moments of
the records' log variances (Smyth 2004, §6.2), m₀ the mean of the records' means, κ₀ from how far apart these
lie.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, FINAL_MODEL, attack
from attacks.matrix.lira import SMALLEST_VARIANCE, VARIANCE_FLOOR, Fit, fit_sides
from attacks.matrix.signal_matrix import SignalMatrix

MOST_FREEDOM = 1e6
"""2α₀ where the records' variances differ by no more than chance: one for all."""
SMALLEST_KAPPA = 1e-6


@dataclass(frozen=True)
class Prior:
    """m₀, κ₀, α₀ and β₀ of a side."""

    mean: float
    kappa: float
    alpha: float
    beta: float


@attack(
    "bavaria",
    variant=True,
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="Brännvall 2026",
    compares_with=("whole",),
    inside=True,
)
def online(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return log t(φ; in) − log t(φ; out) at w_T, (n,) float64; 0 where nothing can be said of a record."""
    inside, outside = fit_sides(matrix, slice(-1, None))
    phi = matrix.target[-1].astype(np.float64)
    known = np.isfinite(phi) & (inside.count > 0) & (outside.count > 0)
    filled = np.where(known, phi, 0.0)
    ratio = _log_density(filled, inside) - _log_density(filled, outside)
    return np.where(known, ratio, 0.0)


@attack(
    "bavaria-offline",
    variant=True,
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="Brännvall 2026",
    compares_with=("whole",),
)
def offline(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return −log P(t > φ) of the predictive density of non-members, (n,) float64.

    0 where it is not known.
    """
    from scipy.stats import t

    outside = fit_sides(matrix, slice(-1, None))[1]
    phi = matrix.target[-1].astype(np.float64)
    known = np.isfinite(phi) & (outside.count > 0)
    freedom, centre, scale = predictive(outside, fit_prior(outside))
    tail = t.logsf((np.where(known, phi, 0.0) - centre) / scale, freedom)
    return np.where(known, -np.maximum(tail, -1e4), 0.0)  # beyond what the tail's logarithm resolves


def _log_density(phi: np.ndarray, side: Fit) -> np.ndarray:
    from scipy.stats import t

    freedom, centre, scale = predictive(side, fit_prior(side))
    return np.asarray(t.logpdf(phi, freedom, centre, scale))


def predictive(side: Fit, prior: Prior) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return degrees of freedom, location and scale of each record's Student's t, (n,) each."""
    count, mean, scatter = side.count, side.mean[:, 0], side.scatter[:, 0, 0]
    kappa, alpha = prior.kappa + count, prior.alpha + count / 2
    centre = (prior.kappa * prior.mean + count * mean) / kappa
    apart = prior.kappa * count * (mean - prior.mean) ** 2 / kappa
    beta = prior.beta + (np.maximum(scatter, 0.0) + apart) / 2
    return 2 * alpha, centre, np.sqrt(beta * (kappa + 1) / (alpha * kappa))


def fit_prior(side: Fit) -> Prior:
    """Return the prior of a side by the moments of the records' means and log variances."""
    from scipy.special import polygamma, psi

    pooled = max(float(side.pooled[0, 0]), SMALLEST_VARIANCE)
    told = side.count > 0
    if not told.any():
        return Prior(0.0, SMALLEST_KAPPA, 0.5, 0.5 * pooled)
    means, counts = side.mean[told, 0], side.count[told]
    between = float(means.var()) - pooled * float(np.mean(1 / counts))
    kappa = max(pooled / max(between, pooled / MOST_FREEDOM), SMALLEST_KAPPA)
    several = side.count > 1
    freedom = side.count[several] - 1
    if several.sum() < 2:
        return Prior(float(means.mean()), kappa, 0.5, 0.5 * pooled)
    own = np.maximum(side.scatter[several, 0, 0] / freedom, VARIANCE_FLOOR * pooled)
    logs = np.log(own) - psi(freedom / 2) + np.log(freedom / 2)
    excess = float(logs.var(ddof=1) - np.mean(polygamma(1, freedom / 2)))
    prior_freedom = min(2 * _inverse_trigamma(excess), MOST_FREEDOM) if excess > 0 else MOST_FREEDOM
    variance = np.exp(logs.mean() + psi(prior_freedom / 2) - np.log(prior_freedom / 2))
    return Prior(float(means.mean()), kappa, prior_freedom / 2, prior_freedom * float(variance) / 2)


def _inverse_trigamma(value: float) -> float:
    """Return y with ψ'(y) = ``value`` > 0, by Newton's method on 1/ψ' (Smyth 2004, appendix)."""
    from scipy.special import polygamma

    if value > 1e7:
        return float(1 / np.sqrt(value))
    if value < 1e-6:
        return 1 / value
    y = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, y))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, y))
        y += step
        if -step / y < 1e-10:
            break
    return y
