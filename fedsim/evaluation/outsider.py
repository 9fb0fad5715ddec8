"""How right an outsider's accusations are, where a file says who is a member.

auc                 of the scores (DeLong); a candidate that was not asked about counts as the least suspect
accused             share of members, and of the others, whom the rule 'p ≤ α' accuses (Clopper & Pearson)
right               share of the accused who are members (Clopper & Pearson)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from fedsim.evaluation.estimates import Estimate, auc, rate

COLUMNS = ["attack", "queries", "metric", "value", "low", "high", "n", "note"]


def judge(
    findings: Mapping[str, tuple[np.ndarray, np.ndarray, int]], member: np.ndarray, alpha: float
) -> pd.DataFrame:
    """Return a table of `COLUMNS`, four rows an attack.

    findings: attack → scores (n,), p-values (n,), NaN where there is none, and queries spent
    member: (n,) bool
    """
    rows = []
    for attack, (scores, p_values, queries) in findings.items():
        accused = p_values <= alpha  # NaN accuses nobody
        n, m, total = int(member.sum()), int((~member).sum()), int(accused.sum())
        estimates = {
            "auc": (ranked(scores, member), len(member)),
            "accused members": (rate(int((accused & member).sum()), n), n),
            "accused others": (rate(int((accused & ~member).sum()), m), m),
            "right": (rate(int((accused & member).sum()), total), total),
        }
        rows += [_row(attack, queries, metric, *found) for metric, found in estimates.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def judge_curve(points: Sequence[tuple[str, int, np.ndarray]], member: np.ndarray) -> pd.DataFrame:
    """Return the AUC at each point (attack, queries, scores (n,)), a table of `COLUMNS`."""
    rows = [
        _row(attack, queries, "auc", ranked(scores, member), len(member))
        for attack, queries, scores in points
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def ranked(scores: np.ndarray, member: np.ndarray) -> Estimate:
    """Return the AUC of scores of which NaN counts as the lowest."""
    filled = np.where(np.isfinite(scores), scores, -np.inf)
    distinct = np.unique(filled, return_inverse=True)[1].astype(np.float64)
    return auc(distinct[member], distinct[~member])


def _row(attack: str, queries: int, metric: str, estimate: Estimate, n: int) -> tuple:
    return attack, queries, metric, estimate.value, estimate.low, estimate.high, n, estimate.note
