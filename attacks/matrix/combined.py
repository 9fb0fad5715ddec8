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
independent evidence but a second reading of it, by a wrong account of its noise. They are multiplied by the
square of the share of members that is owned, and of how far φ spreads in the shadows beside the target, where
it spreads more: a log-ratio is inverse to the noise's variance, and the more of the noise both share the less
one adds to the other. The powers are ours, chosen on six games of the hospitals and three of heart: no power,
one, two and three differ by less than the games do, but for none, which is worse than round decoding alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, EVERY_MODEL, attack
from attacks.matrix import lira, lira_rounds, projected, rmia, shokri
from attacks.matrix.design import decodable
from attacks.matrix.joint import stacking
from attacks.matrix.rehearsal import MatrixScore, in_the_targets_place
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.rounds import decoding

REHEARSALS = 8
SMALLEST = 1e-2
"""A record's deviation counts as at least this share of the largest: of a saturated φ it says nothing."""


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
    odds = trust(matrix) * (_features(matrix, decoded.target, rng, parts) @ weights + offset)
    return np.asarray(odds + sum(matrix.beside.values()))


def trust(matrix: SignalMatrix) -> float:
    """Return in (0, 1] by what the shadows' log-odds are multiplied: (owned · usual / own variance)².

    The variance is that of φ at w_T, less the record's mean over the shadows and in units of its own
    deviation there, over the records that are in some shadows and not in all. Usual is as usual or less.
    """
    own, shadows = spreads(matrix)
    usual = min(1.0, float(shadows.mean() / own)) if len(shadows) and own > 0 else 1.0
    return (matrix.owned * usual) ** 2


def spreads(matrix: SignalMatrix) -> tuple[float, np.ndarray]:
    """Return the variance of the target's standardised φ over records, and of every shadow's, (S,).

    A shadow is compared with the others, as the target is with all. A φ that is not finite counts as the
    record's mean. (0,) where fewer than two records or three shadows tell it.
    """
    told, count = np.flatnonzero(decodable(matrix.member)), len(matrix)
    if len(told) < 2 or count < 3:
        return 1.0, np.empty(0)
    phi = matrix.shadows[:, -1, told].astype(np.float64)
    phi = np.where(np.isfinite(phi), phi, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a record whose φ is finite in no shadow
        mean = np.nan_to_num(np.nanmean(phi, axis=0))
    apart = np.nan_to_num(phi - mean)
    variance = (apart**2).mean(axis=0)
    smallest = SMALLEST**2 * max(float(variance.max()), 1e-30)
    target = np.nan_to_num(matrix.target[-1, told] - mean, posinf=0.0, neginf=0.0)
    own = target / np.sqrt(np.maximum(variance, smallest))
    # Mean and variance without the shadow itself, (S, n).
    alone = apart * count / (count - 1)
    others = (count * variance - apart * alone) / (count - 1)
    return float(own.var()), (alone / np.sqrt(np.maximum(others, smallest))).var(axis=1)


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
