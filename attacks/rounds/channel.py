"""The linear-Gaussian channel: memberships sent all at once, each by a signature of its own, through noise.

    x = Σ_i (m_i − π) s_i + Σ_u s_u + Σ_k e_k + ν,    m_i ∈ {0, 1},   E m_i = π

s_i, (q,): what the membership of record i adds to the update x (less its mean), centred over the population;
u: unknown members, draws from the population that the s_i are a sample of; e_k: what else differs from one
round of party k to the next, of which residuals e of simulated rounds are a sample; ν: noise of known
variance τ² in every coordinate. With one row f_j a signature, residual or further vector, of weight c_j,

    V = Σ_j c_j f_j f_jᵀ + λI,    A_i = s_iᵀ V_{−i}⁻¹ x,    H_i = s_iᵀ V_{−i}⁻¹ s_i

generalised least squares (Aitken 1936) reads membership i by A_i, of mean (m_i − π) H_i. V_{−i} is V without
the row of i itself. With more coordinates than rows V is a bad estimate of the covariance, so that the
deviation σ_i of A_i is not taken from it but from what each row does to A_i when V has not seen it: leaving
a row out, and with it i, has a closed form (Sherman & Morrison 1950).

All of it follows from inner products and one inverse. F having the rows √c_j f_j and M = (F Fᵀ + λI)⁻¹,

    c_i H_i = (1 − λM_ii) / (λM_ii),    √c_i A_i = (M F x)_i / (λM_ii)
    √(c_i c_j) f_jᵀ V_{−i}⁻¹ s_i = −M_ij / M_ii,    with V_{−ij}⁻¹: −M_ij / (λ (M_ii M_jj − M_ij²))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COLUMNS = 4096
"""Coordinates whose products are formed at a time."""


@dataclass(frozen=True, eq=False)
class Products:
    """Inner products of the m rows f_j, signatures first, and of k targets that are no rows; x: the update.

    gram: (m, m); received: (m,), f_jᵀx; cross: (m, k); squares: (k,), sᵀs; target_received: (k,), sᵀx
    """

    gram: np.ndarray
    received: np.ndarray
    cross: np.ndarray
    squares: np.ndarray
    target_received: np.ndarray

    @staticmethod
    def of(rows: np.ndarray, x: np.ndarray, targets: np.ndarray) -> Products:
        """Return the products of rows (m, q), an update (q,) and targets (k, q), in float64.

        Formed from a part of the coordinates at a time: in float64 all of them would take twice the memory.
        """
        columns = range(0, max(1, len(x)), COLUMNS)
        parts = [(array[..., start : start + COLUMNS] for array in (rows, x, targets)) for start in columns]
        return Products.total([Products._of_few(*part) for part in parts])

    @staticmethod
    def _of_few(rows: np.ndarray, x: np.ndarray, targets: np.ndarray) -> Products:
        rows, x, targets = (np.asarray(array, np.float64) for array in (rows, x, targets))
        square = np.einsum("kq,kq->k", targets, targets)
        return Products(rows @ rows.T, rows @ x, rows @ targets.T, square, targets @ x)

    def scaled(self, factor: float) -> Products:
        """Return all products times a factor."""
        return Products(*(factor * part for part in self._parts()))

    @staticmethod
    def total(parts: Sequence[Products]) -> Products:
        """Return the products of rows that are joined end to end, round after round."""
        each = zip(*(part._parts() for part in parts), strict=True)
        return Products(*(np.sum(arrays, axis=0) for arrays in each))

    def _parts(self) -> tuple[np.ndarray, ...]:
        return self.gram, self.received, self.cross, self.squares, self.target_received


@dataclass(frozen=True, eq=False)
class Variances:
    """What varies along the rows, whose weight c_j is the sum.

    bits: (m,), π(1 − π) for a record whose membership is decoded, and the variances of further vectors
    sampled: (m,), of what a row is one draw of: unknown members over signatures, parties over residuals
    noise: τ²
    """

    bits: np.ndarray
    sampled: np.ndarray
    noise: float = 0.0

    @property
    def weight(self) -> np.ndarray:
        """c, (m,)."""
        return self.bits + self.sampled


@dataclass(frozen=True, eq=False)
class Reading:
    """What the channel says of n memberships: A, of mean (m − π)·gain and standard deviation ``deviation``.

    amplitude: A, gain: H, deviation: σ, (n,) float64 each
    """

    amplitude: np.ndarray
    gain: np.ndarray
    deviation: np.ndarray

    def taken(self, index: np.ndarray) -> Reading:
        """Return the reading of the records ``index``, in that order."""
        return Reading(self.amplitude[index], self.gain[index], self.deviation[index])

    @property
    def separation(self) -> np.ndarray:
        """H/σ, (n,): how many deviations apart members and non-members are expected to lie."""
        return self.gain / self.deviation

    def standardised(self, prior: float) -> np.ndarray:
        """Return z = (A + πH)/σ, (n,): mean 0 and deviation 1 over non-members where the channel is true."""
        return (self.amplitude + prior * self.gain) / self.deviation

    def tempering(self, prior: float) -> float:
        """Return in (0, 1] σ² over the variance that is seen: what log likelihood ratios are multiplied by.

        Over the records A² is on average σ'² + π(1 − π)H², whoever is a member. Where the variance σ'² is
        larger than σ² the channel is not all true, and a Gaussian ratio is inversely proportional to it.
        """
        told = prior * (1 - prior) * np.mean(self.separation**2)
        return float(1 / max(1.0, np.mean((self.amplitude / self.deviation) ** 2) - told))

    def likelihood_ratio(self, prior: float) -> np.ndarray:
        """Return log p(A | member) − log p(A | non-member), (n,): H (A − (½ − π) H) / σ²."""
        return self.gain * (self.amplitude - (0.5 - prior) * self.gain) / self.deviation**2


def read_rows(products: Products, variances: Variances, ridge: float, count: int) -> Reading:
    """Read the memberships of the first ``count`` rows; λ = ridge + τ².

    Every row needs a weight above 0.
    """
    root, inverse, penalty = _inverse(products, variances, ridge)
    diagonal = np.diag(inverse)
    own, left = diagonal[:count], root[:count] * penalty * diagonal[:count]  # √c λM_ii
    amplitude = (inverse @ (root * products.received))[:count] / left
    gain = (1 - penalty * own) / (root[:count] * left)
    between = inverse[:, :count]  # (m, n), a row of V by a record
    seen = -penalty * between / (root[:, None] * left)
    # The rest of V once both are left out; a record beside itself counts for nothing.
    apart = np.outer(diagonal, own) - between**2
    apart[np.arange(count), np.arange(count)] = np.inf
    unseen = -between / (penalty * root[:, None] * root[:count] * apart)
    np.fill_diagonal(seen, 0.0)
    variance = variances.bits @ seen**2 + variances.sampled @ unseen**2
    if variances.noise:
        square = np.einsum("mn,mn->n", between, between)
        variance += variances.noise * (own - penalty * square) / left**2
    return Reading(amplitude, gain, np.sqrt(variance))


def read_targets(products: Products, variances: Variances, ridge: float) -> Reading:
    """Read the memberships of the targets, which are no rows: V has seen none of them."""
    root, inverse, penalty = _inverse(products, variances, ridge)
    scaled = root[:, None] * products.cross
    solved = inverse @ scaled  # (m, k), √c_j f_jᵀ V⁻¹ s
    amplitude = (products.target_received - (root * products.received) @ solved) / penalty
    explained = np.einsum("mk,mk->k", scaled, solved)
    gain = (products.squares - explained) / penalty
    seen = solved / root[:, None]
    unseen = seen / (penalty * np.diag(inverse))[:, None]
    variance = variances.bits @ seen**2 + variances.sampled @ unseen**2
    if variances.noise:
        square = np.einsum("mk,mk->k", solved, solved)
        variance += variances.noise * (products.squares - explained - penalty * square) / penalty**2
    return Reading(amplitude, gain, np.sqrt(variance))


def _inverse(products: Products, variances: Variances, ridge: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Return √c (m,), (F Fᵀ + λI)⁻¹ (m, m) by one Cholesky decomposition, and λ."""
    from scipy.linalg import lapack

    root, penalty = np.sqrt(variances.weight), ridge + variances.noise
    gram = root[:, None] * products.gram * root
    gram[np.diag_indices_from(gram)] += penalty
    factor, failed = lapack.dpotrf(gram, lower=True, overwrite_a=True)
    if failed:
        raise np.linalg.LinAlgError(f"the covariance is not positive definite at λ = {penalty:g}")
    inverse, _ = lapack.dpotri(factor, lower=True, overwrite_c=True)
    return root, np.tril(inverse) + np.tril(inverse, -1).T, penalty
