"""What is sent of the updates (`fedsim.core.training.updates`) of M models at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.core.scenario.protection import DefenceSettings


def shaped(
    updates: Sequence[Tensor], defence: DefenceSettings, uniform: Tensor | None = None
) -> list[Tensor]:
    """Return updates clipped, then sparsified, then quantised, as ``defence`` says, float64.

    updates: per parameter (M, entries); what is returned has these shapes
    uniform: (M, all entries) float32, numbers on [0, 1) by which quantisation rounds
    """
    sizes = [update.shape[1] for update in updates]
    flat = torch.cat(list(updates), 1).double()  # (M, p)
    if defence.clip_update is not None:
        length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        flat = flat * (defence.clip_update / length).clamp(max=1.0)
    if defence.sparsify is not None:
        sent = math.ceil(defence.sparsify * flat.shape[1])
        order = flat.abs().argsort(dim=1, descending=True, stable=True)
        flat = flat.scatter(1, order[:, sent:], 0.0)
    pieces = list(flat.split(sizes, dim=1))
    if defence.quantise is not None:
        assert uniform is not None
        pairs = zip(pieces, uniform.double().split(sizes, dim=1), strict=True)
        pieces = [quantised(piece, numbers, defence.quantise) for piece, numbers in pairs]
    return pieces


def quantised(update: Tensor, uniform: Tensor, bits: int) -> Tensor:
    """Return updates of one parameter, (M, entries), rounded to 2^bits values each."""
    top = 2**bits - 1
    reach = update.abs().amax(1, keepdim=True)
    spacing = 2 * reach / top
    level = ((update + reach) / spacing + uniform).floor().clamp(max=top)
    # An entry of 0 stays 0; so do those of a parameter that did not move, where 0 / 0 is no level.
    return torch.where(update == 0, 0.0, level * spacing - reach)
