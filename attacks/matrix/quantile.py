"""Quantile regression attack (Bertran et al. 2023): how far φ lies above what non-members reach.

    φ(z) − q_{1−α}(z),   q_{1−α} the (1 − α)-quantile of φ among models that did not train on z.

A threshold of 0 then has a false-positive rate of α on records like those that q was fitted on. There are two
ways to q: each record's own quantile over its shadows, and the paper's regression on features, by which
records of which there are few shadows borrow from their like.
"""

from __future__ import annotations

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, FINAL_MODEL, attack
from attacks.matrix.lira import blocks
from attacks.matrix.signal_matrix import SignalMatrix

FALSE_POSITIVE_RATE = 0.01
MAX_ROWS = 50_000


@attack(
    "quantile",
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="Bertran et al. 2023",
    compares_with=("whole",),
)
def score(matrix: SignalMatrix, rng: np.random.Generator, alpha: float = FALSE_POSITIVE_RATE) -> np.ndarray:
    """Return φ less the record's own q_{1−α} at w_T, (n,) float64; 0 where φ is not finite or none tells q.

    alpha: α, the false-positive rate aimed at, between 0 and 1
    """
    _check(alpha)
    return _excess(matrix, out_quantiles(matrix, 1 - alpha))


@attack(
    "quantile-regression",
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="Bertran et al. 2023",
    compares_with=("whole",),
    threshold=0.0,
)
def regression(
    matrix: SignalMatrix, rng: np.random.Generator, alpha: float = FALSE_POSITIVE_RATE
) -> np.ndarray:
    """Return φ less the q_{1−α} that features and label predict, as `score`.

    Raises:
        ValueError: the matrix holds no features.
    """
    _check(alpha)
    if matrix.features is None:
        raise ValueError("quantile regression needs the records' features")
    return _excess(matrix, regressed_quantiles(matrix, rng, matrix.features, 1 - alpha))


def _check(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")


def _excess(matrix: SignalMatrix, q: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        excess = matrix.target[-1].astype(np.float64) - q
    return np.where(np.isfinite(excess), excess, 0.0)


def out_quantiles(matrix: SignalMatrix, level: float) -> np.ndarray:
    """Return each record's quantile of φ over the shadows without it, (n,) float64, NaN where there is none.

    Linear between order statistics, as numpy.quantile.
    """
    quantiles = np.empty(matrix.shadows.shape[2])
    for block in blocks(matrix.member.shape[1], len(matrix)):
        phi = matrix.shadows[:, -1, block].T
        used = ~matrix.member[:, block].T & np.isfinite(phi)
        ordered = np.sort(np.where(used, phi, np.inf), axis=1).astype(np.float64)
        quantiles[block] = _interpolated(ordered, used.sum(axis=1), level)
    return quantiles


def _interpolated(ordered: np.ndarray, count: np.ndarray, level: float) -> np.ndarray:
    """Quantiles of the first ``count`` entries of every row of ``ordered``, NaN where there are none."""
    position = level * np.maximum(count - 1, 0)
    below = np.floor(position).astype(int)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    rows = np.arange(len(ordered))
    low, high = ordered[rows, below], ordered[rows, above]
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, low + (position - below) * (high - low), np.nan)


def regressed_quantiles(
    matrix: SignalMatrix, rng: np.random.Generator, features: np.ndarray, level: float
) -> np.ndarray:
    """Return the quantile of φ that gradient boosting predicts from features and label, (n,) float64.

    Fitted on at most `MAX_ROWS` pairs of a shadow and a record that it did not train on; NaN without any.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    x = np.column_stack([features.reshape(len(features), -1), matrix.labels])
    shadow, record = sampled_pairs(~matrix.member & np.isfinite(matrix.shadows[:, -1]), rng)
    if not len(shadow):
        return np.full(len(x), np.nan)
    seed = int(rng.integers(2**31))
    booster = HistGradientBoostingRegressor(loss="quantile", quantile=level, random_state=seed)
    booster.fit(x[record], matrix.shadows[shadow, -1, record])
    return booster.predict(x)


def sampled_pairs(
    allowed: np.ndarray, rng: np.random.Generator, most: int = MAX_ROWS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (shadow, record) of ``most`` random entries of ``kept``, (S, n) bool, or of all."""
    pairs = np.flatnonzero(allowed)
    if len(pairs) > most:
        pairs = rng.choice(pairs, size=most, replace=False, shuffle=False)
    shadow, record = np.divmod(pairs, allowed.shape[1])
    return shadow, record
