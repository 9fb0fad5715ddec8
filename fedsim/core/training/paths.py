"""Which of two paths trains a party without DP: written out in torch, or the kernel that trains shadows.

It depends on the plan of the run alone, neither on the engine nor on the machine: one seed gives one result.
Only where numba is broken are all trained by torch, with a warning.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from fedsim.core.models.layers import linear_stack
from fedsim.core.privacy.plan import steps_per_round
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import fused

TrainingPath = Literal["fused", "reference"]

LEAST_STEPS = 2**15
"""Steps of a party in the whole run from which on the kernel is worth its start: it spares 30 µs of a step or
more, and takes a third of a second to load, once in a process, and some to compile, once in an
installation."""

LARGEST = 2**16
"""Weights beyond which a model leaves the processor's cache, and torch is as quick."""


def training_path(
    module: nn.Module, settings: TrainingSettings, defence: DefenceSettings, n: int, rounds: int, device: str
) -> TrainingPath:
    """Return how a party with ``n`` records trains ``module`` in each of ``rounds`` rounds without DP.

    'fused' (`core.training.fused`) are small linear stacks with steps enough (`LEAST_STEPS`), whose steps the
    kernel follows: plain cross-entropy, any optimizer, L1, L2 and proximal terms. All else is the
    'reference' (`core.training.sgd`).
    """
    if rounds * steps_per_round(settings, n) < LEAST_STEPS or device != "cpu":
        return "reference"
    layers = linear_stack(module)
    if layers is None or sum(p.numel() for p in module.parameters()) >= LARGEST:
        return "reference"
    stops_or_distils = defence.patience is not None or defence.distil is not None
    softens = defence.mixup > 0 or defence.smoothing_of(layers[-1].out_features) > 0
    follows = not (stops_or_distils or softens or defence.dropout or defence.shapes_slope)
    return "fused" if follows and fused.available() else "reference"
