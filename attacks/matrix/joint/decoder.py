"""The decomposition from which every linear decoder of the shadows' signals follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attacks.matrix.design import Design, chunks


@dataclass(frozen=True, eq=False)
class Decoder:
    """X = Q diag(σ) Uᵀ, the decomposition from which every linear decoder of these signals follows.

    The columns of X have mean 0 and variance 1/D over the shadows, or are constant 0 (`scaled`).

    q: (S, r) float32, orthonormal columns; square: σ² (r,) float64
    along: (T, r) float64, the targets' products with U diag(σ)
    size: D
    """

    q: np.ndarray
    square: np.ndarray
    along: np.ndarray
    size: int

    @staticmethod
    def of(signals: np.ndarray, targets: np.ndarray) -> Decoder:
        """Scale the signals (S, …) and targets (T, …), and decompose XXᵀ, or XᵀX where that is far smaller.

        XᵀX is formed in float64: the columns of Q follow from it by a division by σ, which is nearly 0 for
        some of the directions that matter, since the φ of a model move together.
        """
        shadows, total = len(signals), len(signals) + len(targets)
        signals, targets = signals.reshape(shadows, -1), targets.reshape(len(targets), -1)
        size = signals.shape[1]
        if shadows > 1.5 * size:
            both = scaled(signals, targets, size).astype(np.float64)
            x = both[:shadows]  # (S, D)
            square, vectors = _eigen(x.T @ x, size)
            q = (x @ (vectors / np.sqrt(square))).astype(np.float32)
            return Decoder(q, square, (both[shadows:] @ x.T) @ q, size)
        products = np.zeros((total, shadows))  # (S + T, S): XXᵀ, and the targets' products with X
        for block in chunks(size, total):
            both = scaled(signals[:, block], targets[:, block], size)
            products += both @ both[:shadows].T
        # At most S − 1 directions: the columns of X are centred.
        square, q = _eigen(products[:shadows].astype(np.float32), shadows - 1)
        return Decoder(q, square, products[shadows:] @ q, size)

    @cached_property
    def unit(self) -> float:
        """Mean eigenvalue of XᵀX over as many directions as S centred shadows can fill."""
        return max(float(self.square.sum()) / max(1, min(len(self.q) - 1, self.size)), 1e-12)

    def leaving_out(self, penalty: float, design: Design) -> Callable[[np.ndarray], np.ndarray]:
        """Return the map of rows (S, …) that turns residuals of one fit into those of fits without the row.

        It multiplies with (I − H)⁻¹ of each pair of shadows, H = Q diag(σ²/(σ² + λ)) Qᵀ + 1/S being the hat
        matrix of ridge regression with an intercept (for one row: Golub, Heath & Wahba 1979, §2). With more
        signals than shadows I − H is nearly 0: what the fit leaves is summed up, not subtracted from 1.
        """
        # The 2 × 2 block of I − H of a shadow and its partner: `own` on the diagonal, `other` beside it.
        left = penalty / (self.square + penalty)  # (r,), the eigenvalues of I − H
        met = np.flatnonzero(design.paired)
        own = self._alone + np.einsum("sr,sr,r->s", self.q, self.q, left)
        other = np.zeros_like(own)
        pairs = np.einsum("sr,sr,r->s", self.q[met], self.q[design.partner[met]], left)
        other[met] = self._beyond(met, design.partner[met]) + pairs
        partners = np.where(design.paired, own[design.partner], 1.0)
        # Bounded below: rounding must not make the block of two mirror images singular.
        determinant = np.maximum(own * partners - other**2, 1e-6 * own * partners)
        # The block's inverse has the rows (partners, −other) / determinant, (S, 1) each.
        a, b = ((part / determinant).astype(np.float32)[:, None] for part in (partners, -other))
        return lambda rows: a * rows + b * rows[design.partner]

    @cached_property
    def _alone(self) -> np.ndarray:
        """The same for every row and itself, (S,) float64; no λ changes it."""
        rows = np.arange(len(self.q))
        return self._beyond(rows, rows)

    def _beyond(self, rows: np.ndarray, partners: np.ndarray) -> np.ndarray:
        """Return I − QQᵀ − 1/S at these rows and partners, (b,) float64, 0 where Q spans all there is.

        Q spans the contrasts of S shadows unless there are fewer signals.
        """
        if self.q.shape[1] >= len(self.q) - 1:
            return np.zeros(len(rows))
        products = np.einsum("sr,sr->s", self.q[rows], self.q[partners], dtype=np.float64)
        return np.asarray((partners == rows) - products - 1 / len(self.q))


def scaled(signals: np.ndarray, targets: np.ndarray, size: int) -> np.ndarray:
    """Return both, (S + T, …) float32, scaled to variance 1/``size`` over the shadows.

    What is not finite counts as the mean.
    """
    x, shadows = np.concatenate([signals, targets], dtype=np.float32), len(signals)
    if not np.isfinite(x).all():
        finite = np.isfinite(x)  # (S + T, …); means are taken over the shadows alone
        x[~finite] = 0
        mean = x[:shadows].sum(axis=0) / np.maximum(finite[:shadows].sum(axis=0), 1)
        x = np.where(finite, x, mean.astype(np.float32))
    x -= x[:shadows].mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = x[:shadows].std(axis=0, dtype=np.float64)
    factor = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12)
    x *= (factor / np.sqrt(size)).astype(np.float32)
    return x


def _eigen(gram: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues (r,) float64 that are more than rounding errors, and their vectors (m, r).

    most: how many there can be; centred signals of S shadows have S − 1.
    """
    from scipy.linalg import eigh

    values, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
    significant = values > 1e-7 * max(float(values[-1]), 1e-30)
    significant[: len(values) - most] = False  # eigenvalues ascend: the rest can only be rounding errors
    return values[significant].astype(np.float64), vectors[:, significant]
