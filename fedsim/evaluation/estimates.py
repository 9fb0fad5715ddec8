"""Estimates with 95 % intervals of what an attack found out, from scores of members and of non-members.

Every figure comes with a 95 % interval (tests simulate the coverage of each):

auc                 DeLong et al. 1988 on the logit scale, Student's t, with a floor under the variance
fpr, tpr_…          Clopper & Pearson 1934
balanced_accuracy   the two rates' intervals combined (MOVER, Zou & Donner 2008)
advantage           TPR − FPR (Yeom et al. 2018), twice the balanced accuracy − 1: its interval, moved
advantage_max       Kolmogorov's bands around both distribution functions
ppv                 the two rates' intervals, corner to corner
tpr_at_fpr_α        Clopper–Pearson, at thresholds that bracket the true (1 − α)-quantile (order statistics)
mean over games     the games' intervals combined, with the spread between games added; of AUCs Student's t
                    on the games' values, on the logit scale

Within one game the intervals speak of the victims' records, given the one federation that was run, not of
another draw of who is a member. `experiments/results/coverage.md` has how often they hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from fedsim.core.ranks import below

ERROR = 0.05
"""Two-sided error of every interval."""

FLOOR = 0.05
"""By how much of 1 / min(n, m) an AUC is taken to be uncertain beside DeLong's variance: near 1, where a
record or two decide, that is estimated too low whenever the AUC is too high."""

WITHIN = 0.05
"""Share of the games' own variance that is added to that of their values in a mean of AUCs: games of one
value must not make it certain."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; all three NaN where the records cannot tell, and ``note`` says why."""

    value: float
    low: float
    high: float
    note: str = ""


def speaks_of(games: int) -> str:
    """Say of what an interval speaks: one game's of the one federation that was run and no other."""
    return "this one federation" if games == 1 else f"federations like these {games}"


def auc(members: np.ndarray, nonmembers: np.ndarray, error: float = ERROR) -> Estimate:
    """Return P(member's score > non-member's) + ½ P(equal), with DeLong's interval on the logit scale.

    members, nonmembers: (n,) scores. error: two-sided error of the interval.
    Where DeLong's variance is 0 (a perfect or a constant score) the interval is Clopper–Pearson's for as many
    member–non-member pairs as share no record, wide since these vary more than all pairs do (Hoeffding 1963,
    section 5a). No interval is wider: of one pair in the wrong order, Student's t has hardly a degree of
    freedom.

    Sources: DeLong, DeLong & Clarke-Pearson 1988; by ranks and with Student's t at Satterthwaite's degrees of
    freedom, Brunner & Munzel 2000; logit, Pepe 2003 §5.2.
    """
    from scipy.special import expit, logit, stdtrit

    n, m = len(members), len(nonmembers)
    if min(n, m) == 0:
        return _unknown(n, m)
    wins = below(members, nonmembers) / m  # (n,) share of the non-members below each member
    losses = 1 - below(nonmembers, members) / n  # (m,) share of the members above each non-member
    value = float(wins.mean())
    parts = np.array([wins.var(ddof=1) / n, losses.var(ddof=1) / m]) if min(n, m) > 1 else np.zeros(2)
    of_pairs = clopper_pearson(value * min(n, m), min(n, m), error)
    if parts.sum() < 1e-18 or value in (0, 1):
        return Estimate(value, *of_pairs)
    freedom = parts.sum() ** 2 / np.sum(parts**2 / (np.array([n, m]) - 1))
    deviation = math.sqrt(parts.sum() + (FLOOR / min(n, m)) ** 2)
    reach = -stdtrit(freedom, error / 2) * deviation / (value * (1 - value))
    low, high = float(expit(logit(value) - reach)), float(expit(logit(value) + reach))
    return Estimate(value, max(low, of_pairs[0]), min(high, of_pairs[1]))


def rate(hits: int, n: int) -> Estimate:
    """Return hits / n with Clopper & Pearson's interval."""
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, "no such records")
    return Estimate(hits / n, *clopper_pearson(hits, n))


def clopper_pearson(hits: float, n: int, error: float = ERROR) -> tuple[float, float]:
    """Return the exact binomial interval of ``hits`` in ``n``, error/2 on each side."""
    # What scipy.stats.beta and t call; on single numbers that takes thirty times as long.
    from scipy.special import betainccinv, betaincinv

    low = betaincinv(hits, n - hits + 1, error / 2) if hits > 0 else 0.0
    high = betainccinv(hits + 1, n - hits, error / 2) if hits < n else 1.0
    return float(low), float(high)


def balanced_accuracy(tpr: Estimate, fpr: Estimate) -> Estimate:
    """Return (TPR + 1 − FPR) / 2; the intervals of two independent rates are combined by MOVER."""
    value = (tpr.value + 1 - fpr.value) / 2
    low = value - math.hypot(tpr.value - tpr.low, fpr.high - fpr.value) / 2
    high = value + math.hypot(tpr.high - tpr.value, fpr.value - fpr.low) / 2
    return Estimate(value, low, high, tpr.note or fpr.note)


def advantage(balanced: Estimate) -> Estimate:
    """Return the membership advantage TPR − FPR, from the balanced accuracy at the same threshold."""
    return replace(
        balanced, value=2 * balanced.value - 1, low=2 * balanced.low - 1, high=2 * balanced.high - 1
    )


def max_advantage(members: np.ndarray, nonmembers: np.ndarray) -> Estimate:
    """Return the largest TPR − FPR of any threshold: the one-sided Kolmogorov–Smirnov statistic.

    Being a maximum, the value errs upwards on few records. No sup|F̂ − F| exceeds Kolmogorov's quantiles, so
    that the interval, value ± the quantile of the sum of two such, holds whatever the distributions.
    """
    n, m = len(members), len(nonmembers)
    if min(n, m) == 0:
        return _unknown(n, m)
    cuts = np.concatenate([members, nonmembers])
    below_members = np.searchsorted(np.sort(members), cuts) / n
    below_nonmembers = np.searchsorted(np.sort(nonmembers), cuts) / m
    value, reach = max(0.0, float(np.max(below_nonmembers - below_members))), _two_bands(n, m)
    return Estimate(value, max(0.0, value - reach), min(1.0, value + reach))


@lru_cache(maxsize=1024)
def _two_bands(n: int, m: int) -> float:
    """Return the quantile at 1 − ERROR of the sum of two independent sup|F̂ − F|, of n and m records."""
    distances = _kolmogorov()
    sums = distances[:, None] / math.sqrt(n) + distances[None, :] / math.sqrt(m)
    return float(np.quantile(sums, 1 - ERROR))


@lru_cache(maxsize=1)
def _kolmogorov() -> np.ndarray:
    from scipy.stats import kstwobign

    return np.asarray(kstwobign.ppf((np.arange(400) + 0.5) / 400))


def ppv(tpr: Estimate, fpr: Estimate, prior: float) -> Estimate:
    """Return P(member | the adversary says so), π·TPR / (π·TPR + (1 − π)·FPR) at prior π = ``prior``.

    The interval goes from the worst corner of the two rates' intervals to the best: at least as wide as 95 %
    asks, since both rates would have to lie at their ends at once. For a known FPR give all three equal.

    Source: Jayaraman et al. 2021, membership inference under skewed priors.
    """
    if math.isnan(tpr.value) or math.isnan(fpr.value):
        return Estimate(math.nan, math.nan, math.nan, tpr.note or fpr.note)
    if tpr.value == fpr.value == 0:
        return Estimate(math.nan, math.nan, math.nan, "the adversary accuses nobody")
    return Estimate(
        _posterior(tpr.value, fpr.value, prior),
        _posterior(tpr.low, fpr.high, prior),
        _posterior(tpr.high, fpr.low, prior),
        tpr.note or fpr.note,
    )


def _posterior(tpr: float, fpr: float, prior: float) -> float:
    accused = prior * tpr + (1 - prior) * fpr
    return prior * tpr / accused if accused > 0 else 0.0


def resolvable(nonmembers: int, alpha: float) -> bool:
    """Whether one of so many non-members may lie above a threshold of FPR ``alpha``."""
    return _expected(nonmembers, alpha) >= 1


def bounded_below(nonmembers: int, alpha: float) -> bool:
    """Whether so many non-members allow a TPR at FPR ``alpha`` any lower bound above 0: m α ≥ 4.4, about.

    Below it the true threshold may lie above all of them with more than error/4.
    """
    return (1 - alpha) ** nonmembers < ERROR / 4


def tpr_at_fpr(members: np.ndarray, nonmembers: np.ndarray, alpha: float) -> Estimate:
    """Return the TPR at the threshold whose true FPR is as often above ``alpha`` as below it.

    Above the j-th largest of m non-members lies a true share of them of j / (m + 1) in expectation and of
    (j − 1/3) / (m + 1/3) in the median, not of (j − 1) / m as in the sample. The TPR is interpolated between
    the two j next to `place` (Hyndman & Fan 1996, type 8): in the sample's own terms it would be that of a
    larger FPR, and at the expected one, the ROC being concave, it would err downwards. 'Member' is said
    strictly above a threshold, so that tied non-members never pass. The interval is of the TPR at *true* FPR
    α. The number of non-members above the true (1 − α)-quantile is Binomial(m, α), so that two order
    statistics of them lie above and below it with error/4 each; Clopper–Pearson at these two thresholds
    takes error/4 each as well. Where m allows no lower bound (`bounded_below`), it is 0 and the note says so.
    """
    n, m = len(members), len(nonmembers)
    if min(n, m) == 0:
        return _unknown(n, m)
    if not resolvable(m, alpha):
        return Estimate(math.nan, math.nan, math.nan, f"not resolvable at n={m}")
    descending = np.concatenate([[np.inf], np.sort(nonmembers)[::-1], [-np.inf]])  # [j]: j-th largest
    hits = n - np.searchsorted(np.sort(members), descending, side="right")
    least, most = _above_quantile(m, alpha)
    low, _ = clopper_pearson(hits[least], n, ERROR / 2)
    _, high = clopper_pearson(hits[most + 1], n, ERROR / 2)
    note = "" if bounded_below(m, alpha) else f"no lower bound at n={m}"
    return Estimate(_interpolated(hits, float(place(m, alpha))) / n, low, high, note)


@lru_cache(maxsize=1024)
def _above_quantile(nonmembers: int, alpha: float) -> tuple[int, int]:
    """Return between which numbers of non-members lie above the true (1 − α)-quantile, error/4 each side."""
    from scipy.stats import binom

    least = int(binom.ppf(ERROR / 4, nonmembers, alpha))  # P(fewer) < error/4
    most = int(binom.isf(ERROR / 4, nonmembers, alpha))  # P(more) ≤ error/4
    return least, most


def place(nonmembers: Any, alpha: float) -> Any:
    """Return j, not whole: above the j-th largest of so many lies a true share of ``alpha`` in the median.

    nonmembers: a number or an array of them; everyone is accused at α = 1, j = m + 1.
    """
    return nonmembers + 1 if alpha >= 1 else alpha * (nonmembers + 1 / 3) + 1 / 3


def _interpolated(hits: np.ndarray, place: float) -> float:
    """Return the hits above the ``place``-th largest non-member, between whole places by proportion."""
    before = min(math.floor(place + 1e-9), len(hits) - 1)
    after = min(before + 1, len(hits) - 1)
    return float(hits[before] + max(0.0, place - before) * (hits[after] - hits[before]))


def mean(estimates: Sequence[Estimate], error: float = ERROR) -> Estimate:
    """Return the mean over games; a game whose value is NaN is left out, and the note says so.

    error: two-sided error of the games' intervals, and of the mean's.

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
        return replace(known[0], note=note or known[0].note) if known else estimates[0]
    value, low, high = np.array([(estimate.value, estimate.low, estimate.high) for estimate in known]).T
    z = norm.isf(error / 2)
    below, above = (np.mean(((value - end) / z) ** 2) for end in (low, high))
    spread, centre = value.var(ddof=1), value.mean()
    return Estimate(
        float(centre),
        max(0.0, float(centre - _half_width(spread, below, len(known), error))),
        min(1.0, float(centre + _half_width(spread, above, len(known), error))),
        note,
    )


def mean_auc(estimates: Sequence[Estimate], error: float = ERROR) -> Estimate:
    """Return the mean of AUCs over games; a game whose value is NaN is left out, and the note says so.

    Student's t with G − 1 degrees of freedom on the G values, whose variance s² holds both what games differ
    by and what each is uncertain by; w² / 20 is added, w² the mean squared standard error of the games' own
    intervals on that side, so that equal values do not make the mean certain. The reach is taken on the
    logit scale: near 1 the values are skewed, and a symmetric interval misses on one side. Where the games
    differ by next to nothing of what they are uncertain by (s² < w²/30), a reach on that scale has no bounds
    near 1, and no end lies further away than that of `mean`. Of one game it is that game's. Simulated
    coverage: `experiments/results/coverage.md`.
    """
    from scipy.special import expit, logit
    from scipy.stats import norm, t

    known = [estimate for estimate in estimates if not math.isnan(estimate.value)]
    if len(known) < 2:
        return mean(estimates, error)
    note = "" if len(known) == len(estimates) else f"{len(known)} of {len(estimates)} games"
    value, low, high = np.array([(estimate.value, estimate.low, estimate.high) for estimate in known]).T
    centre = float(value.mean())
    straight = mean(known, error)
    if centre in (0.0, 1.0):  # every game perfect: no logit
        return replace(straight, note=note)
    spread, ends = float(value.var(ddof=1)), []
    for sign, end in ((-1, low), (1, high)):
        within = float(np.mean(((value - end) / norm.isf(error / 2)) ** 2))
        deviation = math.sqrt((spread + WITHIN * within) / len(known))
        reach = t.isf(error / 2, len(known) - 1) * deviation / (centre * (1 - centre))
        furthest = float(expit(logit(centre) + sign * reach))
        if len(known) > 2 and spread < within / 30:  # of two games the spread is not known so well
            furthest = max(furthest, straight.low) if sign < 0 else min(furthest, straight.high)
        ends.append(furthest)
    return Estimate(centre, ends[0], ends[1], note)


def _half_width(spread: float, within: float, games: int, error: float) -> float:
    from scipy.stats import t

    if spread + within == 0:
        return 0.0
    return float(t.isf(error / 2, freedom_of_mean(spread, within, games))) * math.sqrt(
        (spread + within) / games
    )


def freedom_of_mean(spread: float, within: float, games: int) -> float:
    """Return the degrees of freedom of `mean`'s Student's t; spread: s², within: w²."""
    return (games - 1) * (min((spread + within) / spread, 3) if spread > 0 else 3)


def _expected(nonmembers: int, alpha: float) -> float:
    return nonmembers * alpha + 1e-9  # 1000 · 0.001 must not round to just below 1


def _unknown(members: int, nonmembers: int) -> Estimate:
    missing = "members" if members == 0 else "non-members"
    return Estimate(math.nan, math.nan, math.nan, f"no {missing} among the candidates")
