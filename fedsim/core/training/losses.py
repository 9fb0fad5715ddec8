"""The loss that every training here minimises: cross-entropy in nats, against labels or soft targets."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def per_record(logits: Tensor, target: Tensor) -> Tensor:
    """Return −Σ_k t_ik log softmax(z_i)_k of every record, (B,).

    logits: (B, K) float; target: labels (B,) int64, or soft targets (B, K) of the logits' dtype
    """
    return functional.cross_entropy(logits, target, reduction="none")


def total(logits: Tensor, target: Tensor) -> Tensor:
    """Return the sum of `per_record` over the batch, a scalar."""
    return functional.cross_entropy(logits, target, reduction="sum")


def mean(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean of `per_record` over the batch, a scalar; NaN of no records."""
    return functional.cross_entropy(logits, target)


def slope(logits: Tensor, target: Tensor) -> Tensor:
    """Return the derivative of `total` with respect to the logits, softmax − target, (B, K).

    target: soft targets (B, K) whose rows sum to 1, one-hot ones included
    """
    return logits.softmax(1).sub_(target)


def soft_targets(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Return targets (n, K) float32: (1 − s)·one-hot + s/K (Szegedy et al. 2016, section 7).

    labels: (n,) int64 in 0…K−1; smoothing: s in [0, 1)
    """
    one_hot = functional.one_hot(labels, classes).float()
    return one_hot if smoothing == 0 else one_hot.mul_(1 - smoothing).add_(smoothing / classes)
