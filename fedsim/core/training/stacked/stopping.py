"""Early stopping (`fedsim.core.training.stopping`) of M models at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim.core.training import losses
from fedsim.core.training.stacked.batches import Parameters, PoolTensors, Stack


@dataclass(frozen=True, eq=False)
class Watched:
    """Neighbouring models that stop early alike.

    models: where they are among all M; rows: of the pool, what each of them looks at, (models, R) int
    steps, epoch: steps of a whole round, and between two looks
    """

    models: slice
    rows: Tensor
    patience: int
    steps: int
    epoch: int


class EarlyStopping:
    """Ends the rounds of M models; of those that nobody watches, none.

    A model whose round has ended trains on, which costs nothing more, but what it becomes is not looked at.

    ended: (M,) bool, whose round has ended
    """

    def __init__(self, watched: Sequence[Watched], models: int, stack: Stack, pool: PoolTensors) -> None:
        self._watched, self._stack, self._pool = watched, stack, pool
        self._lowest = torch.full((models,), math.inf, dtype=torch.float64)
        self._waited = torch.zeros(models)
        self._best: Parameters = []
        self.ended = torch.zeros(models, dtype=torch.bool)

    def after(self, steps: int, local: Parameters) -> None:
        """Look at the models of which an epoch, or the round, ends with this number of steps."""
        for group in self._watched:
            due = steps == group.steps or (steps < group.steps and steps % group.epoch == 0)
            if due:
                self._best = self._best or [p.clone() for p in local]
                self._look(group, [p[group.models] for p in local])

    def finish(self, local: Parameters) -> None:
        """Give every model that was looked at the weights of its best epoch."""
        improved = self._lowest.isfinite()
        for p, best in zip(local, self._best, strict=False):  # no best if nobody was looked at
            p[improved] = best[improved]

    def _look(self, group: Watched, models: Parameters) -> None:
        span, rows = group.models, group.rows
        logits = self._stack.logits_of(models, self._pool.features[rows]).double()  # (models, R, K)
        of_records = losses.per_record(logits.flatten(0, 1), self._pool.labels[rows].flatten())
        loss = of_records.view(rows.shape).mean(1)
        lower = (loss < self._lowest[span]) & ~self.ended[span]
        self._lowest[span] = torch.where(lower, loss, self._lowest[span])
        self._waited[span] = torch.where(lower, 0, self._waited[span] + 1)
        self.ended[span] |= self._waited[span] >= group.patience
        for best, p in zip(self._best, models, strict=True):
            best[span][lower] = p[lower]
