"""The Gaussian mechanism, exactly: ε, δ and the noise that they take, without sampling.

A value of Euclidean sensitivity Δ is released with N(0, (zΔ)²) added; z is the noise multiplier. It is
(ε, δ)-DP if and only if δ ≥ Φ(1/2z − εz) − e^ε Φ(−1/2z − εz): Balle & Wang 2018, theorem 8. k releases at z
are as one at z/√k (Dong, Roth & Su 2022, corollary 3.3), so that the same formula is exact for them together.
The conversions are Google's dp-accounting's.
"""

from __future__ import annotations

import math


def delta_of(epsilon: float, noise_multiplier: float) -> float:
    """Return the smallest δ at which one release is (ε, δ)-DP, ε ≥ 0, z > 0."""
    from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss

    return float(GaussianPrivacyLoss(noise_multiplier).get_delta_for_epsilon(epsilon))


def epsilon_of(delta: float, noise_multiplier: float, releases: int = 1) -> float:
    """Return the smallest ε at which ``releases`` releases together are (ε, δ)-DP; 0 where none is needed.

    delta: in (0, 1)
    """
    from dp_accounting import get_epsilon_gaussian

    return (
        0.0 if releases == 0 else float(get_epsilon_gaussian(noise_multiplier / math.sqrt(releases), delta))
    )


def noise_for(epsilon: float, delta: float) -> float:
    """Return the smallest z at which one release is (ε, δ)-DP; ε > 0, δ in (0, 1).

    The classic √(2 ln(1.25/δ))/ε (Dwork & Roth 2014, theorem A.1) is larger, and holds for ε ≤ 1 only.
    """
    from dp_accounting import get_sigma_gaussian

    return float(get_sigma_gaussian(epsilon, delta))
