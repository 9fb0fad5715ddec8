"""Ranks of scores among others: what AUCs are made of."""

from __future__ import annotations

import numpy as np


def below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return how many of ``others`` (m,) lie below each of ``scores`` (n,), those equal to it as one half.

    (n,) float64, exact. The same as differences of average ranks (`scipy.stats.rankdata`), for a few hundred
    scores in a tenth of the time, and without its import.
    """
    ordered = np.sort(others)
    first, last = (np.searchsorted(ordered, scores, side) for side in ("left", "right"))
    return np.asarray((first + last) / 2)


def auc(scores: np.ndarray, others: np.ndarray) -> float:
    """Return how often one of ``scores`` is above one of ``others``, ties counting half (Mann & Whitney)."""
    return float(below(scores, others).sum() / (len(scores) * len(others)))
