"""How much an attack found out: scores joined with the truth. The only place in `attacks` that knows it.

Every figure comes with a 95 % interval (tests simulate the coverage of each):

auc                 DeLong et al. 1988 on the logit scale, Student's t
fpr, tpr_…          Clopper & Pearson 1934
balanced_accuracy   the two rates' intervals combined (MOVER, Zou & Donner 2008)
tpr_at_fpr_α        Clopper–Pearson, at thresholds that bracket the true (1 − α)-quantile (order statistics)
mean over games     the games' intervals combined, with the spread between games added

Within one game the intervals speak of the victims' records, given the one federation that was run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

ERROR = 0.05
"""Two-sided error of every interval."""

FALSE_POSITIVE_RATES = (0.1, 0.01, 0.001)

COLUMNS = ["attack", "party", "game", "metric", "value", "low", "high", "n_members", "n_nonmembers", "note"]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; all three NaN where the records cannot tell, and ``note`` says why."""

    value: float
    low: float
    high: float
    note: str = ""


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
    """Return the leakage table, one row per attack, party, game and metric.

    scores: game, attack, candidate, score. thresholds: game, attack, threshold.
    truth: game, candidate, party, member (bool), one row per candidate.

    party: a victim's name, or 'all' for the candidates of all parties together.
    game: the game's number as text, or 'all' for the mean over games.
    metric: auc, balanced_accuracy, fpr and tpr_at_threshold (at the adversary's own threshold), and
    tpr_at_fpr_0.1, _0.01, _0.001 (a property of the score: its threshold is one the adversary does not know).
    n_members, n_nonmembers: records scored, summed over games in the rows of all games.

    Raises:
        ValueError: a score is NaN, a candidate has no truth, or an attack has no threshold.
    """
    rows: list[tuple] = []
    for attack, found in _joined(scores, thresholds, truth).groupby("attack", sort=False):
        for party in ["all", *sorted(found["party"].unique())]:
            samples = list(_samples(found if party == "all" else found[found["party"] == party]))
            by_game = [measure(sample) for sample in samples]
            for sample, estimates in zip(samples, by_game, strict=True):
                rows += _rows(str(attack), party, sample.game, estimates, [sample])
            rows += _rows(str(attack), party, "all", over_games(samples, by_game), samples)
    return pd.DataFrame(rows, columns=COLUMNS)


def measure(sample: Sample) -> dict[str, Estimate]:
    """Return every metric of one game."""
    hits, alarms = (int(np.sum(x >= sample.threshold)) for x in (sample.members, sample.nonmembers))
    tpr, fpr = rate(hits, len(sample.members)), rate(alarms, len(sample.nonmembers))
    return {
        "auc": auc(sample.members, sample.nonmembers),
        "balanced_accuracy": balanced_accuracy(tpr, fpr),
        "fpr": fpr,
        "tpr_at_threshold": tpr,
        **{
            f"tpr_at_fpr_{alpha}": tpr_at_fpr(sample.members, sample.nonmembers, alpha)
            for alpha in FALSE_POSITIVE_RATES
        },
    }


def over_games(samples: Sequence[Sample], by_game: Sequence[dict[str, Estimate]]) -> dict[str, Estimate]:
    """Return every metric's mean over games.

    Where some game has too few non-members for a TPR at FPR α, the games' ranks are pooled instead: ranks
    within a game need no truth, and make the games' scores comparable.
    """
    means = {metric: mean([estimates[metric] for estimates in by_game]) for metric in by_game[0]}
    members = np.concatenate([sample.member_ranks for sample in samples])
    nonmembers = np.concatenate([sample.nonmember_ranks for sample in samples])
    for alpha in FALSE_POSITIVE_RATES:
        if len(samples) > 1 and any(not resolvable(len(sample.nonmembers), alpha) for sample in samples):
            pooled = tpr_at_fpr(members, nonmembers, alpha)
            note = pooled.note or f"ranks pooled over {len(samples)} games"
            means[f"tpr_at_fpr_{alpha}"] = replace(pooled, note=note)
    return means


def roc(scores: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return false-positive rates, true-positive rates and thresholds, (k,) each; says 'member' at ≥.

    scores: (n,) float64; member: (n,) bool, with at least one of each.
    """
    from sklearn.metrics import roc_curve

    fpr, tpr, thresholds = roc_curve(member, scores)
    return fpr, tpr, thresholds


def auc(members: np.ndarray, nonmembers: np.ndarray) -> Estimate:
    """Return P(member's score > non-member's) + ½ P(equal), with DeLong's interval on the logit scale.

    members, nonmembers: (n,) scores. Where DeLong's variance is 0 (a perfect or a constant score) the
    interval is Clopper–Pearson's for as many member–non-member pairs as share no record: exact, and wide.

    Sources: DeLong, DeLong & Clarke-Pearson 1988; by ranks and with Student's t at Satterthwaite's degrees of
    freedom, Brunner & Munzel 2000; logit, Pepe 2003 §5.2.
    """
    from scipy.special import expit, logit
    from scipy.stats import rankdata, t

    n, m = len(members), len(nonmembers)
    if min(n, m) == 0:
        return _unknown(n, m)
    ranks = rankdata(np.concatenate([members, nonmembers]))
    wins = (ranks[:n] - rankdata(members)) / m  # (n,) share of the non-members below each member
    losses = 1 - (ranks[n:] - rankdata(nonmembers)) / n  # (m,) share of the members above each non-member
    value = float(wins.mean())
    parts = np.array([wins.var(ddof=1) / n, losses.var(ddof=1) / m]) if min(n, m) > 1 else np.zeros(2)
    if parts.sum() < 1e-18 or value in (0, 1):
        return Estimate(value, *clopper_pearson(value * min(n, m), min(n, m)))
    freedom = parts.sum() ** 2 / np.sum(parts**2 / (np.array([n, m]) - 1))
    reach = t.isf(ERROR / 2, freedom) * math.sqrt(parts.sum()) / (value * (1 - value))
    return Estimate(value, float(expit(logit(value) - reach)), float(expit(logit(value) + reach)))


def rate(hits: int, n: int) -> Estimate:
    """Return hits / n with Clopper & Pearson's interval."""
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, "no such records")
    return Estimate(hits / n, *clopper_pearson(hits, n))


def clopper_pearson(hits: float, n: int, error: float = ERROR) -> tuple[float, float]:
    """Return the exact binomial interval of ``hits`` in ``n``, error/2 on each side."""
    from scipy.stats import beta

    low = beta.ppf(error / 2, hits, n - hits + 1) if hits > 0 else 0.0
    high = beta.isf(error / 2, hits + 1, n - hits) if hits < n else 1.0
    return float(low), float(high)


def balanced_accuracy(tpr: Estimate, fpr: Estimate) -> Estimate:
    """Return (TPR + 1 − FPR) / 2; the intervals of two independent rates are combined by MOVER."""
    value = (tpr.value + 1 - fpr.value) / 2
    low = value - math.hypot(tpr.value - tpr.low, fpr.high - fpr.value) / 2
    high = value + math.hypot(tpr.high - tpr.value, fpr.value - fpr.low) / 2
    return Estimate(value, low, high, tpr.note or fpr.note)


def resolvable(nonmembers: int, alpha: float) -> bool:
    """Whether one of so many non-members may lie above a threshold of FPR ``alpha``."""
    return _expected(nonmembers, alpha) >= 1


def tpr_at_fpr(members: np.ndarray, nonmembers: np.ndarray, alpha: float) -> Estimate:
    """Return the TPR at the lowest threshold whose FPR on the non-members is at most ``alpha``.

    'Member' is said strictly above the threshold, so that tied non-members never pass α. The interval is of
    the TPR at *true* FPR α. The number of non-members above the true (1 − α)-quantile is Binomial(m, α), so
    that two order statistics of them lie above and below it with error/4 each; Clopper–Pearson at these two
    thresholds takes error/4 each as well.
    """
    from scipy.stats import binom

    n, m = len(members), len(nonmembers)
    if min(n, m) == 0:
        return _unknown(n, m)
    if not resolvable(m, alpha):
        return Estimate(math.nan, math.nan, math.nan, f"not resolvable at n={m}")
    descending = np.concatenate([[np.inf], np.sort(nonmembers)[::-1], [-np.inf]])  # [j]: j-th largest
    hits = n - np.searchsorted(np.sort(members), descending, side="right")
    least = int(binom.ppf(ERROR / 4, m, alpha))  # P(fewer) < error/4
    most = int(binom.isf(ERROR / 4, m, alpha))  # P(more) ≤ error/4
    low, _ = clopper_pearson(hits[least], n, ERROR / 2)
    _, high = clopper_pearson(hits[most + 1], n, ERROR / 2)
    return Estimate(float(hits[math.floor(_expected(m, alpha)) + 1] / n), low, high)


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over games; a game whose value is NaN is left out, and the note says so.

    Each side of the interval is t · sqrt((s² + w²) / G): s² is the variance of the G values, w² the mean
    squared standard error that the games' own intervals show on that side, t Student's quantile at
    (G − 1) · min((s² + w²) / s², 3) degrees of freedom. s² holds one w² already, so that the interval errs on
    the wide side; in return it does not collapse where every game shows 0 of n, as a bootstrap does.
    Simulated, it covers 95 % and more where games lie apart by up to twice their sampling error; at four
    times, 91 % with 2 games and 94 % with more.
    """
    from scipy.stats import norm

    known = [estimate for estimate in estimates if not math.isnan(estimate.value)]
    note = "" if len(known) == len(estimates) else f"{len(known)} of {len(estimates)} games"
    if len(known) < 2:
        return replace(known[0], note=note) if known else estimates[0]
    value, low, high = np.array([(estimate.value, estimate.low, estimate.high) for estimate in known]).T
    z = norm.isf(ERROR / 2)
    below, above = (np.mean(((value - end) / z) ** 2) for end in (low, high))
    spread, centre = value.var(ddof=1), value.mean()
    return Estimate(
        float(centre),
        max(0.0, float(centre - _half_width(spread, below, len(known)))),
        min(1.0, float(centre + _half_width(spread, above, len(known)))),
        note,
    )


def _half_width(spread: float, within: float, games: int) -> float:
    from scipy.stats import t

    if spread + within == 0:
        return 0.0
    freedom = (games - 1) * (min((spread + within) / spread, 3) if spread > 0 else 3)
    return t.isf(ERROR / 2, freedom) * math.sqrt((spread + within) / games)


def _expected(nonmembers: int, alpha: float) -> float:
    return nonmembers * alpha + 1e-9  # 1000 · 0.001 must not round to just below 1


def _unknown(members: int, nonmembers: int) -> Estimate:
    missing = "members" if members == 0 else "non-members"
    return Estimate(math.nan, math.nan, math.nan, f"no {missing} among the candidates")


def _joined(scores: pd.DataFrame, thresholds: pd.DataFrame, truth: pd.DataFrame) -> pd.DataFrame:
    """Return scores with threshold, party, member, and the rank within attack and game."""
    if scores["score"].isna().any():
        raise ValueError("a score is NaN")
    found = scores.merge(truth, on=["game", "candidate"], how="left", validate="many_to_one")
    found = found.merge(thresholds, on=["game", "attack"], how="left", validate="many_to_one")
    if found[["member", "threshold"]].isna().any(axis=None):
        raise ValueError("a scored candidate has no truth, or an attack has no threshold")
    found["member"] = found["member"].astype(bool)
    found["rank"] = found.groupby(["attack", "game"])["score"].rank(pct=True)
    return found


def _samples(found: pd.DataFrame) -> Iterator[Sample]:
    for game, rows in found.groupby("game"):
        score, rank = rows["score"].to_numpy(float), rows["rank"].to_numpy(float)
        member = rows["member"].to_numpy()
        yield Sample(
            game=str(game),
            threshold=float(rows["threshold"].iloc[0]),
            members=score[member],
            nonmembers=score[~member],
            member_ranks=rank[member],
            nonmember_ranks=rank[~member],
        )


def _rows(
    attack: str, party: str, game: str, estimates: dict[str, Estimate], samples: Sequence[Sample]
) -> Iterator[tuple]:
    n = sum(len(sample.members) for sample in samples)
    m = sum(len(sample.nonmembers) for sample in samples)
    for metric, found in estimates.items():
        yield (attack, party, game, metric, found.value, found.low, found.high, n, m, found.note)
