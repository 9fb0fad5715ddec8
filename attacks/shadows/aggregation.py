"""What the server makes of the parties' mean answer, for all shadows at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attacks.shadows.plan import FederationPlan
from fedsim.core.training.stacked.batches import Parameters


def server(plan: FederationPlan) -> Callable[[Parameters, Parameters], Parameters]:
    """Return ``step(current, mean)``, w_{t−1} and the mean of the answers → w_t, to be called once a round.

    FedAvg and FedProx; FedAvgM (Hsu, Qi & Brown 2019); FedAdagrad, FedAdam and FedYogi (Reddi et al. 2021,
    algorithm 2), FedAdam with the bias correction that Flower gives it.
    """
    if plan.strategy in ("fedavg", "fedprox"):
        return lambda current, mean: mean
    return _server_momentum(plan) if plan.strategy == "fedavgm" else _adaptive_server(plan)


def _server_momentum(plan: FederationPlan) -> Callable[[Parameters, Parameters], Parameters]:
    lr, momentum = plan.option("server_learning_rate"), plan.option("server_momentum")
    velocities: Parameters = []

    def step(current: Parameters, mean: Parameters) -> Parameters:
        nonlocal velocities
        pulls = [old - new for old, new in zip(current, mean, strict=True)]
        before = velocities or [torch.zeros_like(pull) for pull in pulls]
        velocities = [momentum * v + pull for v, pull in zip(before, pulls, strict=True)]
        return [old - lr * v for old, v in zip(current, velocities, strict=True)]

    return step


def _adaptive_server(plan: FederationPlan) -> Callable[[Parameters, Parameters], Parameters]:
    eta, tau = plan.option("eta"), plan.option("tau")
    beta1, beta2 = plan.option("beta_1"), plan.option("beta_2")
    first: Parameters = []
    second: Parameters = []
    t = 0

    def second_moment(v: Tensor, square: Tensor) -> Tensor:
        if plan.strategy == "fedadagrad":
            return v + square
        if plan.strategy == "fedadam":
            return beta2 * v + (1 - beta2) * square
        return v - (1 - beta2) * square * torch.sign(v - square)

    def step(current: Parameters, mean: Parameters) -> Parameters:
        nonlocal first, second, t
        t += 1
        moves = [new - old for old, new in zip(current, mean, strict=True)]
        zeros = [torch.zeros_like(move) for move in moves]
        first = [beta1 * m + (1 - beta1) * d for m, d in zip(first or zeros, moves, strict=True)]
        second = [second_moment(v, d * d) for v, d in zip(second or zeros, moves, strict=True)]
        rate = eta
        if plan.strategy == "fedadam":
            rate *= math.sqrt(1 - beta2 ** (t + 1)) / (1 - beta1 ** (t + 1))
        moments = zip(current, first, second, strict=True)
        return [w + rate * m / (v.sqrt() + tau) for w, m, v in moments]

    return step
