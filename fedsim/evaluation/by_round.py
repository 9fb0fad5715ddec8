"""How much an attack finds out from the model of each round."""

from __future__ import annotations

import pandas as pd

from fedsim.evaluation.estimates import Estimate, auc, tpr_at_fpr
from fedsim.evaluation.leakage import KEY, Sample, joined, over_games, samples_of

METRICS = ("auc", "tpr_at_fpr_0.01")

COLUMNS = [*KEY, "round", "game", "metric", "value", "low", "high", "n_members", "n_nonmembers", "note"]


def evaluate_by_round(scores: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Return leakage by round over all parties, one row per observer, attack, round, game and metric.

    scores: game, observer, attack, round, candidate, score; truth: see `leakage.evaluate`.
    game: the game's number as text, or 'all' for the mean over games, of those that came to the round.
    metric: one of `METRICS`, with intervals and notes as in the leakage table.

    Raises:
        ValueError: a score is NaN, or a candidate has no truth.
    """
    rows: list[tuple] = []
    # No threshold is chosen: both metrics are properties of the score.
    cuts = scores[["game", *KEY, "round"]].drop_duplicates().assign(threshold=0.0)
    judged = joined(scores, cuts, truth)
    for (observer, attack, t), of_round in judged.groupby([*KEY, "round"], sort=False):
        samples = samples_of(of_round)
        by_game = [_measure(sample) for sample in samples]
        games = zip(
            [sample.game for sample in samples], by_game, [[sample] for sample in samples], strict=True
        )
        for game, estimates, of_game in [*games, ("all", over_games(samples, by_game), samples)]:
            n = sum(len(sample.members) for sample in of_game)
            m = sum(len(sample.nonmembers) for sample in of_game)
            for metric in METRICS:
                found = estimates[metric]
                figures = (found.value, found.low, found.high, n, m, found.note)
                rows.append((observer, attack, int(str(t)), game, metric, *figures))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values([*KEY, "round"], kind="stable", ignore_index=True)


def _measure(sample: Sample) -> dict[str, Estimate]:
    """Return `METRICS` of one game."""
    members, nonmembers = sample.members, sample.nonmembers
    return {"auc": auc(members, nonmembers), "tpr_at_fpr_0.01": tpr_at_fpr(members, nonmembers, 0.01)}
