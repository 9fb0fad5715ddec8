"""The optimizers' steps of many models at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training.stacked.batches import Gradient, Parameters


class _Prefixes(dict[int, Parameters]):
    """n → the first n models' parameters; remembered, since cutting them at every step costs."""

    def __init__(self, parameters: Parameters) -> None:
        super().__init__()
        self._all = parameters

    def __missing__(self, n: int) -> Parameters:
        self[n] = [p[:n] for p in self._all]
        return self[n]


Update = Callable[[Gradient, int], None]


@dataclass(frozen=True)
class Penalties:
    """What is added to a gradient besides: μ(w − w_t) of FedProx (Li et al. 2020, eq. 2), λ₁ sign(w), λ₂ w.

    l1, l2: λ₁ and λ₂, one for all models or (M,) float32, one for each
    """

    mu: float = 0.0
    l1: float | Tensor = 0.0
    l2: float | Tensor = 0.0


def optimizer(parameters: Parameters, settings: TrainingSettings, penalties: Penalties) -> Update:
    """Return ``update(gradient, n)``: one step, in place, of the first n models.

    All of them have made the same number of steps before. torch.optim's SGD (heavy ball), and Adam with its
    defaults, on the gradient and the penalties, w_t being the parameters now.
    """
    slopes = _PenaltySlopes(parameters, penalties)
    if settings.optimizer == "adam":
        return _adam(parameters, settings, slopes)
    if settings.momentum:
        return _heavy_ball(parameters, settings, slopes)
    if not isinstance(penalties.l2, Tensor) and not isinstance(penalties.l1, Tensor) and penalties.l1 == 0:
        return _sgd(parameters, settings, penalties.l2, penalties.mu)
    return _penalised_sgd(parameters, settings, slopes)


class _PenaltySlopes:
    """The gradients of the penalties of M models in training."""

    def __init__(self, parameters: Parameters, penalties: Penalties) -> None:
        self._anchors = _Prefixes([p.clone() for p in parameters] if penalties.mu else [])
        self._penalties = penalties

    def add_to(self, slope: Tensor, i: int, w: Tensor) -> None:
        """Add them, at the first models' i-th parameter ``w``, to ``slope``."""
        n, penalties = len(w), self._penalties
        if penalties.mu:
            # The difference first: it is exactly 0 where nothing moved, and Adam blows up what is not.
            slope.add_(w - self._anchors[n][i], alpha=penalties.mu)
        if isinstance(penalties.l1, Tensor) or penalties.l1:
            slope.add_(_per_model(penalties.l1, w) * w.sign())
        if isinstance(penalties.l2, Tensor) or penalties.l2:
            slope.add_(_per_model(penalties.l2, w) * w)


def _per_model(value: float | Tensor, w: Tensor) -> float | Tensor:
    """Return a number for all models, or (M,) cut to the n models of ``w`` (n, …) as (n, 1, …)."""
    return value[: len(w)].view(-1, *[1] * (w.dim() - 1)) if isinstance(value, Tensor) else value


def _sgd(parameters: Parameters, settings: TrainingSettings, l2: float, mu: float) -> Update:
    """w ← (1 − lr(λ₂ + μ)) w − lr ∇ + lr μ w_t, in one product per weight matrix."""
    lr, decay = settings.lr, 1 - settings.lr * (l2 + mu)
    first, anchored = _Prefixes(parameters), _Prefixes([p.clone() for p in parameters] if mu else [])

    def update(gradient: Gradient, n: int) -> None:
        for i, p in enumerate(first[n]):
            # β and α of the gradient's own product: the weights are read and written once.
            gradient.add_to(i, p, decay, -lr)
            if mu:
                p.add_(anchored[n][i], alpha=lr * mu)

    return update


def _penalised_sgd(parameters: Parameters, settings: TrainingSettings, slopes: _PenaltySlopes) -> Update:
    """w ← w − lr(∇ + penalties)."""
    first = _Prefixes(parameters)

    def update(gradient: Gradient, n: int) -> None:
        for i, p in enumerate(first[n]):
            slope = torch.zeros_like(p)
            slopes.add_to(slope, i, p)
            gradient.add_to(i, p, 1.0, -settings.lr)
            p.sub_(slope, alpha=settings.lr)

    return update


def _heavy_ball(parameters: Parameters, settings: TrainingSettings, slopes: _PenaltySlopes) -> Update:
    """v ← m v + ∇ + penalties, w ← w − lr v."""
    first = _Prefixes(parameters)
    velocities = _Prefixes([torch.zeros_like(p) for p in parameters])

    def update(gradient: Gradient, n: int) -> None:
        for i, (p, velocity) in enumerate(zip(first[n], velocities[n], strict=True)):
            gradient.add_to(i, velocity, settings.momentum, 1.0)
            slopes.add_to(velocity, i, p)
            p.sub_(velocity, alpha=settings.lr)

    return update


def _adam(parameters: Parameters, settings: TrainingSettings, slopes: _PenaltySlopes) -> Update:
    """Adam (Kingma & Ba 2015, algorithm 1)."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    first = _Prefixes(parameters)
    means = _Prefixes([torch.zeros_like(p) for p in parameters])
    squares = _Prefixes([torch.zeros_like(p) for p in parameters])
    t = 0

    def update(gradient: Gradient, n: int) -> None:
        nonlocal t
        t += 1
        for i, (p, mean, square) in enumerate(zip(first[n], means[n], squares[n], strict=True)):
            slope = torch.empty_like(p)
            gradient.add_to(i, slope, 0.0, 1.0)  # β = 0: what is in the fresh tensor does not matter
            slopes.add_to(slope, i, p)
            mean.lerp_(slope, 1 - beta1)
            square.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
            # Both bias corrections are numbers, since all models have made t steps.
            scale = square.sqrt().div_(math.sqrt(1 - beta2**t)).add_(epsilon)
            p.addcdiv_(mean, scale, value=-settings.lr / (1 - beta1**t))

    return update
