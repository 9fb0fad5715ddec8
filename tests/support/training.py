"""A small party to train: records, models, a plan."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.training import ModelSettings

PLAN = Plan(
    sample_rate=0.4,
    expected_batch=12.0,
    steps_per_round=6,
    noise_multiplier=0.7,
    rounds=3,
    delta=1e-5,
    clipping_norm=0.8,
    accountant="prv",
    epsilon=8.0,
    budget=8.0,
)


def some_records(n: int = 30, shape: tuple[int, ...] = (10,), classes: int = 3, seed: int = 0) -> Records:
    stream = np.random.default_rng(seed)
    features = stream.normal(size=(n, *shape)).astype(np.float32)
    return Records(features, stream.integers(0, classes, n))


def mlp(classes: int = 3, hidden: tuple[int, ...] = (8, 6), shape: tuple[int, ...] = (10,)) -> nn.Module:
    return zoo.build(ModelSettings(hidden=list(hidden)), shape, classes, seed=1)


class Hidden(nn.Module):
    """A module that is no plain stack, whatever it holds."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


def assert_close(actual: dict, expected: dict, atol: float = 5e-6) -> None:
    assert list(actual) == list(expected)
    for name in actual:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, atol=atol, err_msg=name)
