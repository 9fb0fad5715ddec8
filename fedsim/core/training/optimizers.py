"""What becomes of a gradient: penalties are added, and an optimizer's step is made."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedsim.core.scenario.training import TrainingSettings

FlatStep = Callable[[Tensor], None]


def add_penalties(gradient: Tensor, w: Tensor, start: Tensor, mu: float, l1: float) -> None:
    """Add to ``gradient``, in place, μ(w − w_t) of FedProx's proximal term and λ₁ sign(w) of L1.

    gradient, w, start: tensors of one shape; start is w_t, the weights that the round set out from
    """
    if mu:
        gradient.add_(w - start, alpha=mu)
    if l1:
        gradient.add_(w.sign(), alpha=l1)


def torch_optimizer(settings: TrainingSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return torch's optimizer for ``settings``; L2 is its (coupled) weight decay."""
    if settings.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.l2)
    return torch.optim.SGD(parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.l2)


def flat_optimizer(flat: Tensor, settings: TrainingSettings) -> FlatStep:
    """Return ``step(gradient)``: torch's optimizer on one vector ``flat`` (p,), in place, without its cost.

    A call of torch.optim takes longer than the arithmetic of a small model. L2 is added to ``gradient``.
    """
    step = _adam(flat, settings) if settings.optimizer == "adam" else _sgd(flat, settings)
    if settings.l2 == 0:
        return step
    return lambda gradient: step(gradient.add_(flat, alpha=settings.l2))


def _sgd(flat: Tensor, settings: TrainingSettings) -> FlatStep:
    """SGD with heavy-ball momentum as torch.optim.SGD has it: v ← m v + g, w ← w − lr v."""
    if settings.momentum == 0:

        def plain(gradient: Tensor) -> None:
            flat.sub_(gradient, alpha=settings.lr)

        return plain
    velocity = torch.zeros_like(flat)

    def heavy_ball(gradient: Tensor) -> None:
        velocity.mul_(settings.momentum).add_(gradient)
        flat.sub_(velocity, alpha=settings.lr)

    return heavy_ball


def _adam(flat: Tensor, settings: TrainingSettings) -> FlatStep:
    """Adam (Kingma & Ba 2015, algorithm 1) with torch.optim.Adam's defaults."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    mean, square = torch.zeros_like(flat), torch.zeros_like(flat)
    t = 0

    def step(gradient: Tensor) -> None:
        nonlocal t
        t += 1
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = square.sqrt().div_(math.sqrt(1 - beta2**t)).add_(epsilon)
        flat.addcdiv_(mean, scale, value=-settings.lr / (1 - beta1**t))

    return step
