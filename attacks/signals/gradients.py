"""Numbers read off a record's gradient: its norm, and its product with a direction."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedsim.core.data.records import Records

if TYPE_CHECKING:
    import torch


def gradient_norms(module: torch.nn.Module, records: Records) -> np.ndarray:
    """Return ‖∇_w ℓ(w; z)‖ of every record z, (n,) float64; see `gradient_products`."""
    nothing = {name: np.zeros(value.shape) for name, value in module.named_parameters()}
    return gradient_products(module, records, nothing)[1]


def gradient_products(
    module: torch.nn.Module,
    records: Records,
    direction: Mapping[str, np.ndarray],
    chunk: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return ⟨∇ℓ(w; z), D⟩ and ‖∇ℓ(w; z)‖ of every record z, two (n,) float64 arrays.

    direction: D, one array per parameter name; other entries (buffers) are ignored.
    chunk: records at a time; default: as many as take about 128 MiB.

    Stacks of linear layers take an exact short cut in float64, in which a saturated softmax still has a
    gradient; any other module is differentiated record by record (vmap) in its own precision.

    Raises:
        KeyError: a parameter has no entry in ``direction``.
    """
    import torch

    from fedsim.core.models.layers import linear_stack

    short_cut = linear_stack(module) is not None
    products = _stack_products if short_cut else _formed_products
    module = copy.deepcopy(module).double() if short_cut else module
    along = {name: torch.tensor(direction[name]).double() for name, _ in module.named_parameters()}
    dtype = next(module.parameters()).dtype
    if chunk is None:
        size = sum(tensor.numel() for tensor in along.values())
        chunk = 4096 if short_cut else max(1, min(1024, 2**24 // size))
    dot, norm = np.empty(len(records)), np.empty(len(records))
    for start in range(0, len(records), chunk):
        rows = slice(start, start + chunk)
        features = torch.tensor(records.features[rows], dtype=dtype)
        product, square = products(module, features, torch.tensor(records.labels[rows]), along)
        dot[rows], norm[rows] = product.numpy(), square.sqrt().numpy()
    return dot, norm


def _stack_products(
    stack: torch.nn.Module, features: torch.Tensor, labels: torch.Tensor, direction: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ⟨g, D⟩ and ‖g‖², each (n,), without forming any g.

    A record's gradient in a layer y = W a + b is (δ aᵀ, δ) with δ = ∂ℓ/∂y (Goodfellow 2015), so that
    ⟨g, D⟩ = Σ δᵀ(D_W a + D_b) and ‖g‖² = Σ ‖δ‖² (‖a‖² + 1).
    """
    import torch

    dot, square = torch.zeros(len(labels)).double(), torch.zeros(len(labels)).double()
    for name, inputs, delta in stack_factors(stack, features, labels):
        along = torch.nn.functional.linear(inputs, direction[f"{name}.weight"], direction[f"{name}.bias"])
        dot += (delta * along).sum(1)
        square += delta.square().sum(1) * (inputs.square().sum(1) + 1)
    return dot, square


def stack_factors(
    stack: torch.nn.Module, features: torch.Tensor, labels: torch.Tensor
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Return name, inputs a (n, in) and δ = ∂ℓ/∂(outputs) (n, out) of each layer of a `linear_stack`."""
    import torch

    from fedsim.core.training import losses

    met: list[tuple[str, torch.Tensor, torch.Tensor]] = []  # a layer's name, inputs and outputs
    values = features
    for name, layer in stack.named_children():
        inputs, values = values, layer(values)
        if isinstance(layer, torch.nn.Linear):
            met.append((name, inputs.detach(), values))
    deltas = torch.autograd.grad(losses.total(values, labels), [outputs for _, _, outputs in met])
    return [(name, inputs, delta) for (name, inputs, _), delta in zip(met, deltas, strict=True)]


def _formed_products(
    module: torch.nn.Module, features: torch.Tensor, labels: torch.Tensor, direction: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ⟨g, D⟩ and ‖g‖², each (n,) float64, of the gradients g formed one per record."""
    import torch

    try:
        gradients = _vmapped_gradients(module, features, labels)
    except (RuntimeError, ValueError):  # vmap takes no recurrent layer, and no weight written in the pass
        gradients = _gradients_one_by_one(module, features, labels)
    dot, square = torch.zeros(len(labels)).double(), torch.zeros(len(labels)).double()
    for name, gradient in gradients.items():
        flat = gradient.detach().flatten(1).double()  # (n, size of the parameter)
        dot += flat @ direction[name].flatten()
        square += flat.square().sum(1)
    return dot, square


def _vmapped_gradients(
    module: torch.nn.Module, features: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return each record's gradient, (n, …) by parameter name, all records at once."""
    from torch.func import functional_call, grad, vmap

    from fedsim.core.training import losses

    def loss_of_one(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return losses.mean(functional_call(module, weights, (x[None],)), y[None])

    weights = {name: value.detach() for name, value in module.named_parameters()}
    module = copy.deepcopy(module)  # functional_call does not put back a layer that is used twice
    return vmap(grad(loss_of_one), in_dims=(None, 0, 0))(weights, features, labels)


def _gradients_one_by_one(
    module: torch.nn.Module, features: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return what `_vmapped_gradients` does, one record after another."""
    import torch

    module = copy.deepcopy(module).requires_grad_(True)
    weights = dict(module.named_parameters())
    rows = []
    for x, y in zip(features, labels, strict=True):
        loss = torch.nn.functional.cross_entropy(module(x[None]), y[None])
        rows.append(torch.autograd.grad(loss, list(weights.values()), materialize_grads=True))
    return {name: torch.stack(column) for name, column in zip(weights, zip(*rows, strict=True), strict=True)}
