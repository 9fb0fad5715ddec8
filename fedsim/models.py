"""Torch models by name, their weights as arrays, and what differential privacy asks of them."""

from __future__ import annotations

import copy
import importlib
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from fedsim.errors import InputError, suggestion

if TYPE_CHECKING:
    from fedsim.scenario import ModelSettings


def build(model: ModelSettings, input_shape: tuple[int, ...], classes: int, seed: int = 0) -> nn.Module:
    """Return a freshly initialised float32 module that maps (n, *input_shape) to logits (n, classes).

    The initialisation depends on ``seed`` alone; the caller's global torch stream is left as it was.

    Raises:
        InputError: the model does not suit the records, or 'module:callable' cannot be used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ":" in model.name:
            return _custom(model, input_shape, classes)
        return _BUILDERS[model.name](model.hidden, input_shape, classes)


def weights(module: nn.Module) -> dict[str, np.ndarray]:
    """Return a copy of the module's state as float32 arrays, by name, in the module's order."""
    return {
        name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in module.state_dict().items()
    }


def load_weights(module: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Overwrite the module's state with ``weights``, as returned by `weights`.

    Raises:
        ValueError: names or shapes differ from the module's.
    """
    state = module.state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    given = {name: tuple(np.shape(array)) for name, array in weights.items()}
    if given != wanted:
        raise ValueError(f"weights are {given}, the model's are {wanted}")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.tensor(weights[name]))


def linear_stack(module: nn.Module) -> list[nn.Linear] | None:
    """Return the layers of a plain Linear-ReLU-…-Linear network on flattened records, else None.

    Only exact types count: a subclass, a hook, a frozen or shared layer may mean something else.
    """
    if type(module) is not nn.Sequential:
        return None
    layers = list(module)
    if layers and type(layers[0]) is nn.Flatten and layers[0].start_dim == 1:
        layers = layers[1:]
    linear = [layer for layer in layers[::2] if type(layer) is nn.Linear]
    plain = (
        len(layers) % 2 == 1
        and len(linear) == len(layers[::2])
        and all(type(layer) is nn.ReLU for layer in layers[1::2])
        and all(below.out_features == above.in_features for below, above in pairwise(linear))
        and all(_is_plain(layer) for layer in linear)
        and len(list(module.parameters())) == 2 * len(linear)  # none shared
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    )
    return linear if plain else None


# Elementwise activations: what they put out are the hidden units.
_ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Tanh, nn.Sigmoid,
)  # fmt: skip


def hidden_units(module: nn.Module) -> list[nn.Module]:
    """Return the activation layers of ``module``, whose outputs dropout leaves out."""
    return [layer for layer in module.modules() if isinstance(layer, _ACTIVATIONS)]


@contextmanager
def dropout(module: nn.Module, probability: float) -> Iterator[None]:
    """Leave out each output of `hidden_units` with this probability in training mode, for a while.

    Inverted dropout: what is left is divided by 1 − p. Drawn from torch's global stream.
    """

    def drop(layer: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(output, probability, training=layer.training)

    with hooked(hidden_units(module) if probability else [], drop):
        yield


@contextmanager
def hooked(layers: Iterable[nn.Module], hook: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Let ``hook(layer, inputs, output)`` replace each of these layers' outputs for a while."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_dp_ready(module: nn.Module, input_shape: tuple[int, ...] | None = None) -> None:
    """Refuse a module that cannot be trained with DP-SGD: what one record does must not depend on the others.

    With ``input_shape`` given, a custom module is also tried on two records.

    Raises:
        InputError: naming the layer: BatchNorm, and whatever else Opacus rejects; or saying what went wrong.
    """
    if linear_stack(module) is not None:
        return
    for name, layer in module.named_modules():
        problem = _dp_problem(layer)
        if problem:
            raise InputError(
                f"model: layer '{name or type(layer).__name__}' cannot be trained with DP-SGD: {problem}"
            )
    if input_shape is not None:
        _try_privately(module, input_shape)


def _dp_problem(layer: nn.Module) -> str:
    """Return what keeps this layer, without its children, from DP-SGD; empty if nothing does."""
    from opacus.validators import ModuleValidator

    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return f"{type(layer).__name__} mixes the records of a batch; use GroupNorm instead"
    own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
    if own and any(True for _ in layer.buffers()):
        return f"{type(layer).__name__} has parameters and buffers, whose values would not be private"
    validate = ModuleValidator.VALIDATORS.get(type(layer))
    problems = validate(layer) if validate else []
    return str(problems[0]).partition(". ")[0] if problems else ""


def _try_privately(module: nn.Module, input_shape: tuple[int, ...]) -> None:
    from opacus import GradSampleModule

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        pair, other = torch.rand(2, *input_shape), torch.rand(1, *input_shape)
        try:
            private = GradSampleModule(copy.deepcopy(module).cpu().train())
            torch.manual_seed(0)  # the same dropout for both
            logits = private(pair)
            logits.sum().backward()
            torch.manual_seed(0)
            beside_another = private(torch.cat([pair[:1], other]))
            missing = [name for name, p in private._module.named_parameters() if _without_gradient(p)]
        except Exception as error:
            raise InputError(f"model: Opacus cannot train it with DP-SGD: {_short(error)}") from error
    if missing:
        raise InputError(f"model: parameter '{missing[0]}' takes no part in the output; freeze or remove it")
    if not torch.allclose(logits[0], beside_another[0], atol=1e-5):
        raise InputError(
            "model: the output for a record depends on the other records in its batch, so that no record has "
            "a gradient of its own to clip for DP-SGD"
        )


def ghost_problem(module: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Return why Opacus' ghost clipping cannot find the norms of the module's gradients, '' if it can.

    Tried on two records against their gradients themselves: it takes each use of a layer for all of it.
    """
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    norms = []
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        for wrap in (GradSampleModule, GradSampleModuleFastGradientClipping):
            torch.manual_seed(0)  # the same dropout for both
            pair = torch.rand(2, *input_shape)
            try:
                private = wrap(copy.deepcopy(module).cpu().train(), loss_reduction="sum")
                private(pair).logsumexp(1).sum().backward()
            except Exception as error:
                return _short(error)
            if wrap is GradSampleModule:
                samples = [p.grad_sample.flatten(1) for p in private.parameters() if p.requires_grad]
                norms.append(torch.cat(samples, 1).norm(dim=1))
            else:
                norms.append(private.get_norm_sample().detach())
    alike = torch.allclose(norms[0], norms[1], rtol=1e-3)
    return "" if alike else "the norms that it finds are not the gradients'"


def _without_gradient(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and getattr(parameter, "grad_sample", None) is None


def _is_plain(layer: nn.Linear) -> bool:
    parameters = list(layer.parameters())
    return len(parameters) == 2 and all(p.requires_grad and p.dtype == torch.float32 for p in parameters)


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
    if len(input_shape) != 3:
        raise InputError(
            f"model.name = 'cnn': records have shape {input_shape}, not (channels, height, width); use 'mlp'"
        )
    channels, height, width = input_shape
    if min(height, width) >> len(hidden) == 0:
        raise InputError(
            f"model.hidden = {hidden}: {len(hidden)} poolings leave nothing of {height}×{width} pixels; "
            f"at most {min(height, width).bit_length() - 1} layers"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, filters in enumerate(hidden, start=1):
        layers[f"conv{i}"] = nn.Conv2d(channels, filters, kernel_size=3, padding=1)
        layers[f"relu{i}"] = nn.ReLU()
        layers[f"pool{i}"] = nn.MaxPool2d(2)
        channels, height, width = filters, height // 2, width // 2
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(channels * height * width, classes)
    return nn.Sequential(layers)


_BUILDERS: dict[str, Callable[[list[int], tuple[int, ...], int], nn.Module]] = {
    "logistic": _logistic,
    "mlp": _mlp,
    "cnn": _cnn,
}


def _custom(model: ModelSettings, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Call the user's factory and check that what it returns is a classifier of these records."""
    where = f"model.name = '{model.name}'"
    factory = _factory(model)
    try:
        module = factory(input_shape, classes)
    except Exception as error:
        raise InputError(
            f"{where}: calling it with input_shape={input_shape}, classes={classes} failed: {_short(error)}"
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
            f"{where}: the module fails on a batch of records of shape {input_shape}: {_short(error)}"
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
        raise InputError(f"{where}: importing '{module_name}' failed: {_short(error)}") from error
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


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
