"""Rounds without DP."""

from __future__ import annotations

import copy
import functools

import torch
from torch import nn

from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.models.weights import weights_of
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import sgd
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining
from support import training

assert_close = functools.partial(training.assert_close, atol=2e-6)


def some_records(n: int = 44, shape: tuple[int, ...] = (10,), classes: int = 3, seed: int = 0) -> Records:
    return training.some_records(n, shape, classes, seed)


def stream(round: int = 0) -> torch.Generator:
    return rng.torch_generator(0, "training", round=round)


def draws(round: int = 0) -> PartyDraws:
    return PartyDraws(stream(round), None)


def trained(module: nn.Module, records: Records, settings: TrainingSettings, **options) -> dict:
    module = copy.deepcopy(module)
    sgd.train(module, records, LocalTraining(settings, **options), draws())
    return weights_of(module)
