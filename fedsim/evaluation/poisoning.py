"""What a poisoning did: to the answers about its targets, to everybody else, and how much of it shows.

damage      mean over targets of p_y(honest replay) − p_y(poisoned): how much less the label is believed
turned      share of the targets that the honest model gets right and the poisoned one wrong
accuracy    held-out accuracy of the honest replay minus the poisoned one's
members     share of the targets that are members indeed
norm, cosine  of the adversary's update beside the others' (`runs.poison.Replayed`), less the honest one's
gain        damage to people called members minus that to the same number at random

Student's intervals over targets of all games, Welch's for the gain; shares by Clopper & Pearson.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedsim.evaluation.estimates import ERROR, Estimate, rate

KEYS = ["defence", "kind", "aim", "update"]
COLUMNS = [*KEYS, "metric", "value", "low", "high", "n"]


@dataclass(frozen=True, eq=False)
class Case:
    """One poisoned replay of one game. damage: (n,) by target; turned, member: (n,) bool."""

    key: tuple[str, str, str, str]
    damage: np.ndarray
    turned: np.ndarray
    member: np.ndarray
    accuracy: float
    norm: float
    cosine: float


def table(cases: Sequence[Case]) -> pd.DataFrame:
    """Return the measures as a table of `COLUMNS`, over all games; n: targets."""
    rows: list[tuple] = []
    by_key: dict[tuple[str, ...], list[Case]] = {}
    for one in cases:
        by_key.setdefault(one.key, []).append(one)
    for key, of_key in by_key.items():
        damage, turned, member = (
            np.concatenate([getattr(one, name) for one in of_key]) for name in ("damage", "turned", "member")
        )
        n = len(damage)
        estimates = {
            "damage": student(damage),
            "turned": rate(int(turned.sum()), n),
            "members": rate(int(member.sum()), n),
        }
        for name in ("accuracy", "norm", "cosine"):
            estimates[name] = Estimate(
                float(np.mean([getattr(one, name) for one in of_key])), math.nan, math.nan
            )
        if key[2] == "called members":
            against = by_key[(*key[:2], "random", key[3])]
            estimates["gain"] = welch(damage, np.concatenate([one.damage for one in against]))
        rows += [(*key, metric, e.value, e.low, e.high, n) for metric, e in estimates.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def student(sample: np.ndarray) -> Estimate:
    """Return the mean with Student's 95 % interval; without one where there are fewer than two."""
    from scipy.stats import t

    if len(sample) < 2:
        return Estimate(float(sample.mean()) if len(sample) else math.nan, math.nan, math.nan)
    reach = float(t.isf(ERROR / 2, len(sample) - 1)) * float(sample.std(ddof=1)) / math.sqrt(len(sample))
    return Estimate(float(sample.mean()), float(sample.mean()) - reach, float(sample.mean()) + reach)


def welch(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Return the difference of means with Welch's 95 % interval (Welch 1947)."""
    from scipy.stats import ttest_ind

    value = float(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return Estimate(value, math.nan, math.nan)
    if first.std() == second.std() == 0:
        return Estimate(value, value, value)
    interval = ttest_ind(first, second, equal_var=False).confidence_interval(1 - ERROR)
    return Estimate(value, float(interval.low), float(interval.high))
