"""A torch model of the user's own: 'module:callable'."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fedsim.core.errors import InputError, suggestion

if TYPE_CHECKING:
    from fedsim.core.scenario.training import ModelSettings


def build_custom(model: ModelSettings, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Call the user's factory and check that what it returns is a classifier of these records."""
    where = f"model.name = '{model.name}'"
    factory = _factory(model)
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


def _factory(model: ModelSettings) -> Callable[[tuple[int, ...], int], object]:
    module_name, _, name = model.name.partition(":")
    folder = str(Path(model.folder or ".").resolve())
    where = f"model.name = '{model.name}'"
    try:
        with _importing_from(folder, module_name.partition(".")[0]):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"{where}: there is no module '{error.name}' (looked in {folder} first)") from error
    except Exception as error:
        raise InputError(f"{where}: importing '{module_name}' failed: {short(error)}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"{where}: '{module_name}' has no callable '{name}'{suggestion(name, known)}")
    return factory


# The folder that each top-level module of a user was imported from.
_origin: dict[str, str] = {}


@contextmanager
def _importing_from(folder: str, root: str) -> Iterator[None]:
    """Put ``folder`` first on the import path.

    A module of the same name from another scenario's folder is forgotten, or it would be used in place of
    this one.
    """
    if _origin.get(root, folder) != folder:
        for name in [name for name in sys.modules if name.partition(".")[0] == root]:
            del sys.modules[name]
    if root not in sys.modules:
        _origin[root] = folder
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)


def short(error: Exception) -> str:
    """Return an exception's kind and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
