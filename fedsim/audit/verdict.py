"""From an audit's scores to lower bounds on ε."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from fedsim.audit import canaries
from fedsim.audit.bounds import clopper_pearson, correct_guesses, dp_sgd, f_dp, in_family, steinke
from fedsim.audit.settings import Audit, AuditSettings, Outcome, Vantage
from fedsim.core import rng
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.plan import Plan

LEVELS = {"planned": 1.0, "half": 0.5, "tenth": 0.1, "none": 0.01}
"""Scores by the noise, in units of the plan's, against which each is the best there is."""

MAIN_SHARE = 0.6
"""Share of the error for the test that is best against correct noise; those against bugs share the rest."""


def audit_of(
    settings: AuditSettings, vantage: Vantage, outcome: Outcome, upper: float, delta: float
) -> Audit:
    """Return what was found, with the settings by which it was."""
    return Audit(
        party=settings.party,
        vantage=vantage,
        method=settings.method,
        worst_case=settings.worst_case,
        records=settings.records,
        upper=upper,
        confidence=settings.confidence,
        delta=delta,
        **dataclasses.asdict(outcome),
    )


def nearly_all(m: int) -> int:
    """Return how many of ``m`` canaries can be guessed right: as many are in as the coins say, not half."""
    return max(m // 2, m - 4 * math.ceil(math.sqrt(m)))


def guessed(scores: np.ndarray, coins: np.ndarray, guesses: int, error: float, delta: float) -> Outcome:
    """Test the ``guesses`` surest guesses of one run (Steinke et al. 2023; Mahloujifar et al. 2024)."""
    m, correct = len(coins), correct_guesses(scores, coins, guesses)
    bounds = {"steinke": steinke, "f-dp": f_dp}
    return Outcome(
        {name: bound(guesses, correct, m, delta, error) for name, bound in bounds.items()},
        {name: bound(guesses, guesses, m, delta, error) for name, bound in bounds.items()},
        guesses,
        correct,
        m,
    )


def best_of(tests: Sequence[Outcome]) -> Outcome:
    """Return the test with the largest bound, with the largest ceilings of all."""
    best = max(tests, key=lambda test: max(test.lower.values()))
    ceiling = {name: max(test.ceiling[name] for test in tests) for name in best.ceiling}
    return dataclasses.replace(best, ceiling=ceiling)


def learnt(score: np.ndarray, inside: np.ndarray, error: float, delta: float, plan: Plan) -> Outcome:
    """Test with a threshold from the first quarter of the runs, on the others.

    Nobody can know beforehand what the scores of a broken run look like.
    """
    first = np.arange(len(score)) < len(score) // 4
    guess = score > _midway(score[first], inside[first])
    return told_apart(guess[~first], inside[~first], error, delta, plan)


def _midway(scores: np.ndarray, inside: np.ndarray) -> float:
    """Return the threshold with the most correct guesses on these runs, the middle one of equals."""
    ordered = np.sort(scores)
    cuts = (ordered[1:] + ordered[:-1]) / 2
    right = ((scores > cuts[:, None]) == inside).sum(axis=1)
    best = np.flatnonzero(right == right.max())
    return float(cuts[best[len(best) // 2]])


def told_apart(guess: np.ndarray, inside: np.ndarray, error: float, delta: float, plan: Plan) -> Outcome:
    """Test whether the runs with the canary, ``inside`` (n,) bool, were told apart by ``guess`` (n,) bool."""
    n, m = int(inside.sum()), int((~inside).sum())
    hits, false_alarms = int(guess[inside].sum()), int(guess[~inside].sum())
    bounds: dict[str, Callable[..., float]] = {
        "clopper-pearson": clopper_pearson,
        "gaussian": in_family,
    }
    if plan.noise_multiplier:
        family = dp_sgd(plan.noise_multiplier, plan.sample_rate, plan.rounds * plan.steps_per_round)
        bounds["dp-sgd"] = functools.partial(in_family, family=family)
    return Outcome(
        {name: bound(hits, n, false_alarms, m, delta, error) for name, bound in bounds.items()},
        {name: bound(n, n, 0, m, delta, error) for name, bound in bounds.items()},
        guesses=len(guess),
        correct=hits + m - false_alarms,
        canaries=len(guess),
    )


def upper(plan: Plan, delta: float) -> float:
    """Return the accountant's ε of the whole plan at ``delta``."""
    if delta == plan.delta:
        return plan.epsilon
    steps = plan.rounds * plan.steps_per_round
    return Ledger().add(plan.noise_multiplier, plan.sample_rate, steps).epsilon(delta, plan.accountant)


def _rehearsal(settings: AuditSettings, plan: Plan, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of ``n`` canaries inside and ``n`` outside, were the noise exactly the plan's."""
    stream = rng.generator(settings.seed, "audit rehearsal", party=settings.party)
    scores, noise = np.zeros((2, n)), plan.gradient_noise
    for _ in range(plan.rounds * plan.steps_per_round):
        x = noise * stream.standard_normal((2, n))
        x[0] += stream.random(n) < plan.sample_rate
        scores += canaries.likelihood_ratio(x, plan.sample_rate, noise)
    return scores[0], scores[1]


def best_guesses(settings: AuditSettings, plan: Plan, delta: float) -> int:
    """Return the number of guesses with the largest f-DP bound in a rehearsal: no look at the real scores."""
    inside, outside = _rehearsal(settings, plan, 4000)
    scores = np.concatenate([inside, outside])
    truth = np.arange(len(scores)) < len(inside)
    m, bounds = settings.canaries, []
    for share in (0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, nearly_all(m) / m):
        guesses = max(2, int(share * m))
        sample = int(share * len(scores))
        right = correct_guesses(scores, truth, sample) / sample
        bound = f_dp(guesses, int(right * guesses), m, delta, MAIN_SHARE * settings.error)
        bounds.append((bound, guesses))
    return max(bounds)[1]


def best_threshold(settings: AuditSettings, plan: Plan, n: int) -> float:
    """Return the threshold with the largest Gaussian bound on ``n`` canaries in a rehearsal."""
    inside, outside = _rehearsal(settings, plan, 4000)
    half, bounds = n // 2, []
    for threshold in np.quantile(np.concatenate([inside, outside]), np.linspace(0.1, 0.9, 17)):
        hits, false_alarms = (round(float(np.mean(s > threshold)) * half) for s in (inside, outside))
        bound = in_family(hits, half, false_alarms, half, plan.delta, MAIN_SHARE * settings.error)
        bounds.append((bound, float(threshold)))
    return max(bounds)[1]
