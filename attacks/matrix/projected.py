"""LiRA on what a record's φ does apart from all others' (ours).

Most of what moves a record's φ from one federation to the next moves other records' too: who else is a
member, the order of batches. Over the shadows that is seen as principal components of the records' φ, each
less its mean over the shadows of the same side. They are projected out of target and shadows, and what is
left of a record is judged by LiRA. Where members are unknown to the adversary, that is where the target
differs most from any shadow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, FINAL_MODEL, attack
from attacks.matrix import lira
from attacks.matrix.design import decodable
from attacks.matrix.lira import SMALLEST_VARIANCE, VARIANCE_FLOOR
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


@attack(
    "lira-projected-offline",
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="ours: LiRA less what moves all records",
    compares_with=("whole",),
)
def offline(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return how many deviations φ lies above what the components of owned records predict, (n,) float64.

    A record's φ where it is not a member is regressed on the components over the shadows; the target's tell
    where it would lie. Components are those of records that some shadows are trained on and others not, so
    that of two candidates in no shadow neither tells of the other. 0 where nothing can be said; plain offline
    LiRA where the shadows or these records are too few for a component.
    """
    parts = _moves(matrix)
    if parts is None:
        return lira.offline(matrix, rng)
    phi, target = matrix.shadows[:, -1].astype(np.float64), matrix.target[-1].astype(np.float64)
    whole = np.isfinite(phi)
    outside = whole & ~matrix.member
    count = outside.sum(axis=0)
    mean = np.where(outside, phi, 0.0).sum(axis=0) / np.maximum(count, 1)
    residual = within_sides(np.where(whole, phi, 0.0), matrix.member, whole)
    middle = parts.shadows.mean(axis=0)
    inputs = parts.shadows - middle  # (S, k)
    onto = np.linalg.pinv(inputs)  # (k, S)
    weights = onto @ residual  # (k, n)
    leverage = np.minimum(np.einsum("sk,ks->s", inputs, onto), 1 - 1e-6)
    left = (residual - inputs @ weights) / (1 - leverage)[
        :, None
    ]  # as of a fit without the shadow: Allen 1974
    variance = (outside * left**2).sum(axis=0) / np.maximum(count, 1)
    floor = max(VARIANCE_FLOOR * float(variance.max()), SMALLEST_VARIANCE)
    known = np.isfinite(target) & (count > 0)
    ahead = np.where(known, target - mean, 0.0) - (parts.target - middle) @ weights
    return np.where(known, ahead / np.sqrt(np.maximum(variance, floor)), 0.0)


@dataclass(frozen=True, eq=False)
class _Moves:
    """What moves the records ``told`` (indices) together.

    mean, deviation: of their φ over the shadows, (m,); basis: (k, m), orthonormal; shadows: (S, k) and
    target: (k,), how far along each
    """

    told: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    basis: np.ndarray
    shadows: np.ndarray
    target: np.ndarray


def _moves(matrix: SignalMatrix) -> _Moves | None:
    """Return the principal components, None where records or shadows are too few for one.

    φ that are not finite count as the record's mean.
    """
    told = np.flatnonzero(decodable(matrix.member))
    phi = matrix.shadows[:, -1, told].astype(np.float64)
    whole = np.isfinite(phi)
    size = min(COMPONENTS, len(told) // RECORDS, int(whole.any(axis=1).sum()) // SHADOWS)
    if not size:
        return None
    count = np.maximum(whole.sum(axis=0), 1)
    mean = np.where(whole, phi, 0.0).sum(axis=0) / count
    apart = np.where(whole, phi - mean, 0.0)
    deviation = np.sqrt((apart**2).sum(axis=0) / count)
    deviation = np.maximum(deviation, SMALLEST * max(float(deviation.max()), 1e-30))
    basis = _components(within_sides(apart, matrix.member[:, told], whole) / deviation, size)
    of_target = (matrix.target[-1, told].astype(np.float64) - mean) / deviation
    known = np.where(np.isfinite(of_target), of_target, 0.0)
    return _Moves(told, mean, deviation, basis, apart / deviation @ basis.T, known @ basis.T)


def projected(matrix: SignalMatrix) -> SignalMatrix:
    """Return the matrix at w_T, φ in units of its deviation and less the shadows' principal components.

    φ that are not finite stay so. Records that are in every shadow or in none are left as they are.
    """
    phi, target = matrix.shadows[:, -1].astype(np.float64), matrix.target[-1].astype(np.float64)
    parts = _moves(matrix)
    if parts is not None:
        told = parts.told
        target[told] = (target[told] - parts.mean) / parts.deviation - parts.target @ parts.basis
        phi[:, told] = (phi[:, told] - parts.mean) / parts.deviation - parts.shadows @ parts.basis
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
