"""Steps that follow another slope than the cross-entropy's: HAMP's and RelaxLoss's.

HAMP (Chen & Pattabiraman 2024, eq. 4) minimises the cross-entropy against high-entropy labels minus α times
the entropy H of the answer. RelaxLoss (Chen, Yu & Fritz 2022, algorithm 1) goes down the slope of a batch
whose mean loss is α or above; below, it goes up in every other epoch, and in the others towards the answer
itself with what is not the label's spread evenly over the other classes (posterior flattening). With two
classes that is where it is already, so that every other epoch stands still. Epochs are counted from 0 in each
round; a round of one epoch only ever goes up or down. The authors' released program flattens otherwise than
their algorithm: it goes up the slope of every record and down the soft label's of misclassified ones alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.training import losses


@dataclass(frozen=True)
class Shaping:
    """What a step follows.

    target_loss: RelaxLoss's α, 0 where it is off; bonus: HAMP's α; ascends: whether this epoch goes up below
        the target loss. Tensors that broadcast against logits: of many models one number each
    """

    target_loss: float | Tensor
    bonus: float | Tensor
    ascends: bool | Tensor


def shaping_of(defence: DefenceSettings, step: int, batches_per_epoch: int) -> Shaping:
    """Return what the ``step``-th of a round follows, the first being 0."""
    return Shaping(defence.relaxloss, defence.hamp_weight, (step // batches_per_epoch) % 2 == 0)


def shaped(logits: Tensor, target: Tensor, weight: Tensor, shaping: Shaping, dim: int) -> Tensor:
    """Return ∂/∂logits of what each record contributes, unweighted, of the logits' shape.

    logits, target: (…, K, B) with ``dim`` = −2 or (…, B, K) with ``dim`` = −1, of B records and K classes;
    weight: (…, 1, B) or (…, B, 1), of each record in its batch's mean loss, of sum 1
    """
    log_p = logits.log_softmax(dim)
    p = log_p.exp()
    slope = p - target
    # ∂H/∂z_k = −p_k (log p_k + H), H = −Σ p log p
    entropy = -(p * log_p).sum(dim, keepdim=True)
    slope = slope + shaping.bonus * p * (log_p + entropy)
    loss = (-(target * log_p).sum(dim, keepdim=True) * weight).sum((-2, -1), keepdim=True)  # (…, 1, 1)
    label = target == target.amax(dim, keepdim=True)
    own = (p * label).sum(dim, keepdim=True)
    others = (1 - own) / (logits.shape[dim] - 1)
    flattened = p - torch.where(label, own, others)
    ascends = torch.as_tensor(shaping.ascends, device=logits.device)
    return torch.where(loss < shaping.target_loss, torch.where(ascends, -slope, flattened), slope)


def slope(
    logits: Tensor, target: Tensor, defence: DefenceSettings, step: int, batches_per_epoch: int
) -> Tensor:
    """Return the derivative of a batch's mean loss with respect to the logits, (B, K).

    target: (B, K), rows of sum 1
    """
    n = len(logits)
    if not defence.shapes_slope:
        return losses.slope(logits, target).div_(n)
    weight = torch.full((n, 1), 1 / n, device=logits.device)
    shaping = shaping_of(defence, step, batches_per_epoch)
    return shaped(logits, target, weight, shaping, dim=-1).div_(n)
