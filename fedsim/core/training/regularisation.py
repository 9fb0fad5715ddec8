"""Label smoothing and mixup: what a batch becomes before a step. (Dropout is a part of the forward pass.)"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.training.draws import Draws
from fedsim.core.training.losses import soft_targets
from fedsim.core.training.steps import Batches


def mixed(batches: Batches, alpha: float, draws: Draws) -> Batches:
    """Yield the batches as mixup (Zhang et al. 2018) makes them; as they are if α = 0.

    batches: with targets (B, K), which are mixed as the features are
    """
    for number, (x, target) in enumerate(batches):
        if alpha == 0:
            yield x, target
            continue
        share, partner = draws.mixup(number, alpha, len(x))
        partner = partner.to(x.device)
        # λ·own + (1 − λ)·partner's
        yield torch.lerp(x[partner], x, share), torch.lerp(target[partner], target, share)


def targets_for(module: nn.Module, data: tuple[Tensor, Tensor], defence: DefenceSettings) -> Tensor:
    """Return what the cross-entropy is taken against: `soft_targets`, or labels where these suffice.

    data: features (n, …) with labels (n,), or with targets (n, K), which stay as they are
    """
    features, labels = data
    plain = defence.label_smoothing == 0 and defence.hamp_entropy == 0 and defence.mixup == 0
    if labels.dim() == 2 or (plain and not defence.shapes_slope):
        return labels
    with torch.no_grad():
        classes = module.eval()(features[:1]).shape[1]
    module.train()
    return soft_targets(labels, classes, defence.smoothing_of(classes))
