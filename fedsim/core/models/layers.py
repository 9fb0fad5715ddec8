"""What can be said of a module's layers, and changed about them for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import nn


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
        and _has_nothing_else(module, linear)
    )
    return linear if plain else None


def move(module: nn.Module, device: str) -> nn.Module:
    """Move the module to ``device`` where it is not there, and return it."""
    first = next(module.parameters(), None)
    return module if first is not None and first.device == torch.device(device) else module.to(device)


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


def _is_plain(layer: nn.Linear) -> bool:
    parameters = [p for p in (layer.weight, layer.bias) if p is not None]
    return len(parameters) == 2 and all(p.requires_grad and p.dtype == torch.float32 for p in parameters)


def _has_nothing_else(module: nn.Sequential, linear: list[nn.Linear]) -> bool:
    """Whether there are no parameters but the linear layers' own, no layers within layers, and no hooks.

    ``module.parameters()`` and ``module.modules()`` would say it, and take as long as a step of training.
    """
    layers = list(module)
    parameters = [p for part in (module, *layers) for p in part._parameters.values() if p is not None]
    return (
        len({id(p) for p in parameters}) == len(parameters) == 2 * len(linear)
        and not any(layer._modules for layer in layers)
        and not any(part._forward_hooks or part._forward_pre_hooks for part in (module, *layers))
    )
