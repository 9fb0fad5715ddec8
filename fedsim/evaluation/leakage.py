"""How much an attack found out: scores joined with the truth, as a table with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from fedsim.evaluation.estimates import (
    Estimate,
    advantage,
    auc,
    balanced_accuracy,
    max_advantage,
    mean,
    mean_auc,
    ppv,
    rate,
    resolvable,
    tpr_at_fpr,
)

FALSE_POSITIVE_RATES = (0.1, 0.01, 0.001)

PRIORS = (0.1, 0.01, 0.001)
"""Shares of members among those whom an adversary asks about, for `ppv_table`."""

KEY = ["observer", "attack"]
"""The columns that name an attack in every table."""

COLUMNS = [
    "observer", "attack", "world", "party", "game", "metric", "value", "low", "high", "n_members",
    "n_nonmembers", "note",
]  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One attack's scores of one party's candidates in one game.

    members, nonmembers: (n,) float64 scores; the adversary says 'member' where score ≥ threshold.
    member_ranks, nonmember_ranks: (n,) in (0, 1], rank among all the game's candidates over their number.
    """

    game: str
    threshold: float
    members: np.ndarray
    nonmembers: np.ndarray
    member_ranks: np.ndarray
    nonmember_ranks: np.ndarray


def evaluate(scores: pd.DataFrame, thresholds: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Return the leakage table, one row per observer, attack, world, party, game and metric.

    scores: game, observer, attack, world, candidate, score. thresholds: game, observer, attack, world,
    threshold. truth: game, candidate, party, member (bool), one row per candidate.

    party: a victim's name, or 'all' for the candidates of all parties together.
    game: the game's number as text, or 'all' for the mean over games.
    metric: auc; at the adversary's own threshold balanced_accuracy, fpr, tpr_at_threshold and advantage; and
    properties of the score, at thresholds that the adversary does not know: advantage_max, tpr_at_fpr_0.1,
    _0.01, _0.001.
    n_members, n_nonmembers: records scored, summed over games in the rows of all games.

    Raises:
        ValueError: a score is NaN, a candidate has no truth, or an attack has no threshold.
    """
    return tabled(joined(scores, thresholds, truth))


def tabled(judged: pd.DataFrame) -> pd.DataFrame:
    """Return the leakage table of rows of `joined`; see `evaluate`."""
    rows: list[tuple] = []
    for (observer, attack, world), of_attack in judged.groupby([*KEY, "world"], sort=False):
        key = str(observer), str(attack), str(world)
        parties = of_attack["party"].to_numpy(object)
        for party in ["all", *sorted(set(parties))]:
            samples = samples_of(of_attack, None if party == "all" else parties == party)
            by_game = [measure(sample) for sample in samples]
            for sample, estimates in zip(samples, by_game, strict=True):
                rows += _rows((*key, party, sample.game), estimates, [sample])
            rows += _rows((*key, party, "all"), over_games(samples, by_game), samples)
    return pd.DataFrame(rows, columns=COLUMNS)


def measure(sample: Sample) -> dict[str, Estimate]:
    """Return every metric of one game."""
    hits, alarms = (int(np.sum(x >= sample.threshold)) for x in (sample.members, sample.nonmembers))
    tpr, fpr = rate(hits, len(sample.members)), rate(alarms, len(sample.nonmembers))
    balanced = balanced_accuracy(tpr, fpr)
    return {
        "auc": auc(sample.members, sample.nonmembers),
        "balanced_accuracy": balanced,
        "fpr": fpr,
        "tpr_at_threshold": tpr,
        "advantage": advantage(balanced),
        "advantage_max": max_advantage(sample.members, sample.nonmembers),
        **{
            f"tpr_at_fpr_{alpha}": tpr_at_fpr(sample.members, sample.nonmembers, alpha)
            for alpha in FALSE_POSITIVE_RATES
        },
    }


def over_games(samples: Sequence[Sample], by_game: Sequence[dict[str, Estimate]]) -> dict[str, Estimate]:
    """Return every metric's mean over games, of those that were measured, the AUC among them.

    Where some game has too few non-members for a TPR at FPR α, the games' ranks are pooled instead: ranks
    within a game need no truth, and make the games' scores comparable.
    """
    means = {metric: mean([estimates[metric] for estimates in by_game]) for metric in by_game[0]}
    means["auc"] = mean_auc([estimates["auc"] for estimates in by_game])
    if "advantage" in means:
        means["advantage"] = advantage(means["balanced_accuracy"])
    for alpha in FALSE_POSITIVE_RATES:
        if f"tpr_at_fpr_{alpha}" in means and pools(samples, alpha):
            means[f"tpr_at_fpr_{alpha}"] = _pooled_tpr(samples, alpha)
    return means


def pools(samples: Sequence[Sample], alpha: float) -> bool:
    """Whether the games' ranks are pooled for FPR ``alpha``: some game cannot resolve it by itself."""
    return len(samples) > 1 and any(not resolvable(len(sample.nonmembers), alpha) for sample in samples)


def _pooled_tpr(samples: Sequence[Sample], alpha: float) -> Estimate:
    members = np.concatenate([sample.member_ranks for sample in samples])
    nonmembers = np.concatenate([sample.nonmember_ranks for sample in samples])
    pooled = tpr_at_fpr(members, nonmembers, alpha)
    if math.isnan(pooled.value):
        return pooled
    notes = [f"ranks pooled over {len(samples)} games", *filter(None, [pooled.note])]
    return replace(pooled, note="; ".join(notes))


def roc(scores: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return false-positive rates, true-positive rates and thresholds, (k,) each; says 'member' at ≥.

    scores: (n,) float64; member: (n,) bool, with at least one of each.
    """
    from sklearn.metrics import roc_curve

    fpr, tpr, thresholds = roc_curve(member, scores)
    return fpr, tpr, thresholds


def roc_table(judged: pd.DataFrame, points: int = 25) -> pd.DataFrame:
    """Return each attack's ROC over all parties as columns observer, attack, fpr, tpr, low, high, note.

    judged: rows of `joined`, of one world
    fpr: ``points`` rates, evenly spaced on a log axis from the smallest that the non-members resolve, to 1.
    tpr, low, high: the mean over games, or of pooled ranks, as in the leakage table; the interval holds at
    each rate by itself, not for the whole curve.
    """
    rows: list[tuple] = []
    for (observer, attack), of_attack in judged.groupby(KEY, sort=False):
        samples = samples_of(of_attack)
        nonmembers = sum(len(sample.nonmembers) for sample in samples)
        for alpha in np.geomspace(1 / max(1, nonmembers), 1, points):
            point = _tpr_over_games(samples, float(alpha))
            rows.append((observer, attack, alpha, point.value, point.low, point.high, point.note))
    return pd.DataFrame(rows, columns=["observer", "attack", "fpr", "tpr", "low", "high", "note"])


def _tpr_over_games(samples: Sequence[Sample], alpha: float) -> Estimate:
    if pools(samples, alpha):
        return _pooled_tpr(samples, alpha)
    return mean([tpr_at_fpr(sample.members, sample.nonmembers, alpha) for sample in samples])


def ppv_table(leakage: pd.DataFrame, priors: Sequence[float] = PRIORS) -> pd.DataFrame:
    """Return how often an accusation is right, derived from a leakage table.

    priors: shares of members among those whom the adversary asks about, each in (0, 1).
    Columns: observer, attack, world, party, game, prior, at ('threshold', 'fpr_0.1', …), value, low, high,
    note.

    Raises:
        ValueError: a prior is not in (0, 1).
    """
    if not all(0 < prior < 1 for prior in priors):
        raise ValueError(f"priors {list(priors)}: each must lie in (0, 1)")
    rows: list[tuple] = []
    for keys, group in leakage.groupby([*KEY, "world", "party", "game"], sort=False):
        columns = (group[name] for name in ("metric", "value", "low", "high", "note"))
        by_metric = {metric: Estimate(*rest) for metric, *rest in zip(*columns, strict=True)}
        pairs = {"threshold": (by_metric["tpr_at_threshold"], by_metric["fpr"])}
        for alpha in FALSE_POSITIVE_RATES:
            pairs[f"fpr_{alpha}"] = (by_metric[f"tpr_at_fpr_{alpha}"], Estimate(alpha, alpha, alpha))
        for prior in priors:
            for at, (tpr, fpr) in pairs.items():
                result = ppv(tpr, fpr, prior)
                rows.append((*keys, prior, at, result.value, result.low, result.high, result.note))
    names = [*KEY, "world", "party", "game", "prior", "at", "value", "low", "high", "note"]
    return pd.DataFrame(rows, columns=names)


def joined(scores: pd.DataFrame, thresholds: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Return scores with threshold, party, member, and the rank within observer, attack, world and game.

    Scores that name no world are of world 'all'; those that name a round are ranked within it, and have a
    threshold for each. Arguments and errors are those of `evaluate`.
    """
    if scores["score"].isna().any():
        raise ValueError("a score is NaN")
    if "world" not in scores:
        scores, thresholds = scores.assign(world="all"), thresholds.assign(world="all")
    key = [*KEY, "world", *(["round"] if "round" in scores else [])]
    judged = scores.merge(truth, on=["game", "candidate"], how="left", validate="many_to_one")
    judged = judged.merge(thresholds, on=["game", *key], how="left", validate="many_to_one")
    if judged[["member", "threshold"]].isna().any(axis=None):
        raise ValueError("a scored candidate has no truth, or an attack has no threshold")
    judged["member"] = judged["member"].astype(bool)
    judged["rank"] = judged.groupby([*key, "game"])["score"].rank(pct=True)
    return judged


def samples_of(judged: pd.DataFrame, where: np.ndarray | None = None) -> list[Sample]:
    """Return one attack's rows of `joined` as one sample a game, in the order of the games.

    where: (rows,) bool, those of them; default: all
    """
    names = "game", "threshold", "score", "rank", "member"
    columns = [judged[name].to_numpy() if where is None else judged[name].to_numpy()[where] for name in names]
    return [_sample(game, *columns) for game in np.unique(columns[0])]


def _sample(
    game: object,
    games: np.ndarray,
    threshold: np.ndarray,
    score: np.ndarray,
    rank: np.ndarray,
    member: np.ndarray,
) -> Sample:
    inside, outside = ((games == game) & side for side in (member, ~member))
    chosen = float(threshold[games == game][0])
    return Sample(str(game), chosen, score[inside], score[outside], rank[inside], rank[outside])


def _rows(key: tuple[str, ...], estimates: dict[str, Estimate], samples: Sequence[Sample]) -> Iterator[tuple]:
    """Yield a row per metric; key: observer, attack, world, party, game."""
    n = sum(len(sample.members) for sample in samples)
    m = sum(len(sample.nonmembers) for sample in samples)
    for metric, estimate in estimates.items():
        yield (*key, metric, estimate.value, estimate.low, estimate.high, n, m, estimate.note)
