"""How often source inference names the right party; like `evaluation`, it knows the truth.

accuracy      of the party with the largest score, on records that are members; of equally good ones each
              counts by its share. 95 % interval of Clopper & Pearson 1934; over games see `evaluation.mean`
chance        one over the number of parties that are asked about
label_prior   of the party that has most records of the record's label, by the same count: what a guesser who
              knows every party's label distribution, and has no model, would reach
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from fedsim.evaluation import estimates
from fedsim.evaluation.estimates import Estimate

COLUMNS = ["observer", "attack", "game", "metric", "value", "low", "high", "n"]


def evaluate(scores: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Return one row per observer, attack, game ('all': the mean) and metric; n: members asked about.

    scores: game, observer, attack, candidate, party, score, a row for every candidate and party.
    truth: game, candidate, party, member (bool), label.

    Raises:
        ValueError: a score is NaN, or a game has no member among the candidates.
    """
    if scores["score"].isna().any():
        raise ValueError("a score is NaN")
    rows: list[tuple] = []
    for (observer, attack), of_attack in scores.groupby(["observer", "attack"], sort=False):
        key = str(observer), str(attack)
        games = [
            (str(game), _measure(of_game, truth[truth["game"] == game]))
            for game, of_game in of_attack.groupby("game")
        ]
        for game, (size, metrics) in games:
            rows += _rows(key, game, metrics, size)
        means = {
            name: estimates.mean([metrics[name] for _, (_, metrics) in games]) for name in games[0][1][1]
        }
        rows += _rows(key, "all", means, sum(size for _, (size, _) in games))
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(key: tuple[str, str], game: str, metrics: dict[str, Estimate], n: int) -> Iterator[tuple]:
    for metric, estimate in metrics.items():
        yield (*key, game, metric, estimate.value, estimate.low, estimate.high, n)


def _measure(scores: pd.DataFrame, truth: pd.DataFrame) -> tuple[int, dict[str, Estimate]]:
    """Return the number of members asked about and the metrics of one attack in one game."""
    table = scores.pivot(index="candidate", columns="party", values="score")
    known = truth.set_index("candidate").loc[table.index]
    parties = np.array(table.columns)
    counts = known.groupby(["party", "label"]).size().unstack("party", fill_value=0)
    prior = counts.reindex(columns=list(parties), fill_value=0).loc[known["label"]].to_numpy(float)
    member = known["member"].to_numpy(bool)
    if not member.any():
        raise ValueError("no candidate is a member of any party")
    right = known["party"].to_numpy()[member, None] == parties
    chance = 1 / len(parties)
    return int(member.sum()), {
        "accuracy": accuracy(table.to_numpy(float)[member], right),
        "chance": Estimate(chance, chance, chance),
        "label_prior": accuracy(prior[member], right),
    }


def accuracy(scores: np.ndarray, right: np.ndarray) -> Estimate:
    """Return the share of records whose party has the largest score; ties count by their share.

    scores: (n, V) float64; right: (n, V) bool, one True a row.
    """
    best = scores == scores.max(axis=1, keepdims=True)
    hits = float(((best & right).sum(axis=1) / best.sum(axis=1)).sum())
    return Estimate(hits / len(scores), *estimates.clopper_pearson(hits, len(scores)))
