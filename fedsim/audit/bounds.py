"""Empirical lower bounds on ε, from how often an auditor's guesses about canaries are right.

One run: each of m canaries was put into the data on the toss of a fair coin of its own. The auditor ranks
them by a score, guesses 'in' for the r/2 highest and 'out' for the r/2 lowest, and abstains on the others; v
of the r guesses are right. The m canaries may depend on one another in any way.

steinke        (ε, δ)-DP as the only hypothesis: Steinke, Nasr & Jagielski 2023, theorem 5.2 and appendix D.
f_dp           a Gaussian trade-off with that ε at that δ: Mahloujifar, Melis & Chaudhuri 2024, algorithm 3.
               Tighter, for DP-SGD: its trade-off is nearly Gaussian.

Many runs: each run has one canary, or lacks it; 'in' is said above a threshold that was fixed beforehand.

clopper_pearson  (ε, δ)-DP from exact bounds of both error rates: Nasr et al. 2021, section III.
in_family        the same bounds, for a family of trade-off functions: Nasr et al. 2023, section 4.

A trade-off function f gives the least false-negative rate at a false-positive rate (Dong, Roth & Su 2022);
those of a family differ in one number, its strength. `GAUSSIAN` is that of one Gaussian mechanism, `dp_sgd`
that of all steps of DP-SGD at once, tighter where few records are drawn into a step. The bound is ε at δ of
the strongest member that is rejected.

``error`` is the probability, over everything random in an audit, that the bound lies above the true ε.
Samples have to be independent runs for the last two: with the canaries of one run they are estimates.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fedsim.core.privacy import gaussian

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


@dataclass(frozen=True)
class Family:
    """Trade-off functions of one kind, by strength s > 0.

    trade_off: s → f, which takes a rate and gives the other one's least value
    epsilon: (s, δ) → ε
    strengths: those that are tried, ascending; None for any
    """

    trade_off: Callable[[float], Callable[[float], float]]
    epsilon: Callable[[float, float], float]
    strengths: Sequence[float] | None = None

    def strongest(self, rejects: Callable[[Callable[[float], float]], bool]) -> float:
        """Return the largest strength whose trade-off function is rejected, 0 where none is."""
        if self.strengths is None:
            return _largest(lambda s: rejects(self.trade_off(s)))
        first_accepted = bisect.bisect_left(
            self.strengths, True, key=lambda s: not rejects(self.trade_off(s))
        )
        return self.strengths[first_accepted - 1] if first_accepted else 0.0


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return ε at ``delta`` of telling N(0, 1) from N(μ, 1); 0 where μ ≤ 0 (Dong, Roth & Su 2022)."""
    return gaussian.epsilon_of(delta, 1 / mu) if mu > 1e-9 else 0.0


def _gaussian_trade_off(mu: float) -> Callable[[float], float]:
    """Return f(α) = Φ(Φ⁻¹(1 − α) − μ)."""
    from scipy.special import ndtr, ndtri

    return lambda rate: float(ndtr(-ndtri(rate) - mu))


GAUSSIAN = Family(_gaussian_trade_off, gaussian_epsilon)


def dp_sgd(noise_multiplier: float, sample_rate: float, steps: int) -> Family:
    """Return the trade-offs of ``steps`` Poisson-subsampled Gaussians, by 1/σ.

    Strengths lie 2 % apart, from a thousandth of 1 / ``noise_multiplier`` to four times it.

    Source: privacy loss distributions (dp-accounting, which `fedsim.core.privacy` does not use); theirs are
    upper bounds on δ(ε), which makes f err downwards and the test err on the safe side.
    """
    return Family(
        lambda s: _sgd_trade_off(1 / s, sample_rate, steps),
        lambda s, delta: float(_sgd(1 / s, sample_rate, steps).get_epsilon_for_delta(delta)) if s else 0.0,
        [2 ** (k / 32) / noise_multiplier for k in range(-320, 65)],
    )


@lru_cache(maxsize=256)
def _sgd(noise_multiplier: float, sample_rate: float, steps: int) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    one = privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, sampling_prob=sample_rate, value_discretization_interval=5e-3
    )
    return one.self_compose(steps)


@lru_cache(maxsize=256)
def _sgd_trade_off(noise_multiplier: float, sample_rate: float, steps: int) -> Callable[[float], float]:
    """Return f, the envelope of the trade-offs 1 − δ(ε) − e^ε α and its mirror image over a grid of ε.

    It is tabulated, and between two rates the lower value is taken: f decreases.
    """
    epsilon = np.concatenate([np.arange(0, 12, 0.05), np.arange(12, 40, 1.0)])
    delta = _sgd(noise_multiplier, sample_rate, steps).get_delta_for_epsilon(epsilon)
    rates = np.concatenate([[0.0], np.geomspace(1e-8, 1e-3, 500), np.linspace(1e-3, 1, 5000)[1:]])
    values = np.zeros(len(rates))
    for e, d in zip(epsilon, delta, strict=True):
        np.maximum(values, 1 - d - math.exp(e) * rates, out=values)
        np.maximum(values, math.exp(-e) * (1 - d - rates), out=values)
    grid, table = rates.tolist(), [*values.tolist(), 0.0]
    return lambda rate: table[bisect.bisect_left(grid, rate)]


def f_dp(
    guesses: int,
    correct: int,
    canaries: int,
    delta: float,
    error: float = 0.05,
) -> float:
    """Return ε at ``delta`` of the strongest Gaussian trade-off that so many correct guesses reject.

    Arguments and errors are those of `steinke`.
    """
    _check(guesses, correct, canaries)
    if correct == 0:
        return 0.0
    mu = GAUSSIAN.strongest(lambda f: _f_dp_rejects(f, guesses, correct, canaries, error))
    return gaussian_epsilon(mu, delta)


def _f_dp_rejects(
    f: Callable[[float], float], guesses: int, correct: int, canaries: int, error: float
) -> bool:
    """Mahloujifar et al. 2024, algorithm 3.

    Were v correct guesses as likely as ``error``, h would bound from below the share of canaries guessed
    wrong and ρ that of those guessed right, step by step down to 0 correct guesses; together they cannot
    exceed r / m.
    """
    h = error * (guesses - correct) / canaries
    rho = error * correct / canaries
    for i in range(correct - 1, -1, -1):
        if rho + h > guesses / canaries:
            return True
        wrong = max(h, f(1 - rho))
        rho += i / (guesses - i) * (wrong - h)
        h = wrong
    return rho + h > guesses / canaries


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


def in_family(
    hits: int,
    inside: int,
    false_alarms: int,
    outside: int,
    delta: float,
    error: float = 0.05,
    family: Family = GAUSSIAN,
) -> float:
    """Return ε at ``delta`` of the strongest trade-off f of ``family`` that such rates reject.

    They do where FNR < f(FPR) or FPR < f(FNR); for the Gaussian one, μ = Φ⁻¹(1 − FPR) − Φ⁻¹(FNR). Arguments,
    errors and the bounds of the rates are those of `clopper_pearson`.
    """
    fpr, fnr = _error_rates(hits, inside, false_alarms, outside, error)
    return family.epsilon(family.strongest(lambda f: fnr < f(fpr) or fpr < f(fnr)), delta)


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
    while high - low > 1e-11 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low
