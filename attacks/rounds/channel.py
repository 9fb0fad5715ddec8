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

Rows less their own mean add up to 0, so that where they are fewer than the coordinates the others tell of
one that is left out all but its sign. Such rows have a further coordinate, how much of the mean was taken off
each, in which x is 0: the intercept of a regression. Leaving out i is then leaving it out of the mean too.

All of it follows from inner products and one inverse. F having the rows √c_j f_j, Z their intercepts, and
M = (F Fᵀ + Z Zᵀ + λI)⁻¹, B = I − λM − M Z Zᵀ is what a row in x does to the reading by another,

    c_i H_i = B_ii / (λM_ii),    √c_i A_i = (M F x)_i / (λM_ii)
    √(c_i c_j) s_iᵀ V_{−i}⁻¹ f_j = B_ij / (λM_ii),
    with V_{−ij}⁻¹: (M_jj B_ij − M_ij B_jj) / (λ (M_ii M_jj − M_ij²)), without intercepts −M_ij / …
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
        some = [slice(start, start + COLUMNS) for start in range(0, max(1, len(x)), COLUMNS)]
        return Products.total([Products._of_few(rows[:, at], x[at], targets[:, at]) for at in some])

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
        if len(parts) == 1:
            return parts[0]
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
class Intercepts:
    """How much of which of g means was taken off each row, (m, g), and each target, (k, g), float64.

    Rows of a mean square of 1 are assumed: the intercepts then have a prior that is next to none.
    """

    rows: np.ndarray
    targets: np.ndarray


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

    @staticmethod
    def joined(parts: Sequence[Reading]) -> Reading:
        """Return the readings one after the other."""
        each = zip(*((part.amplitude, part.gain, part.deviation) for part in parts), strict=True)
        return Reading(*(np.concatenate(arrays) for arrays in each))

    @property
    def separation(self) -> np.ndarray:
        """H/σ, (n,): how many deviations apart members and non-members are expected to lie."""
        return self.gain / self.deviation

    def standardised(self, prior: float | np.ndarray) -> np.ndarray:
        """Return z = (A + πH)/σ, (n,): mean 0 and deviation 1 over non-members where the channel is true."""
        return (self.amplitude + prior * self.gain) / self.deviation

    def tempering(self, prior: float | np.ndarray) -> float:
        """Return in (0, 1] σ² over the variance that is seen: what log likelihood ratios are multiplied by.

        Over the records A² is on average σ'² + π(1 − π)H², whoever is a member. Where the variance σ'² is
        larger than σ² the channel is not all true, and a Gaussian ratio is inversely proportional to it.
        """
        seen, told = self._squares(prior)
        return 1 / max(1.0, seen - told)

    def stretching(self, prior: float | np.ndarray) -> float:
        """Return γ ≥ 1, how many times its gain A has if what it spreads beyond σ² + π(1 − π)H² is gain.

        As where σ² leaves nothing out: then log likelihood ratios are multiplied by γ, and not tempered.
        """
        seen, told = self._squares(prior)
        return float(np.sqrt((seen - 1) / told)) if seen > 1 + told > 1 else 1.0

    def _squares(self, prior: float | np.ndarray) -> tuple[float, float]:
        """Return the mean of A²/σ², and of what members add to it where the channel is true."""
        told = np.mean(prior * (1 - prior) * self.separation**2)
        return float(np.mean((self.amplitude / self.deviation) ** 2)), float(told)

    def likelihood_ratio(self, prior: float | np.ndarray) -> np.ndarray:
        """Return log p(A | member) − log p(A | non-member), (n,): H (A − (½ − π) H) / σ²."""
        return self.gain * (self.amplitude - (0.5 - prior) * self.gain) / self.deviation**2


def read_rows(
    products: Products, variances: Variances, ridge: float, count: int, intercepts: Intercepts | None = None
) -> Reading:
    """Read the memberships of the first ``count`` rows; λ = ridge + τ².

    Every row needs a weight above 0.
    """
    system = _system(products, variances, ridge, intercepts)
    root, inverse, penalty = system.root, system.inverse, system.penalty
    diagonal = np.diag(inverse)
    own, left = diagonal[:count], root[:count] * penalty * diagonal[:count]  # √c λM_ii
    amplitude = (inverse @ (root * products.received))[:count] / left
    between = inverse[:, :count]  # (m, n), a row of V by a record
    # √(c_i c_j) f_iᵀ V⁻¹ (s_j without its intercept), (m, n): what row j in x does to the reading of i.
    effect = -penalty * between - system.offset @ system.solved[:count].T
    effect[np.arange(count), np.arange(count)] += 1
    itself = system.itself
    gain = itself[:count] / (root[:count] * left)
    seen = effect / (root[:, None] * left)
    # The rest of V once both are left out; a record beside itself counts for nothing.
    apart = np.outer(diagonal, own) - between**2
    apart[np.arange(count), np.arange(count)] = np.inf
    unseen = (diagonal[:, None] * effect - between * itself[:, None]) / (
        penalty * root[:, None] * root[:count] * apart
    )
    np.fill_diagonal(seen, 0.0)
    variance = variances.bits @ seen**2 + variances.sampled @ unseen**2
    if variances.noise:
        square = np.einsum("mn,mn->n", between, between)
        offset = np.einsum("ng,ng->n", system.solved[:count], system.solved[:count])
        variance += variances.noise * (own - penalty * square - offset) / left**2
    return Reading(amplitude, gain, np.sqrt(variance))


def read_targets(
    products: Products, variances: Variances, ridge: float, intercepts: Intercepts | None = None
) -> Reading:
    """Read the memberships of the targets, which are no rows: V has seen none of them."""
    system = _system(products, variances, ridge, intercepts)
    root, inverse, penalty = system.root, system.inverse, system.penalty
    offset = np.zeros((products.cross.shape[1], 0)) if intercepts is None else intercepts.targets  # (k, g)
    plain = root[:, None] * products.cross  # (m, k), F s
    scaled = plain + system.offset @ offset.T  # F of the target with its intercept
    solved = inverse @ scaled  # √c_j f_jᵀ V⁻¹ s
    remaining = offset.T - system.offset.T @ solved  # (g, k), λ times the intercepts of V⁻¹ s
    amplitude = (products.target_received - (root * products.received) @ solved) / penalty
    gain = (products.squares - np.einsum("mk,mk->k", plain, solved)) / penalty
    effect = solved - system.offset @ remaining / penalty  # √c_j (s_j without its intercept)ᵀ V⁻¹ s
    seen = effect / root[:, None]
    unseen = seen + solved * (system.itself / (root * penalty * np.diag(inverse)))[:, None]
    variance = variances.bits @ seen**2 + variances.sampled @ unseen**2
    if variances.noise:
        explained = np.einsum("mk,mk->k", scaled, solved)
        square = np.einsum("mk,mk->k", solved, solved)
        whole = products.squares + np.einsum("kg,kg->k", offset, offset) - explained - penalty * square
        variance += variances.noise * (whole - np.einsum("gk,gk->k", remaining, remaining)) / penalty**2
    return Reading(amplitude, gain, np.sqrt(variance))


@dataclass(frozen=True, eq=False)
class _System:
    """V's rows solved for: √c, (m,); M, (m, m); λ; Z = √c · intercepts and M Z, (m, g) each."""

    root: np.ndarray
    inverse: np.ndarray
    penalty: float
    offset: np.ndarray
    solved: np.ndarray

    @property
    def itself(self) -> np.ndarray:
        """B_jj, (m,): what a row in x does to the reading by itself."""
        return 1 - self.penalty * np.diag(self.inverse) - np.einsum("mg,mg->m", self.solved, self.offset)


def _system(products: Products, variances: Variances, ridge: float, intercepts: Intercepts | None) -> _System:
    """Return M = (F Fᵀ + λI)⁻¹, F with its intercepts, by one Cholesky decomposition."""
    from scipy.linalg import lapack

    root, penalty = np.sqrt(variances.weight), ridge + variances.noise
    offset = root[:, None] * (np.zeros((len(root), 0)) if intercepts is None else intercepts.rows)
    gram = root[:, None] * products.gram * root + offset @ offset.T
    gram[np.diag_indices_from(gram)] += penalty
    factor, failed = lapack.dpotrf(gram, lower=True, overwrite_a=True)
    if failed:
        raise np.linalg.LinAlgError(f"the covariance is not positive definite at λ = {penalty:g}")
    inverse, _ = lapack.dpotri(factor, lower=True, overwrite_c=True)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    return _System(root, inverse, penalty, offset, inverse @ offset)
