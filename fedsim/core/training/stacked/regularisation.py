"""Label smoothing, mixup and dropout (`fedsim.core.training.updates`) of M models at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from fedsim.core.training.stacked.batches import Batches, Mixed, PoolTensors


@dataclass(frozen=True)
class Regularisation:
    """How M models in training are regularised, each in its own way.

    smoothing, dropout: s and p of each, (M,) float32
    """

    pool: PoolTensors
    classes: int
    smoothing: Tensor
    dropout: Tensor

    @property
    def smooths(self) -> bool:
        """Whether any of the models has smoothed labels."""
        return bool(self.smoothing.any())

    @property
    def drops(self) -> bool:
        """Whether any of the models drops units."""
        return bool(self.dropout.any())

    def softened(self, batches: Batches, mixed: Mixed | None) -> Batches:
        """Return the batches (n, B) of the first n models with soft targets (n, B, K), mixed where asked."""
        targets = self._targets(batches.labels)
        if mixed is None:
            return replace(batches, targets=targets)
        partners = self._targets(self.pool.labels[mixed.rows])
        # λ·own + (1 − λ)·partner's; a model that does not mix has λ = 1
        targets = torch.lerp(partners, targets, mixed.share[:, None, None])
        return replace(batches, targets=targets, mixed=mixed)

    def dropping(self, batches: Batches, numbers: Tensor) -> Batches:
        """Return the batches with hidden units dropped; numbers: (n, B, hidden units), uniform on [0, 1)."""
        dropout = self.dropout[: len(numbers), None, None]
        return replace(batches, unit_scale=(numbers >= dropout) / (1 - dropout))

    def _targets(self, labels: Tensor) -> Tensor:
        """Return (1 − s)·one-hot + s/K, (n, B, K)."""
        smoothing = self.smoothing[: len(labels), None, None]
        one_hot = functional.one_hot(labels, self.classes).float()
        return one_hot * (1 - smoothing) + smoothing / self.classes
