"""How many of a list's records are members (dataset usage cardinality; Tong et al. 2025).

A membership score is often wrong about a single record, and yet its rates are known from the adversary's own
records: of members it calls a share TPR so, of others a share FPR. A list with a share p of members then has
c = p TPR + (1 − p) FPR called so, and p = (c − FPR) / (TPR − FPR), though no record is told from another.
`by_threshold` solves this at the best threshold, `by_mean` has mean ranks in place of the three rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from attacks.declaration import EVERY_MODEL, FEATURES_AND_LABEL
from attacks.further import further

DRAWS = 400
"""Bootstrap draws of a count's interval."""

LEAST_ADVANTAGE = 1e-3
"""A score that tells members apart by less says nothing of their number."""


@dataclass(frozen=True)
class Count:
    """An estimated number of members with its 95 % interval, all in [0, n]."""

    value: float
    low: float
    high: float


Estimator = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
"""(scores of the list, of known members, of known non-members) → share of members in [0, 1]."""


def by_threshold(scores: np.ndarray, members: np.ndarray, others: np.ndarray) -> float:
    """Return (c − FPR) / (TPR − FPR) at the threshold that separates the known records best (Youden 1950)."""
    cuts = np.unique(np.concatenate([members, others]))
    tpr, fpr = _above(members, cuts), _above(others, cuts)
    best = int(np.argmax(tpr - fpr))
    return _share(_above(scores, cuts[best : best + 1])[0], tpr[best], fpr[best])


def by_mean(scores: np.ndarray, members: np.ndarray, others: np.ndarray) -> float:
    """Return (s̄ − s̄_out) / (s̄_in − s̄_out), the scores first replaced by their ranks among the known ones."""
    known = np.sort(np.concatenate([members, others]))
    ranks = [np.searchsorted(known, values, side="left") for values in (scores, members, others)]
    middle = [np.searchsorted(known, values, side="right") for values in (scores, members, others)]
    means = [float(np.mean(low + high)) / (2 * len(known)) for low, high in zip(ranks, middle, strict=True)]
    return _share(*means)


ESTIMATORS: Mapping[str, Estimator] = {"threshold": by_threshold, "mean": by_mean}


@further(
    "count",
    "members on a list",
    infers="how many of a list are members",
    needs=FEATURES_AND_LABEL,
    sees=EVERY_MODEL,
    assumes="scores of others' records are distributed as those of its own",
    baseline="the public share of members",
    source="Tong et al. 2025 (usage cardinality)",
)
def count(
    scores: np.ndarray,
    members: np.ndarray,
    others: np.ndarray,
    estimator: Estimator,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> Count:
    """Return how many of the list are members, with a percentile bootstrap interval.

    scores: (n,) of the list; members, others: (a,), (b,) scores of records that the adversary knows to be in
    and out. All three are resampled, since what the known records say is uncertain too.

    Raises:
        ValueError: a list is empty.
    """
    if not (len(scores) and len(members) and len(others)):
        raise ValueError("counting needs a list, known members and known non-members")
    n = len(scores)
    sampled = [estimator(*(rng.choice(s, len(s)) for s in (scores, members, others))) for _ in range(draws)]
    low, high = np.quantile(sampled, [0.025, 0.975])
    value = estimator(scores, members, others)
    return Count(n * value, n * min(float(low), value), n * max(float(high), value))


def prior(n: int, share: float) -> Count:
    """Return what is guessed without the model: the public share of members, and nothing excluded."""
    return Count(n * share, 0.0, float(n))


def _above(values: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Return the share of ``values`` at or above each cut, (k,)."""
    return np.asarray(1 - np.searchsorted(np.sort(values), cuts, side="left") / len(values))


def _share(asked: float, inside: float, outside: float) -> float:
    """Return the share of members that explains ``asked``; one half where the score tells nothing."""
    if abs(inside - outside) < LEAST_ADVANTAGE:
        return 0.5
    return float(np.clip((asked - outside) / (inside - outside), 0, 1))
