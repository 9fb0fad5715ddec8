"""The likelihood ratio over several rounds: LiRA (Carlini et al. 2022) on the vector of a record's φ_t.

More rounds help only as far as their means and covariances are known, and few shadows tell little of one
record. What they say of it is therefore shrunk to what all records have in common, by as much as chance
explains: empirical Bayes (Efron & Morris 1973); for correlations as in Schäfer & Strimmer 2005, who shrink to
a fixed target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, EVERY_MODEL, attack
from attacks.matrix.lira import SMALLEST_VARIANCE, VARIANCE_FLOOR, Fit, fit_sides
from attacks.matrix.signal_matrix import SignalMatrix

ROUNDS = 8
# Neighbouring rounds may be all but copies of each other: no correlation counts as nearer to ±1 than this.
CORRELATION_RIDGE = 1e-3


@dataclass(frozen=True)
class RoundsModel:
    """φ over R rounds of n records: Gaussian, means middle ± difference / 2, one covariance for both sides.

    middle, difference: (n, R) float64; covariance: (n, R, R) float64, positive definite
    known: (n,) bool, whether any shadow told either side of the record
    """

    middle: np.ndarray
    difference: np.ndarray
    covariance: np.ndarray
    known: np.ndarray


@attack(
    "lira-rounds",
    sees=EVERY_MODEL,
    assumes=ALIKE_SHADOWS,
    source="LiRA on (φ_t)_t, shrunk",
    compares_with=("whole",),
    inside=True,
)
def score(matrix: SignalMatrix, rng: np.random.Generator, rounds: int = ROUNDS) -> np.ndarray:
    """Return the log-likelihood ratio of (φ_t) over ``rounds`` spread-out rounds t, (n,) float64.

    Between Gaussians of one covariance Σ that is dᵀ Σ⁻¹ (φ − m): d is the difference of the two means, m lies
    halfway between them (Fisher's discriminant). 0 for a record that was in every shadow or in none, or where
    one of the target's φ_t is not finite.
    """
    chosen = spread(matrix.rounds, rounds)
    model = fit_rounds(*fit_sides(matrix, chosen))
    phi = matrix.target[chosen].T.astype(np.float64)
    known = model.known & np.isfinite(phi).all(axis=1)
    deviation = np.where(known[:, None], phi - model.middle, 0.0)
    return np.einsum("ni,ni->n", model.difference, _solve(model.covariance, deviation))


def spread(rounds: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of ``count`` evenly spaced rounds, the last among them, or of all if fewer.

    rounds: (R,) int, ascending. Round 0 is left out where there are others: w_0 has seen no record.
    """
    trained = np.flatnonzero(rounds > 0) if (rounds > 0).any() else np.arange(len(rounds))
    wanted = rounds[-1] * np.arange(1, count + 1) / count
    return np.unique(trained[np.abs(rounds[trained][:, None] - wanted).argmin(axis=0)])


def fit_rounds(inside: Fit, outside: Fit) -> RoundsModel:
    """Fit means and covariances, each record's own shrunk to those that all records have in common.

    Log variances, correlations and differences of means have a known sampling variance; by what their
    estimates vary beyond it, records truly differ. An estimate keeps the share
    spread / (spread + sampling variance) of its distance from the common value.
    """
    known = (inside.count > 0) & (outside.count > 0)
    freedom = np.maximum(inside.count - 1, 0) + np.maximum(outside.count - 1, 0)
    scatter = inside.scatter + outside.scatter
    deviations = np.sqrt(_shrunk_variances(scatter, freedom))
    correlation = _shrunk_correlations(scatter, freedom)
    difference = (inside.mean - outside.mean) / deviations
    per_shadow = 1 / np.maximum(inside.count, 1) + 1 / np.maximum(outside.count, 1)
    difference = _shrunk_differences(difference, correlation * per_shadow[:, None, None], known)
    return RoundsModel(
        middle=(inside.mean + outside.mean) / 2,
        difference=difference * deviations,
        covariance=correlation * deviations[:, :, None] * deviations[:, None, :],
        known=known,
    )


def _shrunk_variances(scatter: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Variances (n, R): the logarithm of a sample variance has sampling variance ψ'(freedom / 2)."""
    from scipy.special import polygamma

    informed = freedom > 0
    if not informed.any():
        return np.ones(scatter.shape[:2])
    sums = np.einsum("nii->ni", scatter)
    pooled = np.maximum(sums.sum(axis=0) / freedom.sum(), SMALLEST_VARIANCE)
    own = np.log(np.maximum(sums / np.maximum(freedom, 1)[:, None], VARIANCE_FLOOR * pooled))
    common = own[informed].mean(axis=0)
    noise = polygamma(1, np.maximum(freedom, 1) / 2)[:, None]
    spread = np.maximum(own[informed].var(axis=0) - noise[informed].mean(), 0.0)
    weight = np.where(informed[:, None], spread / (spread + noise), 0.0)
    return np.exp(common + weight * (own - common))


def _shrunk_correlations(scatter: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Correlations (n, R, R), positive definite; one of a sample varies by (1 − ρ²)² / freedom."""
    identity = np.eye(scatter.shape[1])
    sums = np.sqrt(np.maximum(np.einsum("nii->ni", scatter), 0.0))
    varies = sums > 0
    sums = np.where(varies, sums, 1.0)
    own = np.where(identity == 1, 1.0, scatter / sums[:, :, None] / sums[:, None, :])
    informed = freedom > 0
    common = np.average(own, axis=0, weights=freedom) if informed.any() else identity
    noise = np.einsum("ns,st,nt->n", varies, (1 - common**2) ** 2, varies) / np.maximum(freedom, 1)
    observed = ((own - common) ** 2).sum(axis=(1, 2))  # both summed over all pairs of rounds that vary
    spread = max(float((observed - noise)[informed].mean()), 0.0) if informed.any() else 0.0
    weight = np.where(informed & (spread > 0), spread / np.maximum(spread + noise, 1e-300), 0.0)[
        :, None, None
    ]
    mixed = common + weight * (own - common)
    return (1 - CORRELATION_RIDGE) * mixed + CORRELATION_RIDGE * identity


def _shrunk_differences(own: np.ndarray, noise: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Differences of means (n, R), whose sampling covariances are ``noise`` (n, R, R)."""
    if not known.any():
        return np.zeros_like(own)
    common = own[known].mean(axis=0)
    apart = own - common
    spread = apart[known].T @ apart[known] / known.sum() - noise[known].mean(axis=0)
    values, vectors = np.linalg.eigh(spread)
    spread = vectors * np.maximum(values, 0.0) @ vectors.T
    return common + _solve(spread + noise, apart) @ spread


def _solve(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Solve (n, R, R) systems for (n, R) right-hand sides."""
    return np.linalg.solve(matrices, vectors[:, :, None])[:, :, 0]
