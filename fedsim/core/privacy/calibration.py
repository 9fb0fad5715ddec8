"""The noise multiplier at which a planned run reaches a target ε."""

from __future__ import annotations

import math
from functools import lru_cache

from fedsim.core.errors import InputError
from fedsim.core.privacy.accountants import Accountant
from fedsim.core.privacy.ledger import Ledger


@lru_cache(maxsize=1024)
def solve_noise_multiplier(
    epsilon: float, delta: float, sample_rate: float, steps: int, accountant: Accountant = "prv"
) -> float:
    """Return a σ whose ε after ``steps`` steps is in [0.998, 1] × ``epsilon``.

    Safeguarded secant steps on ln ε against ln σ, which is nearly a straight line, from the central limit's
    guess. Where ε jumps over that interval (PRV takes over from RDP there), the σ just above the jump.

    Raises:
        InputError: ε stays above the target whatever σ.
    """
    x = math.log(_guess_noise_multiplier(epsilon, delta, sample_rate, steps))
    low, high = -math.inf, math.inf  # ln σ with ε(low) > target ≥ ε(high)
    points: list[tuple[float, float]] = []  # (ln σ, ln ε)
    while high - low > 1e-9:
        spent = Ledger().add(math.exp(x), sample_rate, steps).epsilon(delta, accountant)
        if 0.998 * epsilon <= spent <= epsilon:
            return math.exp(x)
        low, high = (x, high) if spent > epsilon else (low, x)
        if low > math.log(1e6):
            raise InputError(
                f"dp.epsilon = {epsilon:g}: out of reach at delta = {delta:g} in {steps} steps with "
                f"sample rate {sample_rate:.3g}, however much noise; raise epsilon or delta"
            )
        points.append((x, math.log(spent)))
        x = _next_log_noise(points, math.log(0.999 * epsilon), low, high)
    return math.exp(high)


def _next_log_noise(points: list[tuple[float, float]], aim: float, low: float, high: float) -> float:
    """Return the next ln σ to try: a secant step where it stays in (low, high), else halve or widen."""
    x, y = points[-1]
    slope = -1.2
    if len(points) > 1 and math.isfinite(y) and math.isfinite(points[-2][1]):
        slope = min(-0.1, (y - points[-2][1]) / (x - points[-2][0]))
    step = x + (aim - y) / slope
    if low < step < high and abs(step - x) <= 2 and len(points) < 8:
        return step
    if math.isinf(high):
        return low + 1
    return high - 1 if math.isinf(low) else (low + high) / 2


def _guess_noise_multiplier(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return σ by the central limit theorem: μ = q √(k (e^{1/σ²} − 1)) in Gaussian DP.

    Bu, Dong, Long & Su 2020, theorem 5 and corollary 3. A guess to start from, never a guarantee: it
    under-reports ε.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr

    def excess(log_mu: float) -> float:
        mu = math.exp(log_mu)
        spent = math.exp(log_ndtr(mu / 2 - epsilon / mu))
        return spent - math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)) - delta

    bracket = math.log(1e-9), math.log(epsilon + 100)
    mu = math.exp(brentq(excess, *bracket)) if excess(bracket[0]) < 0 < excess(bracket[1]) else epsilon
    return min(1e5, max(0.05, math.log1p(mu**2 / (sample_rate**2 * steps)) ** -0.5))
