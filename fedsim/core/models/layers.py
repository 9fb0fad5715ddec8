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


def _is_plain(layer: nn.Linear) -> bool:
    parameters = list(layer.parameters())
    return len(parameters) == 2 and all(p.requires_grad and p.dtype == torch.float32 for p in parameters)
