"""How near counts come to the truth: lists of a known number of members, and shares of groups.

A list is drawn from the candidates with a planted share of members, so that the prior alone (half of the
candidates are members) is right about one list only. Intervals of errors are Student's over lists, the
covered share is `estimates.rate`. Lists of a game share records: the intervals speak of further lists of
these games.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.evaluation.estimates import ERROR, Estimate, rate

PLANTED = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Drawn:
    """A list of candidates. rows: (size,) their places; members: how many of them are members."""

    rows: np.ndarray
    members: int


def lists(
    member: np.ndarray, size: int, repeats: int, rng: np.random.Generator, planted: Sequence[float] = PLANTED
) -> list[Drawn]:
    """Return ``repeats`` lists of each planted share, ``size`` candidates each, fewer where there are fewer.

    member: (n,) bool
    """
    inside, outside = np.flatnonzero(member), np.flatnonzero(~member)
    size = min(size, len(inside), len(outside))
    drawn = []
    for share in planted:
        wanted = round(share * size)
        for _ in range(repeats):
            sides = (inside, wanted), (outside, size - wanted)
            rows = np.concatenate([rng.choice(side, n, replace=False) for side, n in sides])
            drawn.append(Drawn(rows, wanted))
    return drawn


def mean_absolute_error(values: np.ndarray, truths: np.ndarray) -> Estimate:
    """Return the mean of |value − truth| with Student's 95 % interval, not below 0."""
    return _student(np.abs(values - truths), 0.0)


def paired_gain(values: np.ndarray, others: np.ndarray, truths: np.ndarray) -> Estimate:
    """Return by how much ``values`` are nearer to the truths than ``others``: mean, Student's interval."""
    return _student(np.abs(others - truths) - np.abs(values - truths), -math.inf)


def _student(sample: np.ndarray, least: float) -> Estimate:
    from scipy.stats import t

    if len(sample) < 2:
        value = float(sample.mean()) if len(sample) else math.nan
        return Estimate(value, math.nan, math.nan, "an interval needs two of them")
    reach = float(t.isf(ERROR / 2, len(sample) - 1)) * float(sample.std(ddof=1)) / math.sqrt(len(sample))
    value = float(sample.mean())
    return Estimate(value, max(least, value - reach), value + reach)


def covered(lows: np.ndarray, highs: np.ndarray, truths: np.ndarray) -> Estimate:
    """Return the share of intervals that hold the truth, with Clopper & Pearson's interval."""
    hits = (lows - 1e-9 <= truths) & (truths <= highs + 1e-9)
    return rate(int(hits.sum()), len(truths))
