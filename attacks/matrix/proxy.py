"""Membership from proxies, where a record is in no shadow (PMIA).

Of 'Cascading and Proxy Membership Inference Attacks' (2025) this is the attack of the non-adaptive setting.

How a record looks that the adversary could not train shadows on is read off others that behave as it does. Of
a query the shadows tell φ where it is not a member; its proxies are those owned records of its label whose φ
is distributed most like that where they are no members, and their φ where they are stands for the query's
own:

    log N(φ; proxies inside) − log N(φ; the query outside)

As we read the paper, proxies are chosen by behaviour in the shadows and the test is one of posterior odds;
that the Gaussians are LiRA's, and the distance below, is ours to say.
"""

from __future__ import annotations

import numpy as np

from attacks.declaration import ALIKE_SHADOWS, FINAL_MODEL, attack
from attacks.matrix.lira import SMALLEST_VARIANCE, VARIANCE_FLOOR, Fit, fit_sides
from attacks.matrix.signal_matrix import SignalMatrix

PROXIES = 16
"""Proxies of a query, at most."""
FEWEST = 2
"""Shadows on either side, below which a record is no proxy."""


@attack(
    "pmia",
    variant=True,
    sees=FINAL_MODEL,
    assumes=ALIKE_SHADOWS,
    source="PMIA 2025",
    compares_with=("whole",),
)
def score(matrix: SignalMatrix, rng: np.random.Generator, proxies: int = PROXIES) -> np.ndarray:
    """Return the log-odds, (n,) float64; 0 where a record's φ is not finite, or nothing stands for it.

    A query's own shadows inside, where there are any, are not used: in this setting it is in none.
    """
    inside, outside = fit_sides(matrix, slice(-1, None))
    phi = matrix.target[-1].astype(np.float64)
    told = np.isfinite(phi) & (outside.count >= FEWEST)
    standing = (inside.count >= FEWEST) & (outside.count >= FEWEST)
    variance, of_inside = _variances(outside), _variances(inside)
    found = np.zeros(len(phi))
    for label in np.unique(matrix.labels[told]):
        pool = np.flatnonzero(standing & (matrix.labels == label))
        for i in np.flatnonzero(told & (matrix.labels == label)):
            others = pool[pool != i]
            if not len(others):
                continue
            distance = divergence(outside.mean[i, 0], variance[i], outside.mean[others, 0], variance[others])
            near = others[np.argsort(distance, kind="stable")[:proxies]]
            mean = inside.mean[near, 0].mean()
            spread = of_inside[near].mean() + inside.mean[near, 0].var()
            found[i] = _log_density(phi[i], mean, spread)
            found[i] -= _log_density(phi[i], outside.mean[i, 0], variance[i])
    return found


def divergence(mean: float, variance: float, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Return the symmetric Kullback-Leibler divergence of a Gaussian to others, (k,)."""
    square = (means - mean) ** 2
    return np.asarray(0.5 * ((variance + square) / variances + (variances + square) / variance) - 1)


def _variances(side: Fit) -> np.ndarray:
    pooled = max(float(side.pooled[0, 0]), SMALLEST_VARIANCE)
    own = side.scatter[:, 0, 0] / np.maximum(side.count - 1, 1)
    return np.maximum(np.where(side.count >= FEWEST, own, pooled), VARIANCE_FLOOR * pooled)


def _log_density(phi: float, mean: float, variance: float) -> float:
    return float(-0.5 * ((phi - mean) ** 2 / variance + np.log(variance)))
