"""The losses of defences as their papers write them, for autograd to differentiate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.core.scenario.protection import DefenceSettings


def defended_loss(logits: Tensor, targets: Tensor, defence: DefenceSettings, epoch: int) -> Tensor:
    """HAMP's loss (Chen & Pattabiraman 2024, eq. 4) within RelaxLoss's algorithm 1 (Chen et al. 2022).

    targets: (B, K); epoch: from 0
    """
    loss = functional.cross_entropy(logits, targets)
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    whole = loss - defence.hamp_weight * entropy
    if loss >= defence.relaxloss:
        return whole
    if epoch % 2 == 0:  # gradient ascent
        return -whole
    with torch.no_grad():  # posterior flattening
        p, classes = logits.softmax(1), logits.shape[1]
        soft = torch.empty_like(p)
        for i, y in enumerate(targets.argmax(1).tolist()):
            soft[i] = (1 - p[i, y]) / (classes - 1)
            soft[i, y] = p[i, y]
    return functional.cross_entropy(logits, soft)
