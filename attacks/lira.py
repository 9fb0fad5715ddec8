"""Likelihood-ratio attacks on signals from shadow federations (Carlini et al. 2022, 'LiRA').

A record's scaled logit φ is modelled as Gaussian, with one mean in the shadows that trained on the record and
another in those that did not; the score is how much better the first explains the target's φ. A shadow in
which a record's φ is not finite does not count for that record. A record about which nothing can be
said (in every shadow or in none, or the target's φ not finite) scores 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from attacks.signal_matrix import SignalMatrix

# With fewer shadows on a side (twice as many in all), the paper finds one variance for all records better.
FEW_SHADOWS = 32
# A record's variance counts as at least this share of the pooled one: no saturated φ is infinitely certain.
VARIANCE_FLOOR = 1e-4
SMALLEST_VARIANCE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Fit:
    """Gaussian statistics of n records over those shadows that were kept for each.

    count: (n,) float64, shadows kept; mean: (n, R) float64, 0 where there were none
    scatter: (n, R, R) float64, sums of products of deviations from the mean
    """

    count: np.ndarray
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def pooled(self) -> np.ndarray:
        """(R, R), covariance shared by all records: unbiased, so that few and many shadows compare."""
        freedom = np.maximum(self.count - 1, 0).sum()
        return self.scatter.sum(axis=0) / freedom if freedom else np.eye(self.mean.shape[1])


def fit(values: np.ndarray, kept: np.ndarray) -> Fit:
    """Fit every record over the shadows that ``kept`` names for it and in which all its values are finite.

    values: (S, R, n) floats; kept: (S, n) bool
    """
    _, rounds, n = values.shape
    count, mean, scatter = np.zeros(n), np.zeros((n, rounds)), np.zeros((n, rounds, rounds))
    for some in blocks(values):
        x = np.ascontiguousarray(values[:, :, some].transpose(2, 1, 0), dtype=np.float64)  # (b, R, S)
        used = kept[:, some].T & np.isfinite(x).all(axis=1)  # (b, S)
        count[some] = used.sum(axis=1)
        x = np.where(used[:, None], x, 0.0)
        mean[some] = x.sum(axis=2) / np.maximum(count[some], 1)[:, None]
        x = np.where(used[:, None], x - mean[some][:, :, None], 0.0)
        scatter[some] = x @ x.transpose(0, 2, 1)
    return Fit(count, mean, scatter)


def fit_sides(matrix: SignalMatrix, rounds: slice | np.ndarray) -> tuple[Fit, Fit]:
    """Fit φ at these rounds (indices) over the shadows that trained on the record, then over the others."""
    values = matrix.shadows[:, rounds]
    return fit(values, matrix.member), fit(values, ~matrix.member)


def blocks(values: np.ndarray) -> Iterator[slice]:
    """Yield slices of records of which one fits into the processor's cache (about 2 MiB in float64)."""
    size = max(1, 2**18 // max(1, values.shape[0] * values.shape[1]))
    return (slice(start, start + size) for start in range(0, values.shape[2], size))


def online(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return log N(φ; μ_in, σ_in²) − log N(φ; μ_out, σ_out²) at w_T, (n,) float64 (Algorithm 1 of the paper).

    The variances of a side are the records' own where it has `FEW_SHADOWS` shadows a record, else one pooled.
    """
    return _online(matrix, few=FEW_SHADOWS)


def online_fixed(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the same with one variance per side for all records, (n,) float64: steadier with few shadows."""
    return _online(matrix, few=np.inf)


def _online(matrix: SignalMatrix, few: float) -> np.ndarray:
    inside, outside = fit_sides(matrix, slice(-1, None))
    phi = matrix.target[-1].astype(np.float64)
    known = np.isfinite(phi) & (inside.count > 0) & (outside.count > 0)
    with np.errstate(invalid="ignore"):
        ratio = _log_density(phi, inside, few) - _log_density(phi, outside, few)
    return np.where(known, ratio, 0.0)


def offline(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return (φ − μ_out)/σ_out at w_T, (n,) float64 (the offline attack of the paper).

    The paper's score is Φ of it: the same order, but rounded to 1 beyond 8 standard deviations.
    """
    outside = fit_sides(matrix, slice(-1, None))[1]
    phi = matrix.target[-1].astype(np.float64)
    known = np.isfinite(phi) & (outside.count > 0)
    with np.errstate(invalid="ignore"):
        z = (phi - outside.mean[:, 0]) / np.sqrt(_variance(outside, FEW_SHADOWS))
    return np.where(known, z, 0.0)


def _log_density(phi: np.ndarray, side: Fit, few: float) -> np.ndarray:
    """Log N(φ; μ, σ²) up to the constant that both sides share, (n,)."""
    variance = _variance(side, few)
    return -0.5 * ((phi - side.mean[:, 0]) ** 2 / variance + np.log(variance))


def _variance(side: Fit, few: float) -> np.ndarray:
    """Variances (n,), all above 0: maximum likelihood per record, or one pooled where shadows are ``few``."""
    pooled = max(float(side.pooled[0, 0]), SMALLEST_VARIANCE)
    if np.median(side.count) < few:
        return np.full(len(side.count), pooled)
    own = side.scatter[:, 0, 0] / np.maximum(side.count, 1)
    own = np.where(side.count < FEW_SHADOWS / 2, pooled, own)
    return np.maximum(own, VARIANCE_FLOOR * pooled)
