"""Comparisons of attacks, parties, adversaries and records; they need the truth.

compare_auc      two attacks on the same candidates: paired DeLong et al. 1988
compare_tpr      the same at a fixed FPR: bootstrap over games and records, paired
strongest        the attack that finds most, with an interval that allows for having chosen it
exposure         adversary × victim, from several runs
vulnerability    each record's own exposure, over games
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedsim.core.ranks import below
from fedsim.evaluation.estimates import (
    ERROR,
    WITHIN,
    Estimate,
    auc,
    bounded_below,
    clopper_pearson,
    mean_auc,
    place,
    resolvable,
)
from fedsim.evaluation.leakage import KEY


@dataclass(frozen=True)
class Scored:
    """Several attacks' scores of the same candidates in one game.

    scores: (k, n) float64, one row an attack; member: (n,) bool.
    """

    scores: np.ndarray
    member: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """A difference, its 95 % interval, and the two-sided p-value of 'no difference'."""

    value: float
    low: float
    high: float
    p: float


Key = tuple[str, str]
"""Observer and name of an attack."""


def scored(judged: pd.DataFrame, attacks: Sequence[Key]) -> list[Scored]:
    """Return the games of ``judged`` (rows of `leakage.joined`), the attacks in the given order."""
    return [_scored(rows, attacks) for _, rows in judged.groupby("game")]


def _scored(rows: pd.DataFrame, attacks: Sequence[Key]) -> Scored:
    candidates, place = np.unique(rows["candidate"].to_numpy(), return_inverse=True)
    score, member = rows["score"].to_numpy(float), np.empty(len(candidates), bool)
    member[place] = rows["member"].to_numpy(bool)
    scores = np.full((len(attacks), len(candidates)), np.nan)
    rows_of = rows.groupby(KEY, sort=False).indices
    for number, attack in enumerate(attacks):
        scores[number, place[rows_of[attack]]] = score[rows_of[attack]]
    return Scored(scores, member)


def of_attacks(table: pd.DataFrame, attacks: Sequence[Key]) -> pd.DataFrame:
    """Return the rows of a table that are about these attacks."""
    return table[pd.MultiIndex.from_frame(table[KEY]).isin(list(attacks))]


def attacks_in(table: pd.DataFrame) -> list[Key]:
    """Return the attacks that a table is about, in its order."""
    pairs = table[KEY].drop_duplicates().itertuples(index=False)
    return [(str(observer), str(attack)) for observer, attack in pairs]


# ------------------------------------------------------------------------------------------ two attacks
def delong(game: Scored) -> tuple[np.ndarray, np.ndarray]:
    """Return the attacks' AUCs, (k,), and their covariance, (k, k).

    Source: DeLong, DeLong & Clarke-Pearson 1988, equations 4–6.
    """
    members, nonmembers = game.scores[:, game.member], game.scores[:, ~game.member]
    n, m = members.shape[1], nonmembers.shape[1]
    wins = np.array([below(*pair) for pair in zip(members, nonmembers, strict=True)]) / m  # (k, n)
    losses = 1 - np.array([below(*pair) for pair in zip(nonmembers, members, strict=True)]) / n  # (k, m)
    return wins.mean(axis=1), np.atleast_2d(np.cov(wins) / n + np.cov(losses) / m)


def compare_auc(games: Sequence[Scored]) -> Comparison:
    """Return AUC of the first attack − AUC of the second, mean over games; ``scores`` are (2, n).

    One game: Student's t at min(members, non-members) − 1 degrees of freedom, and it speaks of this one
    federation. Several: Student's t on the games' differences, as in `estimates.mean_auc`.

    Raises:
        ValueError: a game has fewer than two members or two non-members.
    """
    from scipy.stats import t

    if any(min(game.member.sum(), (~game.member).sum()) < 2 for game in games):
        raise ValueError("a paired comparison needs two members and two non-members in each game")
    differences, variances = np.array([_auc_difference(game) for game in games]).T
    value, within = float(differences.mean()), float(variances.mean())
    if len(games) == 1:
        variance, freedom = within, min(games[0].member.sum(), (~games[0].member).sum()) - 1
    else:
        variance, freedom = float(differences.var(ddof=1)) + WITHIN * within, len(games) - 1
    error = math.sqrt(variance / len(games))
    if error == 0:
        return Comparison(value, value, value, 1.0)
    reach = float(t.isf(ERROR / 2, freedom)) * error
    p = float(2 * t.sf(abs(value) / error, freedom))
    return Comparison(value, max(-1.0, value - reach), min(1.0, value + reach), p)


def _auc_difference(game: Scored) -> tuple[float, float]:
    """Return the difference and its variance, which is 0 for two scores of the same order alone."""
    values, covariance = delong(game)
    difference = float(values[0] - values[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance > 1e-15 or abs(difference) < 1e-12:
        return difference, max(0.0, variance)
    # Perfect against constant: DeLong sees no variance where the two intervals of `auc` still have width.
    estimates = [auc(row[game.member], row[~game.member]) for row in game.scores]
    return difference, sum(((one.high - one.low) / (2 * 1.96)) ** 2 for one in estimates)


def compare_tpr(
    games: Sequence[Scored], alpha: float, stream: np.random.Generator, draws: int = 2000
) -> Comparison:
    """Return TPR at FPR ``alpha`` of the first attack − the second's; ``scores`` are (2, n).

    The value is the difference of the leakage table's figures: mean over games, or of ranks pooled over games
    where one game cannot resolve α. The interval is the bootstrap's percentiles: games are drawn with
    replacement, then members and non-members within them, the same for both attacks. With fewer than about
    five games it knows little of how games differ, and speaks of these games. The p-value inverts it.

    Where the non-members are too few for a lower bound of either rate, percentiles of a bootstrap hold less
    often than they claim, and no difference is given.

    Raises:
        ValueError: all games' non-members together are too few (`estimates.bounded_below`).
    """
    rates, drawn = bootstrapped_tpr(games, alpha, stream, draws)
    value, differences = float(rates[0] - rates[1]), drawn[0] - drawn[1]
    low, high = np.quantile(differences, [ERROR / 2, 1 - ERROR / 2])
    tail = min(np.sum(differences <= 0), np.sum(differences >= 0))
    return Comparison(value, float(low), float(high), float(min(1, 2 * (tail + 1) / (draws + 1))))


def bootstrapped_tpr(
    games: Sequence[Scored], alpha: float, stream: np.random.Generator, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return both attacks' TPR at FPR ``alpha``, (2,), and what `compare_tpr` draws of them, (2, draws).

    Raises:
        ValueError: all games' non-members together are too few (`estimates.bounded_below`).
    """
    nonmembers = [int((~game.member).sum()) for game in games]
    if not bounded_below(sum(nonmembers), alpha):
        raise ValueError(f"n={sum(nonmembers)} non-members are too few to compare rates at FPR {alpha}")
    if len(games) > 1 and not all(resolvable(m, alpha) for m in nonmembers):
        games, origin = _pool(games)
    else:
        origin = [np.full(len(game.member), number) for number, game in enumerate(games)]
    once = [np.ones((1, len(game.member)), dtype=int) for game in games]
    resampled = _resampled(games, origin, stream, draws)
    drawn = np.concatenate([_tprs(games, weights, alpha) for weights in resampled], axis=1)
    return _tprs(games, once, alpha)[:, 0], drawn


def _pool(games: Sequence[Scored]) -> tuple[list[Scored], list[np.ndarray]]:
    """Return one game of all games' ranks, and the number of the game that each candidate is from."""
    from scipy.stats import rankdata

    ranks = [rankdata(game.scores, axis=1) / len(game.member) for game in games]
    member = np.concatenate([game.member for game in games])
    origin = np.repeat(np.arange(len(games)), [len(game.member) for game in games])
    return [Scored(np.concatenate(ranks, axis=1), member)], [origin]


def _resampled(
    games: Sequence[Scored], origin: Sequence[np.ndarray], stream: np.random.Generator, draws: int
) -> Iterator[list[np.ndarray]]:
    """Yield how often each candidate is drawn, (b, n) int per game, in chunks that add up to ``draws``."""
    total = 1 + max(int(numbers.max()) for numbers in origin)
    chunk = max(1, 4_000_000 // max(len(game.member) for game in games))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        copies = stream.multinomial(total, np.full(total, 1 / total), size)  # (b, games)
        yield [
            _resampled_game(game.member, numbers, copies, stream)
            for game, numbers in zip(games, origin, strict=True)
        ]


def _resampled_game(
    member: np.ndarray, origin: np.ndarray, copies: np.ndarray, stream: np.random.Generator
) -> np.ndarray:
    weights = np.zeros((len(copies), len(member)), dtype=int)
    for number in np.unique(origin):
        for side in (member, ~member):
            places = np.flatnonzero(side & (origin == number))
            if len(places):
                shares = np.full(len(places), 1 / len(places))
                weights[:, places] = stream.multinomial(copies[:, number] * len(places), shares)
    return weights


def _tprs(games: Sequence[Scored], weights: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """Return both attacks' TPR at FPR ``alpha`` for each of b weightings, (2, b).

    A game counts as often as it was drawn: with its share of all the weights of its size.
    """
    shares = np.stack([w.sum(axis=1) / w.shape[1] for w in weights])  # (games, b)
    rates = np.stack(
        [[_weighted_tpr(game, attack, w, alpha) for game, w in zip(games, weights, strict=True)]
         for attack in (0, 1)]
    )  # fmt: skip
    return np.asarray((shares * rates).sum(axis=1) / shares.sum(axis=0))


def _weighted_tpr(game: Scored, attack: int, weights: np.ndarray, alpha: float) -> np.ndarray:
    """Return `estimates.tpr_at_fpr` of each weighting, (b,): a record counts as often as it was drawn."""
    scores, member = game.scores[attack], game.member
    order = np.argsort(-scores[~member], kind="stable")
    nonmembers, alarms = scores[~member][order], np.cumsum(weights[:, ~member][:, order], axis=1)
    at = place(alarms[:, -1], alpha)  # (b,), among the drawn non-members, largest first, from 1 on
    before = np.floor(at + 1e-9)
    order = np.argsort(-scores[member], kind="stable")
    hits = np.cumsum(weights[:, member][:, order], axis=1)
    above = np.searchsorted(-scores[member][order], -nonmembers)  # (m,) members strictly above each
    hits = np.pad(hits, ((0, 0), (1, 0)))

    def hits_above(j: np.ndarray) -> np.ndarray:
        """Return the members strictly above the j-th largest non-member drawn, (b,); none for j = 0."""
        found = hits[np.arange(len(hits)), above[np.argmax(alarms >= j[:, None], axis=1)]]
        return np.where(j == 0, 0, np.where(j > alarms[:, -1], hits[:, -1], found))

    lower = hits_above(before)
    between = lower + np.maximum(0, at - before) * (hits_above(before + 1) - lower)
    return np.asarray(between / np.maximum(1, hits[:, -1]))


def compare_table(
    judged: pd.DataFrame,
    reference: Key,
    stream: np.random.Generator,
    alpha: float | None = 0.01,
    draws: int = 2000,
) -> pd.DataFrame:
    """Return every other attack's difference from ``reference`` (that minus the other), over all parties.

    judged: rows of `leakage.joined`. Columns: observer, attack, metric ('auc' or 'tpr_at_fpr_α'), value, low,
    high, p; no row of TPR without α, or where the non-members of all games together are too few for it.
    """
    rows: list[tuple] = []
    others = [key for key in attacks_in(judged) if key != reference]
    everyones = scored(judged, [reference, *others])
    for number, attack in enumerate(others, start=1):
        games = [Scored(game.scores[[0, number]], game.member) for game in everyones]
        results = {"auc": compare_auc(games)}
        nonmembers = sum(int((~game.member).sum()) for game in games)
        if alpha is not None and bounded_below(nonmembers, alpha):
            results[f"tpr_at_fpr_{alpha}"] = compare_tpr(games, alpha, stream, draws)
        rows += [(*attack, metric, r.value, r.low, r.high, r.p) for metric, r in results.items()]
    return pd.DataFrame(rows, columns=[*KEY, "metric", "value", "low", "high", "p"])


# ------------------------------------------------------------------------------- the strongest of several
def strongest(judged: pd.DataFrame, stream: np.random.Generator) -> pd.DataFrame:
    """Return, for all parties and for each, the attack with the largest AUC.

    judged: rows of `leakage.joined`. Columns: party, observer, attack, attacks (how many it was chosen from),
    value, low, high, n_members, n_nonmembers. Whoever picks the best of k attacks on the same records picks
    luck as well: the interval is so wide that all k attacks' intervals hold at once, with 95 %. The value
    itself still errs upwards, to the side of caution.
    """
    attacks = attacks_in(judged)
    parties = ["all", *sorted(judged["party"].unique())]
    rows = [_strongest(judged, party, attacks, stream) for party in parties]
    columns = ["party", *KEY, "attacks", "value", "low", "high", "n_members", "n_nonmembers"]
    return pd.DataFrame(rows, columns=columns)


def _strongest(
    judged: pd.DataFrame, party: str, attacks: Sequence[Key], stream: np.random.Generator
) -> tuple:
    rows = judged if party == "all" else judged[judged["party"] == party]
    games = [game for game in scored(rows, attacks) if _has_both(game)]
    n = sum(int(game.member.sum()) for game in games)
    m = sum(len(game.member) for game in games) - n
    if not games:
        return (party, *attacks[0], len(attacks), math.nan, math.nan, math.nan, n, m)
    error = simultaneous_error(games, stream)
    estimates = [_auc_over_games(games, attack, error) for attack in range(len(attacks))]
    best = int(np.argmax([estimate.value for estimate in estimates]))
    chosen = estimates[best]
    return (party, *attacks[best], len(attacks), chosen.value, chosen.low, chosen.high, n, m)


def _has_both(game: Scored) -> bool:
    return bool(game.member.any() and not game.member.all())


def _auc_over_games(games: Sequence[Scored], attack: int, error: float) -> Estimate:
    by_game = [
        auc(game.scores[attack][game.member], game.scores[attack][~game.member], error) for game in games
    ]
    return mean_auc(by_game, error)


def simultaneous_error(games: Sequence[Scored], stream: np.random.Generator, draws: int = 20_000) -> float:
    """Return the error of one interval at which the k attacks' intervals hold together with 1 − ERROR.

    From the largest of k normal variables that are correlated as DeLong's AUCs are; at most Bonferroni's
    divisor k, and 1 where all attacks rank alike.

    Source: Hothorn, Bretz & Westfall 2008, single-step max-|t|.
    """
    from scipy.stats import norm

    usable = [game for game in games if min(game.member.sum(), (~game.member).sum()) > 1]
    attacks = games[0].scores.shape[0]
    if not usable:
        return ERROR / attacks
    covariance = np.mean([delong(game)[1] for game in usable], axis=0)
    scale = np.sqrt(np.diag(covariance))
    varied = np.maximum(scale, 1e-12)
    correlation = np.where(np.eye(attacks) > 0, 1.0, covariance / np.outer(varied, varied))
    values, vectors = np.linalg.eigh(correlation)
    z = stream.normal(size=(draws, attacks)) @ (vectors * np.sqrt(np.clip(values, 0, None))).T
    largest = float(np.quantile(np.abs(z).max(axis=1), 1 - ERROR))
    return float(np.clip(2 * norm.sf(largest), ERROR / attacks, ERROR))


# --------------------------------------------------------------------------------- adversaries and records
def exposure(leakages: Mapping[str, pd.DataFrame], attack: str | None = None) -> pd.DataFrame:
    """Return adversary × victim: how much each party as a participant learns about each other's records.

    leakages: adversary → leakage table of a run with that adversary; figures are means over games.
    attack: the one to compare by; default: for each adversary the one with the largest AUC over all parties.
    Columns: adversary, victim, attack, value (AUC), low, high, n_members, n_nonmembers.

    Raises:
        ValueError: a run has no figure of ``attack``.
    """
    parts = [_exposure(adversary, leakage, attack) for adversary, leakage in leakages.items()]
    return pd.concat(parts, ignore_index=True)


def _exposure(adversary: str, leakage: pd.DataFrame, attack: str | None) -> pd.DataFrame:
    rows = leakage[(leakage["metric"] == "auc") & (leakage["game"] == "all")]
    rows = rows[rows["observer"] == "participant"]
    overall = rows[rows["party"] == "all"]
    name = attack or overall["attack"].iloc[int(np.nanargmax(overall["value"]))]
    rows = rows[(rows["attack"] == name) & (rows["party"] != "all")]
    if rows.empty:
        raise ValueError(f"the run with adversary '{adversary}' has no figure of attack '{name}'")
    columns = ["adversary", "victim", "attack", "value", "low", "high", "n_members", "n_nonmembers"]
    return rows.rename(columns={"party": "victim"}).assign(adversary=adversary)[columns]


def vulnerability(judged: pd.DataFrame) -> pd.DataFrame:
    """Return each record's own exposure over games to one attack.

    judged: one attack's rows of `leakage.joined`, with the column record.
    Columns: party, record, games_in, games_out, value, low, high, error, success, success_low, success_high.

    value: mean rank of the record's score in games where it was a member − in games where it was not, in
        [−1, 1]: 0 where membership changes nothing, at most about .5 over a whole population of records that
        are all found out. NaN for a record that was always on one side.
    low, high, error: 95 % interval and standard error, from one variance for all records (their pooled
        residual variance within records and sides), since no record is seen in many games: right on average
        over the records, too narrow for one whose rank varies more than most.
    success: share of the games in which the adversary, at its own threshold, was right; Clopper–Pearson.
    """
    from scipy.stats import t

    right = (judged["score"] >= judged["threshold"]) == judged["member"]
    success = judged.assign(right=right).groupby(["party", "record"])["right"].agg(["sum", "size"])
    sides = judged.groupby(["party", "record", "member"])["rank"].agg(["mean", "size", "var"])
    variance, freedom = _pooled_variance(sides)
    inside, outside = (_side(sides, member).reindex(success.index) for member in (True, False))
    value = inside["mean"] - outside["mean"]
    error = np.sqrt(variance * (1 / inside["size"] + 1 / outside["size"])).where(value.notna())
    reach = error * (t.isf(ERROR / 2, freedom) if freedom else math.nan)
    exact = [clopper_pearson(hits, n) for hits, n in success.itertuples(index=False)]
    return pd.DataFrame(
        {
            "games_in": inside["size"].fillna(0).astype(int),
            "games_out": outside["size"].fillna(0).astype(int),
            "value": value,
            "low": (value - reach).clip(-1, 1),
            "high": (value + reach).clip(-1, 1),
            "error": error,
            "success": success["sum"] / success["size"],
            "success_low": [low for low, _ in exact],
            "success_high": [high for _, high in exact],
        }
    ).reset_index()


def _side(sides: pd.DataFrame, member: bool) -> pd.DataFrame:
    """Return mean and size by party and record, of one side."""
    return sides[sides.index.get_level_values("member") == member].droplevel("member")[["mean", "size"]]


def _pooled_variance(sides: pd.DataFrame) -> tuple[float, int]:
    """Return the residual variance within records and sides, and its degrees of freedom."""
    freedom = int((sides["size"] - 1).sum())
    squares = float((sides["var"].fillna(0) * (sides["size"] - 1)).sum())
    return (squares / freedom, freedom) if freedom else (math.nan, 0)
