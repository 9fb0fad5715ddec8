"""How many shadow federations an adversary simulates: a budget that nothing else of a scenario moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsim.core.models import shapes
from fedsim.core.scenario.adversary import AdversarySettings
from fedsim.core.scenario.training import ModelSettings

EARLY_SHADOWS = 8
"""Shadows of the first rounds alone for each shadow of all rounds, unless `adversary.early_shadows` says it.

The number does not follow that of the rounds: else fewer rounds would seem to protect, where w_0 to w_2 are
the same to the bit and only the adversary's effort is not.
"""

WEIGHTS_BYTES = 2**28
"""Memory that the weights of shadows may take; of more shadows they are not kept."""


def affordable(parameters: int) -> int:
    """Return of how many shadows of a model of so many parameters the weights may be kept."""
    return WEIGHTS_BYTES // (4 * parameters)


def early(settings: AdversarySettings, parameters: int) -> int:
    """Return how many shadows of the first rounds are simulated, at least as many as of all rounds.

    At most as many as `affordable` says: the attacks on the first rounds read weights.
    """
    wanted = settings.early_shadows or EARLY_SHADOWS * settings.shadows
    return max(settings.shadows, min(wanted, affordable(parameters)))


def parameters(model: ModelSettings, manifest: Mapping[str, Any]) -> int | None:
    """Return the number of a run's model's parameters, None of a model that has to be built to know it."""
    if shapes.is_custom(model):
        return None
    return shapes.weights(model, tuple(manifest["input_shape"]), len(manifest["classes"]))


def in_words(settings: AdversarySettings, parameters: int | None) -> str:
    """Say the budget; parameters: of the model, None where that is not known without building it."""
    early_ones = str(early(settings, parameters)) if parameters else f"up to {early(settings, 1)}"
    decoded = f", {settings.decoded_rounds} updates decoded alone" if settings.decoded_rounds else ""
    return f"{settings.shadows} shadow federations of all rounds, {early_ones} of the first two{decoded}"
