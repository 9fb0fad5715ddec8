"""LiRA given what is already inferred of the others (CMIA).

Of 'Cascading and Proxy Membership Inference Attacks' (2025) this is the attack of the adaptive setting.

The members of a federation move each other's φ. Once some candidates are decided (anchors), the others are
compared with shadows in which the anchors are where they were found to be. The paper trains such shadows anew
in every round of its cascade. Here none is trained: those that exist are moved to where they would have been,

    φ'_s = φ_s − b(a_s − ā),   φ'_target = φ_target − b(â − ā),

a_s being who of the anchors is a member of shadow s, â who was found to be one in the target, and b a ridge
regression over the shadows. That is the conditional distribution as far as φ is linear in the memberships.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, FINAL_MODEL, attack
from attacks.matrix import lira
from attacks.matrix.projected import within_sides
from attacks.matrix.rehearsal import rehearsals
from attacks.matrix.signal_matrix import SignalMatrix

CASCADES = 3
"""Rounds of deciding on anchors and attacking given these."""
PRECISION = 0.9
"""Share of the anchors that must be right, in shadows attacked in the target's place."""
RESOLVED = 20
"""Answers in rehearsals, of fewer of which it could be chance that so many are right."""
REHEARSALS = 8
RIDGES = np.logspace(-2, 3, 11)
"""Penalties to choose from by leave-one-out error, in units of the mean eigenvalue of a aᵀ."""


@dataclass(frozen=True)
class Cuts:
    """A record is an anchor where its score is at least ``above`` (a member) or at most ``below`` (none)."""

    below: float
    above: float


@attack(
    "cmia",
    variant=True,
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="CMIA 2025, without new shadows",
    compares_with=("whole",),
    inside=True,
)
def score(matrix: SignalMatrix, rng: np.random.Generator, cascades: int = CASCADES) -> np.ndarray:
    """Return LiRA's log-ratio given the anchors, (n,) float64; plain LiRA's where there are none.

    0 for a record about which LiRA says nothing.
    """
    found = lira.online(matrix, rng)
    if len(matrix) < 8:
        return found
    cuts = confident(matrix, rng)
    for _ in range(cascades):
        above = found >= cuts.above
        anchors = np.flatnonzero((above | (found <= cuts.below)) & (found != 0))
        if not len(anchors):
            break
        found = lira.online(given(matrix, anchors, above[anchors]), rng)
    return found


def confident(matrix: SignalMatrix, rng: np.random.Generator) -> Cuts:
    """Return the cuts beyond which `PRECISION` of LiRA's answers are right in rehearsals; ±inf if nowhere."""
    pairs = [(lira.online(part, rng), member) for part, member in rehearsals(matrix, rng, REHEARSALS)]
    scores, member = np.concatenate([s for s, _ in pairs]), np.concatenate([m for _, m in pairs])
    return Cuts(-_cut(-scores, ~member), _cut(scores, member))


def _cut(scores: np.ndarray, right: np.ndarray, resolved: int = RESOLVED) -> float:
    """Return the lowest score s for which `PRECISION` of those at or above it are right; inf if none."""
    order, count = np.argsort(-scores, kind="stable"), np.arange(1, len(scores) + 1)
    share = np.cumsum(right[order]) / count
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # of equal scores all are taken
    enough = np.flatnonzero((share >= PRECISION) & last & (count >= resolved))
    return float(scores[order][enough[-1]]) if len(enough) else np.inf


def given(matrix: SignalMatrix, anchors: np.ndarray, member: np.ndarray) -> SignalMatrix:
    """Return the matrix at w_T with φ moved to where the anchors (indices, (A,)) are as ``member`` (A,) says.

    Shadows are moved by a regression that has not seen them, so that their spread is what the target's is. A
    record's own membership, where it is an anchor, moves nothing of it. φ that are not finite stay so.
    """
    there = matrix.member[:, anchors].astype(np.float64)
    share = there.mean(axis=0)
    inputs, target = there - share, member - share  # (S, A), (A,)
    phi = matrix.shadows[:, -1].astype(np.float64)
    whole = np.isfinite(phi)
    residual = within_sides(np.where(whole, phi, 0.0), matrix.member, whole)
    values, vectors = np.linalg.eigh(inputs @ inputs.T)
    values = np.maximum(values, 0.0)
    penalty = _penalty(values, vectors, residual)
    kernel = vectors / (values + penalty) @ vectors.T  # (S, S)
    dual = kernel @ residual  # (S, n)
    left = dual / np.diag(kernel)[:, None]  # leave-one-out residuals: Allen 1974
    weights = inputs.T @ dual  # (A, n)
    weights[np.arange(len(anchors)), anchors] = 0.0
    moved = phi - np.where(whole, residual - left, 0.0)
    shifted = matrix.target[-1].astype(np.float64) - target @ weights
    return replace(
        matrix,
        target=shifted[None],
        shadows=moved[:, None],
        rounds=matrix.rounds[-1:],
        early=None,
        beside={},
    )


def _penalty(values: np.ndarray, vectors: np.ndarray, residual: np.ndarray) -> float:
    """Return the ridge with the least leave-one-out error, each record's relative to its own variance."""
    scale = max(float(values.mean()), 1e-12)
    rotated = vectors.T @ residual
    spread = np.maximum((residual**2).mean(axis=0), 1e-12)
    errors = []
    for ridge in RIDGES * scale:
        dual = vectors @ (rotated / (values + ridge)[:, None])
        diagonal = (vectors**2) @ (1 / (values + ridge))
        errors.append(float((((dual / diagonal[:, None]) ** 2).mean(axis=0) / spread).mean()))
    return float(RIDGES[int(np.argmin(errors))] * scale)
