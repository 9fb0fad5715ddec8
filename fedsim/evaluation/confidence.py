"""The confidence gap: how sure the global model is of members' and of non-members' true labels, by round.

It is what most attacks live on, and a picture that can be remembered: two distributions that part. The
threshold in it is the adversary's own, set on its own training and held-out records as in
`attacks.calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedsim.evaluation.estimates import auc

EDGES = np.arange(-9.0, 9.5, 0.5)
"""Of the bins, in log-odds of the true label: from p = .0001 to p = .9999; what lies beyond is in the
last."""

COLUMNS = ["round", "edge", "members", "nonmembers"]
ROUND_COLUMNS = [
    "round", "threshold", "tpr", "fpr", "auc", "low", "high", "n_members", "n_nonmembers",
]  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """How sure one round's global model is: φ = log p_y / (1 − p_y), (n,) float64, of each candidate.

    threshold: the adversary says 'member' where φ ≥ it
    """

    round: int
    phi: np.ndarray
    threshold: float


def histogram(seen: Sequence[Seen], member: np.ndarray) -> pd.DataFrame:
    """Return how many members and non-members lie in each bin, a row per round and bin (`COLUMNS`).

    member: (n,) bool. edge: the lower end of the bin in log-odds, see `EDGES`.
    """
    rows: list[tuple] = []
    for one in seen:
        phi = np.clip(one.phi, EDGES[0], EDGES[-1] - 1e-9)
        counts = [np.histogram(phi[side], EDGES)[0] for side in (member, ~member)]
        rows += [(one.round, *row) for row in zip(EDGES[:-1], *counts, strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)


def by_round(seen: Sequence[Seen], member: np.ndarray) -> pd.DataFrame:
    """Return what the confidence of each round's model alone tells, a row per round (`ROUND_COLUMNS`).

    tpr, fpr: at the adversary's own threshold; auc, low, high: see `estimates.auc`
    """
    rows = []
    for one in seen:
        inside, outside = one.phi[member], one.phi[~member]
        found = auc(inside, outside)
        rates = [float(np.mean(side >= one.threshold)) for side in (inside, outside)]
        rows.append((one.round, one.threshold, *rates, found.value, found.low, found.high,
                     len(inside), len(outside)))  # fmt: skip
    return pd.DataFrame(rows, columns=ROUND_COLUMNS)
