"""How models like a given one are stacked."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from fedsim.core.data.records import Records
from fedsim.core.models.layers import linear_stack
from fedsim.core.models.weights import weights_of
from fedsim.core.training.stacked.batches import Batches, Stack
from fedsim.core.training.stacked.layers import StackedLayers
from fedsim.core.training.stacked.modules import StackedModule


def stack_of(module: nn.Module, input_shape: tuple[int, ...], classes: int) -> Stack | None:
    """Return how models like ``module`` are stacked, or None where they have to be trained one by one.

    One by one go the modules in which the records of a batch meet (BatchNorm), since here a batch may be
    padded, and those that draw random numbers (Dropout).
    """
    stack = layout_of(module, classes)
    if isinstance(stack, StackedLayers):
        return stack
    two = Records(np.linspace(0, 1, 2 * math.prod(input_shape)).reshape(2, *input_shape), np.zeros(2, int))
    rows = torch.tensor([[0, 1], [1, 2]])
    try:
        pool = stack.pool(two)
        pair = [p.expand(2, *p.shape[1:]) for p in stack.load(weights_of(module))]
        stack.trainer(pair, pool).gradient(Batches(rows, pool.labels[rows], torch.full((2, 2), 0.5)))
        with torch.no_grad():
            alone, together = module(pool.features[:1]), module(pool.features[:2])
    except (RuntimeError, ValueError):  # vmap refuses randomness; BatchNorm a batch of one
        return None
    return stack if torch.allclose(alone, together[:1], atol=1e-5) else None


def layout_of(module: nn.Module, classes: int) -> StackedLayers | StackedModule:
    """Return how the parameters of models like ``module`` are laid out, even if they cannot be stacked."""
    return StackedModule(module, classes) if linear_stack(module) is None else StackedLayers(module)
