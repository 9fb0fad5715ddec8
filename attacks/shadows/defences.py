"""What parties do against leakage beside DP-SGD, for the models of many shadows at a time.

`fedsim.core.training.updates` defines it, and `attacks.shadows.plain` does it a model at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from attacks.shadows.cohort import Cohort
from attacks.shadows.plan import FederationPlan
from attacks.shadows.schedule import Streams
from fedsim.core.errors import InputError
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.training.stacked.batches import Batches, Mixed, Parameters, Pool, Stack
from fedsim.core.training.stacked.noise import uniform

Key = tuple[int, int]


class Regularisation:
    """Label smoothing, mixup and dropout of the models of a cohort."""

    def __init__(self, plan: FederationPlan, cohort: Cohort, stack: Stack, pool: Pool, key: Key) -> None:
        defences = [party.defence for party in plan.parties]
        self._smoothing = cohort.per_model(lambda k: defences[k].label_smoothing)
        self._dropout = cohort.per_model(lambda k: defences[k].dropout)
        self._smooths, self._drops = bool(self._smoothing.any()), bool(self._dropout.any())
        self._cohort, self._stack, self._pool = cohort, stack, pool
        self._classes, self._key = plan.classes, key

    def applied_to(self, batches: Batches, step: int) -> Batches:
        """Return the batches of a step, (n, width), regularised."""
        n, width = batches.rows.shape
        if self._smooths or self._cohort.partner is not None:
            batches = self._softened(batches, step)
        if self._drops:
            size = sum(self._stack.hidden_widths)
            numbers = uniform(self._key, self._cohort.dropout[step, :n], width * size).view(n, width, size)
            probability = self._dropout[:n, None, None]
            batches = replace(batches, kept=(numbers >= probability) / (1 - probability))
        return batches

    def _softened(self, batches: Batches, step: int) -> Batches:
        n, width = batches.rows.shape
        targets = self._targets(batches.labels)
        if self._cohort.partner is None or self._cohort.share is None:
            return replace(batches, targets=targets)
        rows, share = self._cohort.partner[step, :n, :width], self._cohort.share[step, :n]
        targets = torch.lerp(self._targets(self._pool.labels[rows]), targets, share[:, None, None])
        return replace(batches, targets=targets, mixed=Mixed(rows, share))

    def _targets(self, labels: Tensor) -> Tensor:
        """Return (1 − s)·one-hot + s/K, (n, width, K)."""
        smoothing = self._smoothing[: len(labels), None, None]
        one_hot = functional.one_hot(labels, self._classes).float()
        return one_hot * (1 - smoothing) + smoothing / self._classes


def draw_heldout(
    plan: FederationPlan, members: np.ndarray, records: int, streams: Sequence[Streams]
) -> dict[int, np.ndarray]:
    """Draw the records that parties which stop early look at: party → (S, R) rows of the pool.

    An adversary does not know a party's held-out records. As many of the pool's that are in no party of the
    shadow stand in for them, other ones for each party where there are enough; so they do for public ones.

    Raises:
        InputError: no record of the pool is left over.
    """
    stopping = [k for k, party in enumerate(plan.parties) if party.defence.patience is not None]
    if not stopping:
        return {}
    firsts = np.concatenate([[0], np.cumsum(plan.sizes[stopping])])
    orders = []
    for who, stream in zip(members, streams, strict=True):
        free = np.setdiff1d(np.arange(records), who)
        if len(free) == 0:
            raise InputError("defences: no record is left over for a simulated party to stop early on")
        orders.append(np.resize(stream.heldout.permutation(free), firsts[-1]))
    dealt = np.stack(orders)
    return {k: dealt[:, a:b] for k, a, b in zip(stopping, firsts, firsts[1:], strict=False)}


class EarlyStopping:
    """`fedsim.core.training.stopping.EarlyStopping` of the models of a cohort.

    A model whose round has ended trains on, which costs nothing more, but what it becomes is not looked at.

    ended: (M,) bool, whose round has ended
    """

    def __init__(
        self, plan: FederationPlan, cohort: Cohort, stack: Stack, pool: Pool, heldout: dict[int, np.ndarray]
    ) -> None:
        self._plan, self._cohort, self._stack, self._pool, self._heldout = plan, cohort, stack, pool, heldout
        self._spans = [span for span in cohort.spans() if plan.parties[span[0]].defence.patience is not None]
        self._lowest = torch.full((cohort.models,), math.inf, dtype=torch.float64)
        self._waited = torch.zeros(cohort.models)
        self._best: Parameters = []
        self.ended = torch.zeros(cohort.models, dtype=torch.bool)

    def after(self, steps: int, local: Parameters) -> None:
        """Look at the models of which an epoch, or the round, ends with this number of steps."""
        for k, start, stop in self._spans:
            patience, last = self._plan.parties[k].defence.patience, self._plan.steps(k)
            due = steps == last or (steps < last and steps % self._plan.batches_per_epoch(k) == 0)
            if patience is None or not due or stop == start:
                continue
            self._best = self._best or [p.clone() for p in local]
            self._look(k, slice(start, stop), patience, [p[start:stop] for p in local])

    def finish(self, local: Parameters) -> None:
        """Give every model that was looked at the weights of its best epoch."""
        found = self._lowest.isfinite()
        for p, best in zip(local, self._best, strict=False):  # none if nobody was looked at
            p[found] = best[found]

    def _look(self, party: int, span: slice, patience: int, models: Parameters) -> None:
        rows = torch.from_numpy(self._heldout[party])[self._cohort.shadow[span]]  # (models, R)
        logits = self._stack.logits_of(models, self._pool.features[rows]).double()
        losses = functional.cross_entropy(
            logits.flatten(0, 1), self._pool.labels[rows].flatten(), reduction="none"
        )
        loss = losses.view(rows.shape).mean(1)
        running = ~self.ended[span]
        lower = (loss < self._lowest[span]) & running
        self._lowest[span] = torch.where(lower, loss, self._lowest[span])
        self._waited[span] = torch.where(lower, 0, self._waited[span] + 1)
        self.ended[span] |= self._waited[span] >= patience
        for best, p in zip(self._best, models, strict=True):
            best[span][lower] = p[lower]


def shape_updates(
    plan: FederationPlan, cohort: Cohort, stack: Stack, current: Parameters, local: Parameters, key: Key
) -> None:
    """Clip, sparsify and quantise the updates of ``local``, in place, as the parties' defences say."""
    for k, start, stop in cohort.spans():
        defence, span = plan.parties[k].defence, slice(start, stop)
        if stop == start or not defence.changes_update:
            continue
        sent = stack.pieces([p[cohort.shadow[span]] for p in current])
        trained = stack.pieces([p[span] for p in local])
        updates = [(new - old).flatten(1) for new, old in zip(trained, sent, strict=True)]
        shaped = shape(updates, defence, cohort.rounding[span], key)
        for new, old, piece in zip(trained, sent, shaped, strict=True):
            new.copy_(old + piece.view_as(old).float())


def shape(updates: list[Tensor], defence: DefenceSettings, rounding: np.ndarray, key: Key) -> list[Tensor]:
    """Return updates clipped, then sparsified, then quantised: per parameter (M, entries), float64.

    rounding: (M,) uint64, from which the uniform numbers of the quantisation are made
    """
    sizes = [update.shape[1] for update in updates]
    flat = torch.cat(updates, 1).double()
    if defence.clip_update is not None:
        length = torch.linalg.vector_norm(flat, dim=1, keepdim=True)
        flat = flat * (defence.clip_update / length).clamp(max=1.0)
    if defence.sparsify is not None:
        kept = math.ceil(defence.sparsify * flat.shape[1])
        order = flat.abs().argsort(dim=1, descending=True, stable=True)
        flat = flat.scatter(1, order[:, kept:], 0.0)
    pieces = list(flat.split(sizes, dim=1))
    if defence.quantise is not None:
        numbers = uniform(key, rounding, sum(sizes)).double().split(sizes, dim=1)
        pieces = [quantised(*pair, defence.quantise) for pair in zip(pieces, numbers, strict=True)]
    return pieces


def quantised(update: Tensor, numbers: Tensor, bits: int) -> Tensor:
    """Return updates of one parameter (M, entries) rounded to 2^bits values (`core.training.updates`)."""
    top = 2**bits - 1
    reach = update.abs().amax(1, keepdim=True)
    spacing = 2 * reach / top
    level = ((update + reach) / spacing + numbers).floor().clamp(max=top)
    return torch.where(update == 0, 0.0, level * spacing - reach)
