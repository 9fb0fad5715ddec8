"""The Gaussian mechanism, exactly: ε, δ and the noise that they take, without sampling.

A value of Euclidean sensitivity Δ is released with N(0, (zΔ)²) added; z is the noise multiplier. It is
(ε, δ)-DP if and only if δ ≥ Φ(1/2z − εz) − e^ε Φ(−1/2z − εz): Balle & Wang 2018, theorem 8. k releases at z
are as one at z/√k (Dong, Roth & Su 2022, corollary 3.3), so that the same formula is exact for them together.
"""

from __future__ import annotations

import math


def delta_of(epsilon: float, noise_multiplier: float) -> float:
    """Return the smallest δ at which one release is (ε, δ)-DP, ε ≥ 0, z > 0."""
    from scipy.special import log_ndtr

    centre, shift = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
    inside, outside = float(log_ndtr(centre - shift)), epsilon + float(log_ndtr(-centre - shift))
    # e^inside − e^outside, of which the second is smaller and both may be tiny.
    return max(0.0, -math.exp(inside) * math.expm1(min(0.0, outside - inside)))


def epsilon_of(delta: float, noise_multiplier: float, releases: int = 1) -> float:
    """Return the smallest ε at which ``releases`` releases together are (ε, δ)-DP; 0 where none is needed.

    delta: in (0, 1)
    """
    from scipy.optimize import brentq

    if releases == 0:
        return 0.0
    z = noise_multiplier / math.sqrt(releases)
    if delta_of(0.0, z) <= delta:
        return 0.0
    high = 1.0
    while delta_of(high, z) > delta:
        high *= 2
    return float(brentq(lambda value: delta_of(value, z) - delta, 0.0, high, xtol=1e-12))


def noise_for(epsilon: float, delta: float) -> float:
    """Return the smallest z at which one release is (ε, δ)-DP; ε > 0, δ in (0, 1).

    The classic √(2 ln(1.25/δ))/ε (Dwork & Roth 2014, theorem A.1) is larger, and holds for ε ≤ 1 only.
    """
    from scipy.optimize import brentq

    low, high = -1.0, 1.0  # of ln z
    while delta_of(epsilon, math.exp(low)) < delta:
        low -= 1
    while delta_of(epsilon, math.exp(high)) > delta:
        high += 1
    return math.exp(brentq(lambda x: delta_of(epsilon, math.exp(x)) - delta, low, high, xtol=1e-12))
