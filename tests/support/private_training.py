"""Rounds of DP-SGD on each of its paths, and the slow obvious twin."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.models.weights import weights_of
from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import dp, metrics, optimizers
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining
from support.training import Hidden

OPTIMIZERS = [
    {},
    {"momentum": 0.9, "l2": 0.05},
    {"optimizer": "adam", "lr": 0.01, "l2": 0.05},
]


PATHS = pytest.mark.parametrize("path", ["written out", "per-sample", "ghost"])


def streams(round: int = 0) -> tuple[torch.Generator, torch.Generator]:
    """Of batches, and of noise."""
    return (
        rng.torch_generator(0, "poisson sampling", round=round),
        rng.torch_generator(0, "dp noise", round=round),
    )


def draws(round: int = 0) -> PartyDraws:
    return PartyDraws(*streams(round))


def on_path(path: str, settings: TrainingSettings, **more) -> LocalTraining:
    return LocalTraining(settings, gradients="auto" if path == "written out" else path, **more)  # type: ignore[arg-type]


def trained(
    module: nn.Module,
    records: Records,
    plan: Plan,
    round: int = 0,
    options=None,
    path: str = "written out",
    **more,
) -> dict:
    """The weights after a round by one of the paths, of which the second and third are Opacus'."""
    module = copy.deepcopy(module)
    watch = more.pop("watch", None)
    local = on_path(path, TrainingSettings(**(options or {})), **more)
    trained = Hidden(module) if path == "ghost" else module
    report = dp.train_private(trained, records, local, plan, draws(round), watch=watch)
    assert report.loss is None
    assert report.steps == plan.steps_per_round or "stop_on" in more
    assert (report.clipping_norm is None) == (plan.clipping == "flat")
    return weights_of(module)


def clipped_gradients(
    module: nn.Module, x: torch.Tensor, y: torch.Tensor, bound: float, smoothing: float = 0.0
) -> tuple[list, int]:
    """Sum over records of their clipped gradients, one backward pass each; how many were not shortened."""
    parameters = list(module.parameters())
    total, short = [torch.zeros_like(p) for p in parameters], 0
    for i in range(len(y)):
        loss = functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1], label_smoothing=smoothing)
        gradient = torch.autograd.grad(loss, parameters)
        norm = torch.sqrt(sum((g**2).sum() for g in gradient))
        for sum_, g in zip(total, gradient, strict=True):
            sum_ += g * min(1.0, bound / (float(norm) + 1e-6))
        short += float(norm) <= bound
    return total, short


def by_records(
    module: nn.Module, records: Records, plan: Plan, options: dict, mu: float, l1: float = 0, smoothing=0.0
) -> dict:
    """The slow obvious twin: algorithm 1 of Abadi et al. 2016, record by record, from the same streams.

    With algorithm 1 of Andrew et al. 2021 where clipping adapts.
    """
    module, (sampling, noises) = copy.deepcopy(module), streams()
    parameters = list(module.parameters())
    anchor = [p.detach().clone() for p in parameters]
    optimizer = optimizers.torch_optimizer(TrainingSettings(**options), parameters)
    bound, sigma, batch = plan.clipping_norm, plan.noise_multiplier, plan.expected_batch
    count_noise = max(batch / 20, sigma)
    adaptive = plan.clipping == "adaptive"
    z = 1 / math.sqrt(1 / sigma**2 - 1 / (2 * count_noise) ** 2) if adaptive else sigma
    for x, y in dp.poisson_batches(metrics.tensors(records), plan, PartyDraws(sampling, None)):
        gradients, short = clipped_gradients(module, x, y, bound, smoothing)
        for p, total, start in zip(parameters, gradients, anchor, strict=True):
            noise = torch.normal(0.0, z * bound, p.shape, generator=noises)
            p.grad = (total + noise) / batch + mu * (p.detach() - start) + l1 * p.detach().sign()
        optimizer.step()
        if adaptive:
            noise = torch.normal(0.0, count_noise, (1,), generator=noises)
            share = np.clip(0.5 + (short - len(y) / 2 + float(noise)) / batch, 0, 1)
            bound *= math.exp(-plan.clipping_rate * (share - plan.clipping_quantile))
    return weights_of(module)
