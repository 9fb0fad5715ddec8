"""Robust membership inference (Zarifzadeh et al. 2024, 'RMIA').

What the target says of a record x, relative to what models in general say of it, is compared with the same
ratio of every other record z' of the pool; the score is the share of records that x dominates:

    Pr_z'[ (p(x | θ) / p(x)) / (p(z' | θ) / p(z')) ≥ γ ],   p(x | θ) = p_y(x) = sigmoid(φ).

The adversary does not know which z' are members, so that all of them serve. Where the target's φ is not
finite, or no shadow tells p(x), the ratio of x counts as 1: the target says of it what any model would.

InfoRMIA (Tao & Shokri 2026) measures in bits instead of counting: log₂ p(x | θ)/p(x) + KL(p(z) ‖ p(z | θ)),
the divergence as a mean over the population. It knows no γ and no ties. Within one model the divergence is
the same for all records, so that where RMIA's population is the whole pool and γ = 1 the two order records
alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, FINAL_MODEL, attack
from attacks.matrix.lira import blocks
from attacks.matrix.signal_matrix import SignalMatrix
from fedsim.core.ranks import auc

# Pr_in ≈ a Pr_out + (1 − a): the values of a to try, and the one where there is no shadow to try them on.
SLOPES = np.linspace(0, 1, 11)
DEFAULT_SLOPE = 0.3
REHEARSALS = 16


class Reference(NamedTuple):
    """What models in general say of n records, (n,) float64 each.

    shadows: how many the means are over; p: mean of p_y; q: mean of 1 − p_y, exact where p rounds to 1
    """

    shadows: np.ndarray
    p: np.ndarray
    q: np.ndarray


@attack(
    "rmia",
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="Zarifzadeh et al. 2024",
    reads="any",
    compares_with=("whole",),
    inside=True,
)
def online(matrix: SignalMatrix, rng: np.random.Generator, gamma: float = 1.0) -> np.ndarray:
    """Return the score with p(x) = ½ (mean_in + mean_out), (n,) float64 in [0, 1].

    gamma: γ > 0; where the pool is the population, it changes ties but never the order.
    """
    return dominated(_log_ratio(matrix.target[-1], _general(matrix)), gamma)


@attack(
    "rmia-offline",
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="Zarifzadeh et al. 2024",
    reads="any",
    compares_with=("whole",),
)
def offline(
    matrix: SignalMatrix, rng: np.random.Generator, slope: float | None = None, gamma: float = 1.0
) -> np.ndarray:
    """Return the score with p(x) ≈ ½ ((1 + a) mean_out + (1 − a)), (n,) float64 in [0, 1].

    slope: a in [0, 1]; default: the one with the best AUC against some of the shadows, as in the paper
    """
    outside = _reference(matrix, ~matrix.member)
    a = best_slope(matrix, outside, rng) if slope is None else slope
    return dominated(_log_ratio(matrix.target[-1], _extrapolated(outside, a)), gamma)


@attack(
    "informia",
    variant=True,
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="Tao & Shokri 2026",
    compares_with=("whole",),
    inside=True,
)
def information(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return the bits that θ tells of a record beyond the population's, (n,) float64; p(x) as `online`."""
    return _in_bits(matrix, _log_ratio(matrix.target[-1], _general(matrix)))


@attack(
    "informia-offline",
    variant=True,
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="Tao & Shokri 2026",
    compares_with=("whole",),
)
def information_offline(
    matrix: SignalMatrix, rng: np.random.Generator, slope: float | None = None
) -> np.ndarray:
    """Return the same with p(x) as `offline`, (n,) float64."""
    outside = _reference(matrix, ~matrix.member)
    a = best_slope(matrix, outside, rng) if slope is None else slope
    return _in_bits(matrix, _log_ratio(matrix.target[-1], _extrapolated(outside, a)))


def _in_bits(matrix: SignalMatrix, log_ratio: np.ndarray) -> np.ndarray:
    """Return log₂ ratios plus the divergence: their mean, negative, over the population.

    That is the records that some shadow was trained on, all of them where there is none.
    """
    trained_on = np.flatnonzero(matrix.member.any(axis=0))
    population = trained_on if len(trained_on) else np.arange(len(log_ratio))
    return np.asarray((log_ratio - log_ratio[population].mean()) / np.log(2))


def best_slope(matrix: SignalMatrix, outside: Reference, rng: np.random.Generator) -> float:
    """Return the a of `SLOPES` with the best mean AUC over shadows attacked in the target's place.

    Each is taken out of the mean of the shadows it is compared with.
    """
    chosen = rng.choice(len(matrix), size=min(REHEARSALS, len(matrix)), replace=False)
    games = [(j, matrix.member[j]) for j in chosen if 0 < matrix.member[j].sum() < matrix.member[j].size]
    if not games or len(matrix) < 4:
        return DEFAULT_SLOPE
    gains = np.zeros(len(SLOPES))
    for j, member in games:
        phi = matrix.shadows[j, -1]
        others = _without(outside, phi, ~member)
        ratios = [_log_ratio(phi, _extrapolated(others, a)) for a in SLOPES]
        gains += [auc(ratio[member], ratio[~member]) for ratio in ratios]
    return float(SLOPES[gains.argmax()])


def dominated(log_ratio: np.ndarray, gamma: float) -> np.ndarray:
    """Return the share of the other records whose ratio is at most 1/γ of the record's own, (n,) float64.

    log_ratio: (n,) finite. O(n log n).

    Raises:
        ValueError: γ is not above 0.
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    below = np.searchsorted(np.sort(log_ratio), log_ratio - np.log(gamma), side="right")
    itself = gamma <= 1
    return (below - itself) / max(len(log_ratio) - 1, 1)


def _general(matrix: SignalMatrix) -> Reference:
    """Return p(x) = ½ (mean_in + mean_out); known where both are."""
    inside, outside = _reference(matrix, matrix.member), _reference(matrix, ~matrix.member)
    shadows = np.minimum(inside.shadows, outside.shadows)
    return Reference(shadows, (inside.p + outside.p) / 2, (inside.q + outside.q) / 2)


def _reference(matrix: SignalMatrix, counted: np.ndarray) -> Reference:
    """Mean over the shadows kept, (S, n) bool, of sigmoid(φ) and of sigmoid(−φ) at w_T."""
    from scipy.special import expit

    n = counted.shape[1]
    count, p, q = np.zeros(n), np.zeros(n), np.zeros(n)
    for block in blocks(matrix.member.shape[1], len(matrix)):
        phi = matrix.shadows[:, -1, block].astype(np.float64)
        used = counted[:, block] & np.isfinite(phi)
        count[block] = used.sum(axis=0)
        for mean, sign in ((p, 1.0), (q, -1.0)):
            total = np.where(used, expit(sign * phi), 0.0).sum(axis=0)
            mean[block] = total / np.maximum(count[block], 1)
    return Reference(count, p, q)


def _without(outside: Reference, phi: np.ndarray, counted: np.ndarray) -> Reference:
    """Take one shadow out of the means: its φ, (n,), for those records for which it was ``counted``."""
    from scipy.special import expit

    counted = counted & np.isfinite(phi)
    phi = np.where(counted, phi, 0.0).astype(np.float64)
    count = outside.shadows - counted
    left = np.maximum(count, 1)
    p = (outside.shadows * outside.p - counted * expit(phi)) / left
    q = (outside.shadows * outside.q - counted * expit(-phi)) / left
    return Reference(count, np.clip(p, 0, 1), np.clip(q, 0, 1))


def _extrapolated(outside: Reference, a: float) -> Reference:
    """Mean of Pr_out and of Pr_in ≈ a Pr_out + (1 − a), as the paper does offline."""
    return Reference(outside.shadows, ((1 + a) * outside.p + (1 - a)) / 2, (1 + a) * outside.q / 2)


def _log_ratio(phi: np.ndarray, general: Reference) -> np.ndarray:
    """Log p(x | θ) − log p(x), (n,) float64, 0 where either is unknown."""
    known = np.isfinite(phi) & (general.shadows > 0)
    log_target = -np.logaddexp(0.0, -np.where(known, phi, 0.0).astype(np.float64))
    tiny = np.finfo(np.float64).tiny
    # near p = 1 the logarithm is taken of what is missing to 1, near 0 of p itself
    log_general = np.where(
        general.q < 0.5, np.log1p(-np.minimum(general.q, 0.5)), np.log(np.maximum(general.p, tiny))
    )
    return np.where(known, log_target - log_general, 0.0)
