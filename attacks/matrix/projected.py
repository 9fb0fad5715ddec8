"""LiRA on what a record's φ does apart from all others' (ours).

Most of what moves a record's φ from one federation to the next moves other records' too: who else is a
member, the order of batches. Over the shadows that is seen as principal components of the records' φ, each
less its mean over the shadows of the same side. They are projected out of target and shadows, and what is
left of a record is judged by LiRA. Where members are unknown to the adversary, that is where the target
differs most from any shadow.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, FINAL_MODEL, attack
from attacks.matrix import lira
from attacks.matrix.design import decodable
from attacks.matrix.signal_matrix import SignalMatrix

COMPONENTS, RECORDS, SHADOWS = 32, 5, 8
"""Components that are projected out at most, records and shadows that tell each."""
SMALLEST = 1e-3
"""A record's deviation counts as at least this share of the largest."""


@attack(
    "lira-projected",
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="ours: LiRA less what moves all records",
    compares_with=("whole",),
    inside=True,
)
def score(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return LiRA's log-ratio of the projected φ at w_T, (n,) float64; 0 where LiRA says nothing."""
    return lira.online(projected(matrix), rng)


def projected(matrix: SignalMatrix) -> SignalMatrix:
    """Return the matrix at w_T, φ in units of its deviation and less the shadows' principal components.

    φ that are not finite stay so, and count as the record's mean for all others. Records that are in every
    shadow or in none are left as they are.
    """
    told = np.flatnonzero(decodable(matrix.member))
    phi, member = matrix.shadows[:, -1].astype(np.float64), matrix.member
    target = matrix.target[-1].astype(np.float64)
    whole = np.isfinite(phi[:, told])
    size = min(COMPONENTS, len(told) // RECORDS, int(whole.any(axis=1).sum()) // SHADOWS)
    if size:
        count = np.maximum(whole.sum(axis=0), 1)
        mean = np.where(whole, phi[:, told], 0.0).sum(axis=0) / count
        apart = np.where(whole, phi[:, told] - mean, 0.0)
        deviation = np.sqrt((apart**2).sum(axis=0) / count)
        deviation = np.maximum(deviation, SMALLEST * max(float(deviation.max()), 1e-30))
        of_target = (target[told] - mean) / deviation
        basis = _components(within_sides(apart, member[:, told], whole) / deviation, size)
        known = np.where(np.isfinite(of_target), of_target, 0.0)
        target[told] = of_target - known @ basis.T @ basis
        apart /= deviation
        phi[:, told] = np.where(whole, apart - apart @ basis.T @ basis, phi[:, told])
    return replace(
        matrix, target=target[None], shadows=phi[:, None], rounds=matrix.rounds[-1:], early=None, beside={}
    )


def within_sides(phi: np.ndarray, member: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return φ less its mean over the shadows of the same side, (S, n); 0 where it is not ``whole``."""
    residual = np.zeros_like(phi)
    for side in (member & whole, ~member & whole):
        mean = (phi * side).sum(axis=0) / np.maximum(side.sum(axis=0), 1)
        residual += side * (phi - mean)
    return residual


def _components(residual: np.ndarray, size: int) -> np.ndarray:
    """Return the first principal components of residuals (S, n), (size, n), orthonormal rows."""
    return np.asarray(np.linalg.svd(residual, full_matrices=False)[2][:size])
