"""How much attribute inference found out, for members and held-out records apart: the difference is the leak.

accuracy            share of the records whose value is guessed right (Clopper & Pearson)
above imputation    accuracy minus imputation's on the same records (paired; Newcombe 1998, method 10)
leak                that of members minus that of held-out records (MOVER): what the model tells of a member
                    beyond what any record like it has in common with the population
auc                 of two-valued columns: how the score ranks records of the second value above the first

Intervals are 95 %. Records whose cell is missing have no value to guess and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from fedsim.evaluation.estimates import Estimate, auc, mean, rate

COLUMNS = ["attack", "records", "metric", "value", "low", "high", "n", "note"]
SIDES = ("members", "held out")


def evaluate(
    scores: Mapping[str, np.ndarray], value: np.ndarray, member: np.ndarray, called: np.ndarray
) -> dict[tuple[str, str, str], tuple[Estimate, int]]:
    """Return (attack, records, metric) → (estimate, n) of one game.

    scores: (n, V) by attack, 'imputation' among them; value: (n,) true place of the value, −1 if missing;
    member: (n,) bool; called: (n,) bool, those whom the adversary calls members before it guesses.
    records: 'members', 'held out', 'called members', or 'difference' (members minus held out).
    """
    known = value >= 0
    right = {name: (score.argmax(axis=1) == value)[known] for name, score in scores.items()}
    sides = {"members": member[known], "held out": ~member[known], "called members": called[known]}
    result: dict[tuple[str, str, str], tuple[Estimate, int]] = {}
    for name, score in scores.items():
        for side, rows in sides.items():
            n = int(rows.sum())
            result[name, side, "accuracy"] = rate(int(right[name][rows].sum()), n), n
            gain = paired_difference(right[name][rows], right["imputation"][rows])
            result[name, side, "above imputation"] = gain, n
            if score.shape[1] == 2:
                result[name, side, "auc"] = _auc(score[known][rows], value[known][rows]), n
        for metric, label in (("accuracy", "accuracy"), ("above imputation", "leak")):
            ends = [result[name, side, metric][0] for side in SIDES]
            result[name, "difference", label] = difference(*ends), int(known.sum())
    return result


def _auc(score: np.ndarray, value: np.ndarray) -> Estimate:
    odds = score[:, 1] - score[:, 0]
    return auc(odds[value == 1], odds[value == 0])


def difference(first: Estimate, second: Estimate) -> Estimate:
    """Return first − second of independent estimates by MOVER (Zou & Donner 2008)."""
    value = first.value - second.value
    low = value - math.hypot(first.value - first.low, second.high - second.value)
    high = value + math.hypot(first.high - first.value, second.value - second.low)
    return Estimate(value, low, high, first.note or second.note)


def paired_difference(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Return the difference of two shares of the same n records (Newcombe 1998, paired method 10).

    first, second: (n,) bool. Wilson's interval of each share, combined with their correlation φ, which is
    corrected for continuity where it is positive.
    """
    n = len(first)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, "no such records")
    a, b = int((first & second).sum()), int((first & ~second).sum())
    c, d = int((~first & second).sum()), int((~first & ~second).sum())
    p, q = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = wilson(a + b, n), wilson(a + c, n)
    margins = math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    product = a * d - b * c
    phi = 0.0 if margins == 0 else (max(product - n / 2, 0.0) if product > 0 else product) / margins
    below = (p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2
    above = (u1 - p) ** 2 - 2 * phi * (u1 - p) * (q - l2) + (q - l2) ** 2
    return Estimate(p - q, p - q - math.sqrt(max(below, 0.0)), p - q + math.sqrt(max(above, 0.0)))


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of ``hits`` in ``n`` (Wilson 1927)."""
    z = 1.959963984540054
    centre = (hits + z * z / 2) / (n + z * z)
    reach = z / (n + z * z) * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return centre - reach, centre + reach


def over_games(
    games: Sequence[Mapping[tuple[str, str, str], tuple[Estimate, int]]],
) -> pd.DataFrame:
    """Return the mean over games as a table: attack, records, metric, value, low, high, n, note.

    n: records over all games.
    """
    rows = []
    for key in games[0]:
        share = key[2] in ("accuracy", "auc") and key[1] != "difference"
        pooled = (mean if share else mean_difference)([game[key][0] for game in games])
        n = sum(game[key][1] for game in games)
        rows.append((*key, pooled.value, pooled.low, pooled.high, n, pooled.note))
    return pd.DataFrame(rows, columns=COLUMNS)


def mean_difference(estimates: Sequence[Estimate]) -> Estimate:
    """Return `estimates.mean` of values in [−2, 2]: moved to [0, 1], where it clips, and back."""
    moved = [replace(e, value=_in(e.value), low=_in(e.low), high=_in(e.high)) for e in estimates]
    pooled = mean(moved)
    return replace(pooled, value=_out(pooled.value), low=_out(pooled.low), high=_out(pooled.high))


def _in(value: float) -> float:
    return (value + 2) / 4


def _out(value: float) -> float:
    return 4 * value - 2
