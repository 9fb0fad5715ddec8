"""Which of two quick paths trains the shadows of a plan.

It depends on the plan alone, neither on how many shadows there are nor on what is cached: one seed gives one
result, bit for bit, and later shadows join those of an earlier request. Only where numba is broken are all
stacked, with a warning.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from attacks.shadows.plan import FederationPlan

if TYPE_CHECKING:
    from fedsim.core.training.stacked.batches import Stack

Path = Literal["fused", "stacked"]

LEAST_WORK = 2**22
"""Floating-point operations of a party's round, on average, from which on a path gains that has to be
compiled: that takes some seconds of an installation's first run, which small models do not give back."""


def quick_path(plan: FederationPlan, stack: Stack) -> Path:
    """Return how stacked models of this plan are trained.

    'fused', one after the other in the cache (`fedsim.core.training.fused`), are small stacks of linear
    layers with work enough (`LEAST_WORK`), unless a party stops early, which looks at all models after an
    epoch, or follows another slope than the cross-entropy's. All others are 'stacked'
    (`fedsim.core.training.stacked`).
    """
    from fedsim.core.training import fused
    from fedsim.core.training.stacked import noise
    from fedsim.core.training.stacked.layers import StackedLayers

    if not isinstance(stack, StackedLayers) or stack.parameters >= noise.LARGEST:
        return "stacked"
    defences = [party.defence for party in plan.parties]
    if any(defence.patience is not None or defence.shapes_slope for defence in defences):
        return "stacked"
    worth_it = _work(plan, stack.widths) >= LEAST_WORK
    return "fused" if worth_it and fused.available() else "stacked"


def _work(plan: FederationPlan, widths: list[int]) -> float:
    """Return the floating-point operations of all products in a party's round, on average over the parties.

    widths: units layer after layer, inputs and classes included. Each layer has two products, and all but the
    first one more.
    """
    sizes = [a * b for a, b in pairwise(widths)]
    parties = range(len(plan.parties))
    records = [plan.steps(k) * min(plan.training_of(k).batch, plan.parties[k].size) for k in parties]
    return 2 * (3 * sum(sizes) - sizes[0]) * sum(records) / len(records)
