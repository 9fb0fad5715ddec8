"""What shipped filters of updates claim, and what a correct accountant says.

Whatever a record changes of a party's training, the clipped update stays in a ball of radius C and moves by
2C at most. σ over 2C is the noise multiplier of a round; T rounds are as one at σ/(2C√T) (`gaussian`). The
classical formula that the filters use (Dwork & Roth 2014, theorem A.1) is proved for ε ≤ 1, and of one round.
"""

from __future__ import annotations

import math

from fedsim.core.privacy import gaussian
from fedsim.core.scenario.protection import ShippedSettings


def claimed(settings: ShippedSettings) -> float:
    """Return the ε that the filter's own setting names; infinity where it names none."""
    return math.inf if settings.mechanism == "percentile" else settings.epsilon


def holds(settings: ShippedSettings, rounds: int) -> float:
    """Return the ε at the settings' δ that holds of one record over so many rounds; infinity where none does.

    'percentile' adds no noise. 'sparse-vector' sends entries as they are (`core.training.shipped`).
    """
    if settings.mechanism in ("percentile", "sparse-vector"):
        return math.inf
    return gaussian.epsilon_of(settings.delta, settings.deviation / (2 * settings.clipping_norm), rounds)


def in_words(settings: ShippedSettings, rounds: int) -> str:
    """Say both: 'claims ε = 1; over 20 rounds ε = 26.3 holds (δ = 1e-05)'."""
    claim, real = claimed(settings), holds(settings, rounds)
    says = "claims no ε" if math.isinf(claim) else f"claims ε = {claim:g}"
    if math.isinf(real):
        return f"{says}; no ε holds"
    return f"{says}; over {rounds} rounds ε = {real:.3g} holds (δ = {settings.delta:g})"
