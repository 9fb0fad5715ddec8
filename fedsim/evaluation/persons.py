"""How well persons in the data are told from others: by the same measures as records, a person for a record.

auc     P(a person in the data has the larger score), with DeLong's interval
tpr     share of them at or above the adversary's own threshold; fpr: share of the others (Clopper & Pearson)

Of a person all records are on one side, so that persons are independent draws and intervals hold. Over games
the mean (`estimates.mean`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedsim.evaluation.estimates import Estimate, auc, mean, rate

COLUMNS = ["asked", "knows", "score", "metric", "value", "low", "high", "n_members", "n_others", "note"]

Key = tuple[str, str, str]
"""asked ('person' or 'range'), what the adversary knows or how it sums up, the score's name."""


@dataclass(frozen=True)
class Found:
    """Scores (P,) of the persons asked about, and the adversary's threshold; NaN where it has none."""

    scores: np.ndarray
    threshold: float = float("nan")


def evaluate(found: Mapping[Key, Found], member: np.ndarray) -> dict[tuple[Key, str], Estimate]:
    """Return (key, metric) → estimate of one game; member: (P,) bool."""
    result: dict[tuple[Key, str], Estimate] = {}
    for key, of_key in found.items():
        inside, outside = of_key.scores[member], of_key.scores[~member]
        result[key, "auc"] = auc(inside, outside)
        if np.isfinite(of_key.threshold):
            for metric, side in (("tpr", inside), ("fpr", outside)):
                result[key, metric] = rate(int((side >= of_key.threshold).sum()), len(side))
    return result


def over_games(
    games: Sequence[Mapping[tuple[Key, str], Estimate]], members: Sequence[np.ndarray]
) -> pd.DataFrame:
    """Return the mean over games as a table of `COLUMNS`; n_members and n_others are over all games."""
    inside = sum(int(member.sum()) for member in members)
    others = sum(len(member) for member in members) - inside
    rows = []
    for key, metric in games[0]:
        pooled = mean([game[key, metric] for game in games if (key, metric) in game])
        rows.append((*key, metric, pooled.value, pooled.low, pooled.high, inside, others, pooled.note))
    return pd.DataFrame(rows, columns=COLUMNS)
