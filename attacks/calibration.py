"""Thresholds that an adversary chooses on what it owns, never on the target's truth."""

from __future__ import annotations

import numpy as np


def calibrate(members: np.ndarray, nonmembers: np.ndarray) -> float:
    """Return the threshold c for which 'score ≥ c' has the best balanced accuracy.

    members, nonmembers: (n,) scores. c lies halfway between two neighbouring scores; of equally good cuts the
    one whose neighbours are furthest apart wins, then the lowest. Where every cut is worse than chance, c
    lies above all scores.

    Raises:
        ValueError: one of the two is empty.
    """
    if not len(members) or not len(nonmembers):
        raise ValueError("a threshold needs at least one member and one non-member")
    distinct = np.unique(np.concatenate([members, nonmembers]))
    low, high = distinct[:-1], distinct[1:]
    middle = low + (high - low) / 2
    cuts = np.append(np.where(middle > low, middle, high), np.nextafter(distinct[-1], np.inf))
    margins = np.append(high - low, 0.0)
    hits = len(members) - np.searchsorted(np.sort(members), cuts)
    alarms = len(nonmembers) - np.searchsorted(np.sort(nonmembers), cuts)
    advantage = hits * len(nonmembers) - alarms * len(members)  # in integers, so that ties are ties
    return float(cuts[np.lexsort((cuts, -margins, -advantage))[0]])
