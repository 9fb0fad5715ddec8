"""Numbers read off a model: one per record, from its logits or from its gradient.

z are logits, p = softmax(z), ℓ = −log p_y. Everything is taken from the logits in float64 by logsumexp, never
from a p that was rounded: a memorised record has p_y = 1 to the last bit, and its rank lies in 1 − p_y.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedsim.data.records import Records

if TYPE_CHECKING:
    import torch


def loss(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the cross-entropy −log p_y, (n,) float64, accurate down to the smallest positive float.

    logits: (n, classes) float64; labels: (n,) integers.
    """
    return np.logaddexp(0.0, -scaled_logit(logits, labels))


def correct(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return 1[argmax_i p_i = y], (n,) float64; NaN where a logit is NaN."""
    right = (logits.argmax(axis=1) == labels).astype(np.float64)
    return np.where(np.isnan(logits).any(axis=1), np.nan, right)


def confidence(logits: np.ndarray) -> np.ndarray:
    """Return log max_i p_i, (n,) float64: in the order of max_i p_i, which itself would round to 1."""
    return -loss(logits, logits.argmax(axis=1))


def entropy(logits: np.ndarray) -> np.ndarray:
    """Return the Shannon entropy −Σ p_i log p_i in nats, (n,) float64."""
    log_p, _ = _log_probabilities(logits)
    return -(np.exp(log_p) * log_p).sum(axis=1)


def modified_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return −(1 − p_y) log p_y − Σ_{i≠y} p_i log(1 − p_i), (n,) float64 (Song & Mittal 2021).

    Unlike the entropy it is large for a confident wrong answer: 0 at p_y = 1, unbounded at p_y = 0.
    """
    log_p, log_rest = _log_probabilities(logits)
    rows = np.arange(len(labels))
    terms = np.exp(log_p) * log_rest
    terms[rows, labels] = np.exp(log_rest[rows, labels]) * log_p[rows, labels]
    return -terms.sum(axis=1)


def scaled_logit(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return φ = log p_y − log Σ_{i≠y} p_i, (n,) float64 (Carlini et al. 2022): the log-odds of the label."""
    rows = np.arange(len(labels))
    others = logits.astype(np.float64)
    others[rows, labels] = -np.inf
    return logits[rows, labels] - _logsumexp(others)


def _logsumexp(values: np.ndarray) -> np.ndarray:
    largest = values.max(axis=1)
    return largest + np.log(np.exp(values - largest[:, None]).sum(axis=1))


def _log_probabilities(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return log p_i and log(1 − p_i), each (n, classes).

    Only the largest p can come so close to 1 that 1 − p is lost; that one is taken from its log-odds.
    """
    rows, top = np.arange(len(logits)), logits.argmax(axis=1)
    odds = scaled_logit(logits, top)
    log_p = logits - _logsumexp(logits)[:, None]
    with np.errstate(divide="ignore"):
        log_rest = np.log1p(-np.exp(log_p))
    log_p[rows, top] = -np.logaddexp(0.0, -odds)
    log_rest[rows, top] = -np.logaddexp(0.0, odds)
    return log_p, log_rest


def logits(module: torch.nn.Module, features: np.ndarray, batch: int = 512) -> np.ndarray:
    """Return the module's outputs on ``features``, (n, classes) float64, ``batch`` records at a time."""
    import torch

    with torch.inference_mode():
        parts = [
            module(torch.tensor(features[start : start + batch])).numpy()
            for start in range(0, max(len(features), 1), batch)
        ]
    return np.concatenate(parts).astype(np.float64)


def last_layer_inputs(module: torch.nn.Module, features: np.ndarray, batch: int = 512) -> np.ndarray:
    """Return the penultimate activations a, (n, h) float32: the logits are W a + b.

    Where the logits do not come straight out of a linear layer, they are returned in its place.
    """
    import torch

    passed: list[tuple[torch.Tensor, torch.Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output: passed.append((inputs[0], output)))
        for layer in module.modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    parts = []
    try:
        with torch.inference_mode():
            for start in range(0, max(len(features), 1), batch):
                passed.clear()
                answers = module(torch.tensor(features[start : start + batch]))
                last = [inputs for inputs, output in passed if output is answers]
                parts.append((last[-1] if last else answers).numpy())
    finally:
        for hook in hooks:
            hook.remove()
    return np.concatenate(parts)


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

    from fedsim.models import linear_stack

    short_cut = linear_stack(module) is not None
    products = _stack_products if short_cut else _vmapped_products
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
    from torch import nn

    met: list[tuple[str, torch.Tensor, torch.Tensor]] = []  # a layer's name, input (n, in), output (n, out)
    values = features
    for name, layer in stack.named_children():
        inputs, values = values, layer(values)
        if isinstance(layer, nn.Linear):
            met.append((name, inputs.detach(), values))
    total = nn.functional.cross_entropy(values, labels, reduction="sum")
    deltas = torch.autograd.grad(total, [outputs for _, _, outputs in met])
    dot, square = torch.zeros(len(labels)).double(), torch.zeros(len(labels)).double()
    for (name, inputs, _), delta in zip(met, deltas, strict=True):
        along = nn.functional.linear(inputs, direction[f"{name}.weight"], direction[f"{name}.bias"])
        dot += (delta * along).sum(1)
        square += delta.square().sum(1) * (inputs.square().sum(1) + 1)
    return dot, square


def _vmapped_products(
    module: torch.nn.Module, features: torch.Tensor, labels: torch.Tensor, direction: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ⟨g, D⟩ and ‖g‖², each (n,) float64, of the gradients g formed one per record."""
    import torch
    from torch.func import functional_call, grad, vmap

    def loss_of_one(weights: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(functional_call(module, weights, (x[None],)), y[None])

    weights = {name: value.detach() for name, value in module.named_parameters()}
    module = copy.deepcopy(module)  # functional_call does not put back a layer that is used twice
    gradients = vmap(grad(loss_of_one), in_dims=(None, 0, 0))(weights, features, labels)
    dot, square = torch.zeros(len(labels)).double(), torch.zeros(len(labels)).double()
    for name, gradient in gradients.items():
        flat = gradient.detach().flatten(1).double()
        dot += flat @ direction[name].flatten()
        square += flat.square().sum(1)
    return dot, square
