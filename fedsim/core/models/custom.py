"""A torch model of the user's own: 'module:callable'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from fedsim.core.errors import InputError
from fedsim.core.imports import load, short

if TYPE_CHECKING:
    from fedsim.core.scenario.training import ModelSettings


def build_custom(model: ModelSettings, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Call the user's factory and check that what it returns is a classifier of these records."""
    where = f"model.name = '{model.name}'"
    factory = load(model.name, model.folder, where)
    try:
        module = factory(input_shape, classes)
    except Exception as error:
        raise InputError(
            f"{where}: calling it with input_shape={input_shape}, classes={classes} failed: {short(error)}"
        ) from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{where}: it returned {type(module).__name__}, not a torch.nn.Module")
    if not any(p.requires_grad for p in module.parameters()):
        raise InputError(f"{where}: the module it returned has no parameters to train")
    shape = _output_shape(module, input_shape, where)
    if shape != (2, classes):
        raise InputError(f"{where}: a batch of 2 records gives shape {shape}; it must be (2, {classes})")
    return module


def _output_shape(module: nn.Module, input_shape: tuple[int, ...], where: str) -> tuple[int, ...]:
    training = module.training
    try:
        with torch.no_grad():
            output = module.eval()(torch.zeros(2, *input_shape))
        return tuple(output.shape)
    except Exception as error:
        raise InputError(
            f"{where}: the module fails on a batch of records of shape {input_shape}: {short(error)}"
        ) from error
    finally:
        module.train(training)
