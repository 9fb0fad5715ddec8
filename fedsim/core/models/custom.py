"""A torch model of the user's own: 'module:callable'."""

from __future__ import annotations

import copy
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
    moving = _moving_constant(module, input_shape)
    if moving:
        raise InputError(
            f"{where}: training changes the buffer '{moving}', which is no floating point and so not "
            "exchanged between parties; make it a float, or keep it constant"
        )
    return module


def _moving_constant(module: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Return the name of an integer or boolean buffer that a training pass changes, '' where there is none.

    BatchNorm's count of batches is nothing that its outputs depend on, unless it averages over all of them.
    """
    counts = {
        f"{name}.num_batches_tracked".lstrip(".")
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.momentum is not None
    }
    trial = copy.deepcopy(module).train()
    constants = {
        name: value.clone()
        for name, value in trial.named_buffers()
        if not value.is_floating_point() and name not in counts
    }
    if not constants:
        return ""
    with torch.no_grad():
        trial(torch.zeros(2, *input_shape))
    after = dict(trial.named_buffers())
    return next((name for name, value in constants.items() if not torch.equal(value, after[name])), "")


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
