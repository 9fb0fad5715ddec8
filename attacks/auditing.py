"""Empirical lower bounds on ε, from how often an auditor's guesses about canaries are right.

One run: each of m canaries was put into the data on the toss of a fair coin of its own. The auditor ranks
them by a score, guesses 'in' for the r/2 highest and 'out' for the r/2 lowest, and abstains on the others; v
of the r guesses are right. The m canaries may depend on one another in any way.

steinke        (ε, δ)-DP as the only hypothesis: Steinke, Nasr & Jagielski 2023, theorem 5.2 and appendix D.
f-dp           the hypothesis is a Gaussian trade-off function with that ε at that δ: Mahloujifar, Melis &
               Chaudhuri 2024, algorithm 3. Tighter, for DP-SGD: its trade-off is nearly Gaussian.

Many runs: each run has one canary, or lacks it; 'in' is said above a threshold that was fixed beforehand.

clopper-pearson  (ε, δ)-DP from exact bounds of both error rates: Nasr et al. 2021, section III.
gaussian         the same bounds, for a Gaussian trade-off: Nasr et al. 2023, section 4.

``error`` is the probability, over everything random in an audit, that the bound lies above the true ε.
Samples have to be independent runs for the last two: with the canaries of one run they are estimates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fedsim import gaussian

LARGEST_EPSILON = 100.0
"""No bound above this is reported: it would take more guesses than anyone can make."""


def steinke(guesses: int, correct: int, canaries: int, delta: float, error: float = 0.05) -> float:
    """Return the largest ε at which so many correct guesses have a p-value below ``error``, else 0.

    guesses: r ≤ m; correct: v ≤ r; canaries: m

    Raises:
        ValueError: not 0 ≤ v ≤ r ≤ m.
    """
    _check(guesses, correct, canaries)
    return _largest(lambda epsilon: steinke_p_value(epsilon, guesses, correct, canaries, delta) < error)


def steinke_p_value(epsilon: float, guesses: int, correct: int, canaries: int, delta: float) -> float:
    """Return a bound on the probability of v or more correct guesses under (ε, δ)-DP.

    β + 2 m δ max_{i=1..v} P[v > B ≥ v − i] / i with β = P[B ≥ v], B binomial of r guesses, each right with
    probability 1 / (1 + e^−ε).
    """
    from scipy.stats import binom

    if correct == 0:
        return 1.0
    right = binom(guesses, 1 / (1 + math.exp(-epsilon)))
    beta = right.sf(correct - 1)
    i = np.arange(1, correct + 1)
    alpha = np.max((right.sf(correct - i - 1) - beta) / i)
    return float(min(1.0, beta + 2 * canaries * delta * max(0.0, alpha)))


def f_dp(guesses: int, correct: int, canaries: int, delta: float, error: float = 0.05) -> float:
    """Return ε at ``delta`` of the largest Gaussian μ under which so many correct guesses are rejected.

    Arguments and errors are those of `steinke`.
    """
    _check(guesses, correct, canaries)
    if correct == 0:
        return 0.0
    mu = _largest(lambda mu: _f_dp_rejects(mu, guesses, correct, canaries, error))
    return gaussian_epsilon(mu, delta)


def _f_dp_rejects(mu: float, guesses: int, correct: int, canaries: int, error: float) -> bool:
    """Mahloujifar et al. 2024, algorithm 3, for the trade-off of N(0, 1) against N(μ, 1).

    Were v correct guesses as likely as ``error``, h would bound from below the share of canaries guessed
    wrong and ρ that of those guessed right, step by step down to 0 correct guesses; together they cannot
    exceed r / m.
    """
    from scipy.special import ndtr, ndtri

    h = error * (guesses - correct) / canaries
    rho = error * correct / canaries
    for i in range(correct - 1, -1, -1):
        wrong = max(h, float(ndtr(ndtri(rho) - mu)))
        rho += i / (guesses - i) * (wrong - h)
        h = wrong
        if rho + h > guesses / canaries:
            return True
    return False


def clopper_pearson(
    hits: int, inside: int, false_alarms: int, outside: int, delta: float, error: float = 0.05
) -> float:
    """Return the lower bound on ε from ``hits`` of ``inside`` runs, ``false_alarms`` of ``outside`` runs.

    max{0, ln((1 − δ − FNR) / FPR), ln((1 − δ − FPR) / FNR)} with Clopper & Pearson's one-sided upper bounds
    of both rates, error/2 each.

    Raises:
        ValueError: there are more hits than runs, or no runs.
    """
    fpr, fnr = _error_rates(hits, inside, false_alarms, outside, error)
    return max(0.0, _log_ratio(1 - delta - fnr, fpr), _log_ratio(1 - delta - fpr, fnr))


def gaussian_dp(
    hits: int, inside: int, false_alarms: int, outside: int, delta: float, error: float = 0.05
) -> float:
    """Return ε at ``delta`` of the smallest μ that allows such rates: μ ≥ Φ⁻¹(1 − FPR) − Φ⁻¹(FNR).

    Arguments, errors and the bounds of the rates are those of `clopper_pearson`.
    """
    from scipy.special import ndtri

    fpr, fnr = _error_rates(hits, inside, false_alarms, outside, error)
    return gaussian_epsilon(float(-ndtri(fpr) - ndtri(fnr)), delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return ε at ``delta`` of telling N(0, 1) from N(μ, 1); 0 where μ ≤ 0 (Dong, Roth & Su 2022)."""
    return gaussian.epsilon_of(delta, 1 / mu) if mu > 1e-9 else 0.0


def correct_guesses(scores: np.ndarray, inside: np.ndarray, guesses: int) -> int:
    """Return how many of ``guesses`` guesses are right: 'in' for the highest half, 'out' for the lowest.

    scores: (m,) float64, higher means 'in'; inside: (m,) bool, the coins. Of an odd number, one more is
    guessed to be in. Ties go by position, which tells nothing of the coins.
    """
    order = np.argsort(scores, kind="stable")
    low, high = order[: guesses // 2], order[len(order) - (guesses - guesses // 2) :]
    return int(inside[high].sum() + (~inside[low]).sum())


def _check(guesses: int, correct: int, canaries: int) -> None:
    if not 0 <= correct <= guesses <= canaries or guesses == 0:
        raise ValueError(f"{correct} correct of {guesses} guesses on {canaries} canaries is impossible")


def _error_rates(
    hits: int, inside: int, false_alarms: int, outside: int, error: float
) -> tuple[float, float]:
    """Return upper bounds of (FPR, FNR), each at ``error`` / 2."""
    if min(inside, outside) < 1 or not (0 <= hits <= inside and 0 <= false_alarms <= outside):
        raise ValueError(f"{hits} of {inside} and {false_alarms} of {outside} runs are no rates")
    return _upper(false_alarms, outside, error / 2), _upper(inside - hits, inside, error / 2)


def _upper(events: int, n: int, error: float) -> float:
    from scipy.stats import beta

    return float(beta.isf(error, events + 1, n - events)) if events < n else 1.0


def _log_ratio(numerator: float, denominator: float) -> float:
    return math.log(numerator / denominator) if numerator > 0 else -math.inf


def _largest(rejects: Callable[[float], bool]) -> float:
    """Return sup{x ≥ 0: rejects(x)} for a test that rejects up to some x, 0 where it never does."""
    if not rejects(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejects(high):
        low, high = high, 2 * high
        if low > LARGEST_EPSILON:
            return low
    while high - low > 1e-9 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low
