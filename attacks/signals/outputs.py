"""Numbers read off a model's outputs, one per record.

z are logits, p = softmax(z), ℓ = −log p_y. Everything is taken from the logits in float64 by logsumexp, never
from a p that was rounded: a memorised record has p_y = 1 to the last bit, and its rank lies in 1 − p_y.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
