"""Torch models by name, their weights as arrays, and what differential privacy asks of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from fedsim.core.models.custom import build_custom
from fedsim.core.models.shapes import LANGUAGE, check_input

if TYPE_CHECKING:
    from fedsim.core.scenario.training import ModelSettings


def build(model: ModelSettings, input_shape: tuple[int, ...], classes: int, seed: int = 0) -> nn.Module:
    """Return a freshly initialised float32 module that maps (n, *input_shape) to logits (n, classes).

    The initialisation depends on ``seed`` alone; the caller's global torch stream is left as it was.

    Raises:
        InputError: the model does not suit the records, or 'module:callable' cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        if ":" in model.name:
            torch.manual_seed(seed)
            return build_custom(model, input_shape, classes)
        # The same stream; `torch.manual_seed` notes the stack of calls besides, which takes longer.
        torch.default_generator.manual_seed(seed)
        check_input(model, input_shape)
        if model.name in LANGUAGE:
            return _language(model, input_shape)
        return _BUILDERS[model.name](model.hidden, input_shape, classes)


def _logistic(hidden: list[int], input_shape: tuple[int, ...], classes: int) -> nn.Module:
    return _mlp([], input_shape, classes)


def _mlp(hidden: list[int], input_shape: tuple[int, ...], classes: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if len(input_shape) > 1:
        layers["flatten"] = nn.Flatten()
    width = int(np.prod(input_shape))
    for i, units in enumerate(hidden, start=1):
        layers[f"linear{i}"] = nn.Linear(width, units)
        layers[f"relu{i}"] = nn.ReLU()
        width = units
    layers["output"] = nn.Linear(width, classes)
    return nn.Sequential(layers)


def _cnn(hidden: list[int], input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Convolution (3×3), ReLU and 2×2 pooling per entry of ``hidden``, then one linear layer.

    No normalisation: BatchNorm has no per-record gradient, and with two layers none is needed.
    """
    channels, height, width = input_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, filters in enumerate(hidden, start=1):
        layers[f"conv{i}"] = nn.Conv2d(channels, filters, kernel_size=3, padding=1)
        layers[f"relu{i}"] = nn.ReLU()
        layers[f"pool{i}"] = nn.MaxPool2d(2)
        channels, height, width = filters, height // 2, width // 2
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(channels * height * width, classes)
    return nn.Sequential(layers)


def _language(model: ModelSettings, input_shape: tuple[int, ...]) -> nn.Module:
    from fedsim.core.models import language

    assert model.vocabulary is not None  # `check_input` has seen to it
    if model.name == "lstm":
        return language.Lstm(model.vocabulary, model.hidden)
    return language.Gpt(model.vocabulary, model.hidden[0], len(model.hidden), input_shape[0])


_BUILDERS: dict[str, Callable[[list[int], tuple[int, ...], int], nn.Module]] = {
    "logistic": _logistic,
    "mlp": _mlp,
    "cnn": _cnn,
}
