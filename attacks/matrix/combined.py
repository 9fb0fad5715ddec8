"""All signals in one score: a classifier over the attacks' scores, trained on shadows only.

Some shadows are attacked in the target's place by every part (`calibration.in_the_targets_place`; those of
joint inference by its own). Their memberships, which the adversary knows, teach a logistic regression how
much to trust which part. Parts that read the view alone (loss, confidence, entropy, …) are functions of the φ
that is a part here itself.

Round decoding needs no shadows, and reads the first updates where these read models: given the membership it
is as good as independent of them. Its log-odds are added, tempered where they spread more than they predict
(`attacks.rounds.channel`).

What rehearsals teach holds as far as the target is one of the shadows. Where members are unknown to the
adversary it is not: what stands for them in the shadows is like what it owns, and they are not. Round
decoding has them in its covariance, and reads the same updates: there the shadows' log-odds are no
independent evidence but partly a second reading of it, by a wrong account of its noise. They are multiplied
by the share of members that is owned. Of powers of that share and of how far φ spreads beyond the shadows'
this is the one that was never far below the better of the two where half of the members are unknown, on four
data sets; on location, where outputs tell most, the shadows would deserve more with one in ten known.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, EVERY_MODEL, attack
from attacks.matrix import lira, lira_rounds, projected, rmia, shokri
from attacks.matrix.joint import stacking
from attacks.matrix.rehearsal import MatrixScore, in_the_targets_place
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.rounds import decoding

REHEARSALS = 8


def last_phi(matrix: SignalMatrix, rng: np.random.Generator) -> np.ndarray:
    """Return φ of the final model, (n,) float64; what is not finite counts as the lowest."""
    phi = matrix.target[-1].astype(np.float64)
    finite = np.isfinite(phi)
    return np.where(finite, phi, phi[finite].min() if finite.any() else 0.0)


PARTS: Mapping[str, MatrixScore] = {
    "phi": last_phi,
    "shokri": shokri.score,
    "lira": lira.online,
    "lira-rounds": lira_rounds.score,
    "lira-projected": projected.score,
    "rmia": rmia.online,
}
"""The parts beside joint inference."""


@attack(
    "combined",
    sees=EVERY_MODEL,
    assumes=ALIKE_SHADOWS,
    source="ours: stacking on shadows",
    compares_with=("whole", "early"),
    inside=True,
    threshold=0.0,
    beside=(decoding.NAME,),
)
def score(
    matrix: SignalMatrix, rng: np.random.Generator, parts: Mapping[str, MatrixScore] = PARTS
) -> np.ndarray:
    """Return the log-odds of membership by joint inference, ``parts`` and what is beside, (n,) float64."""
    decoded, rows = stacking.rehearse(matrix, rng), stacking.held_back(matrix)
    chosen = rng.choice(len(rows), size=max(1, min(REHEARSALS, len(matrix) // 8)), replace=False)
    taught, member = [], []
    for k, (rehearsal, truth) in zip(chosen, in_the_targets_place(matrix, rows[chosen]), strict=True):
        taught.append(_features(rehearsal, decoded.shadows[k], rng, parts))
        member.append(truth)
    weights, offset = _fit(np.concatenate(taught), np.concatenate(member))
    odds = matrix.owned * (_features(matrix, decoded.target, rng, parts) @ weights + offset)
    return np.asarray(odds + sum(matrix.beside.values()))


def _features(
    matrix: SignalMatrix, decoded: np.ndarray, rng: np.random.Generator, parts: Mapping[str, MatrixScore]
) -> np.ndarray:
    """Return every part's scores as normal scores of their ranks within this target, (n, 1 + parts).

    Ranks make targets comparable, and no part's few huge scores outweigh all the others.
    """
    from scipy.stats import norm, rankdata

    scores = np.stack([decoded, *(part(matrix, rng) for part in parts.values())], axis=1)
    return np.asarray(norm.ppf(rankdata(scores, axis=0) / (len(scores) + 1)))


def _fit(features: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit the logistic regression, no part's weight below 0: none is worth more for being contradicted.

    Where the rehearsals have one class only, the parts' plain mean.
    """
    if member.all() or not member.any():
        return np.full(features.shape[1], 1 / features.shape[1]), 0.0
    return stacking.nonnegative_logistic(features, member)
