"""The parties' defences beside DP-SGD, for the models of a cohort, from the schedule's random numbers.

`fedsim.core.training.updates` defines them; the arithmetic is `fedsim.core.training.stacked`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from attacks.shadows.cohort import Cohort
from attacks.shadows.plan import FederationPlan
from attacks.shadows.schedule import Streams
from fedsim.core.errors import InputError
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.training.slopes import Shaping
from fedsim.core.training.stacked.batches import Batches, Mixed, Parameters, PoolTensors, Stack
from fedsim.core.training.stacked.noise import uniform
from fedsim.core.training.stacked.regularisation import Regularisation
from fedsim.core.training.stacked.stopping import EarlyStopping, Watched
from fedsim.core.training.stacked.updates import shaped

Key = tuple[int, int]


class CohortRegularisation:
    """Label smoothing, mixup and dropout of the models of a cohort.

    regularisation: how much of each they have
    """

    def __init__(
        self, plan: FederationPlan, cohort: Cohort, stack: Stack, pool: PoolTensors, key: Key
    ) -> None:
        defences = [party.defence for party in plan.parties]
        smoothing = cohort.per_model(lambda k: defences[k].smoothing_of(plan.classes))
        dropout = cohort.per_model(lambda k: defences[k].dropout)
        self.regularisation = Regularisation(pool, plan.classes, smoothing, dropout)
        self._softens = self.regularisation.smooths or cohort.partner is not None
        self._drops = self.regularisation.drops
        self._shaping = (
            _Shapes(plan, cohort) if any(defences[k].shapes_slope for k in cohort.parties) else None
        )
        self._cohort, self._stack, self._key = cohort, stack, key

    def applied_to(self, batches: Batches, step: int) -> Batches:
        """Return the batches of a step, (n, width), regularised."""
        n, width = batches.rows.shape
        if self._softens:
            batches = self.regularisation.softened(batches, self._mixed(step, n, width))
        if self._drops:
            hidden = sum(self._stack.hidden_widths)
            numbers = uniform(self._key, self._cohort.dropout[step, :n], width * hidden)
            batches = self.regularisation.dropping(batches, numbers.view(n, width, hidden))
        return batches if self._shaping is None else replace(batches, shaping=self._shaping.at(step, n))

    def _mixed(self, step: int, n: int, width: int) -> Mixed | None:
        cohort = self._cohort
        if cohort.partner is None or cohort.share is None:
            return None
        return Mixed(cohort.partner[step, :n, :width], cohort.share[step, :n])


class _Shapes:
    """RelaxLoss and HAMP of the models of a cohort."""

    def __init__(self, plan: FederationPlan, cohort: Cohort) -> None:
        defences = [party.defence for party in plan.parties]
        self._target_loss = cohort.per_model(lambda k: defences[k].relaxloss)[:, None, None]
        self._bonus = cohort.per_model(lambda k: defences[k].hamp_weight)[:, None, None]
        self._per_epoch = cohort.per_model(lambda k: float(plan.batches_per_epoch(k)))[:, None, None]

    def at(self, step: int, n: int) -> Shaping:
        """Return what the first n models follow in a step, (n, 1, 1) each."""
        ascends = torch.div(step, self._per_epoch[:n], rounding_mode="floor") % 2 == 0
        return Shaping(self._target_loss[:n], self._bonus[:n], ascends)


def draw_heldout(
    plan: FederationPlan, members: np.ndarray, records: int, streams: Sequence[Streams]
) -> dict[int, np.ndarray]:
    """Draw the records that parties stop early or train a student on: party → (S, R) rows of the pool.

    An adversary does not know a party's held-out records, nor public ones that it uses. In their place stand
    records of the pool that are in no party of the shadow, as many as the party has; where there are enough,
    no two parties look at the same ones.

    members: (S, parties, largest size) int, rows of the pool, −1 after a smaller party's
    records: in the pool

    Raises:
        InputError: no record of the pool is left over.
    """
    looking = [k for k, party in enumerate(plan.parties) if _looks_beside(party.defence)]
    if not looking:
        return {}
    firsts = np.concatenate([[0], np.cumsum(plan.sizes[looking])])
    orders = []
    for rows, stream in zip(members, streams, strict=True):
        free = np.setdiff1d(np.arange(records), rows)
        if len(free) == 0:
            raise InputError(
                "defences: no record is left over for a simulated party to look at beside its own"
            )
        orders.append(np.resize(stream.heldout.permutation(free), firsts[-1]))
    dealt = np.stack(orders)
    return {k: dealt[:, a:b] for k, a, b in zip(looking, firsts, firsts[1:], strict=False)}


def _looks_beside(defence: DefenceSettings) -> bool:
    return defence.patience is not None or defence.distil == "dmp"


def early_stopping(
    plan: FederationPlan, cohort: Cohort, stack: Stack, pool: PoolTensors, heldout: dict[int, np.ndarray]
) -> EarlyStopping:
    """Return the early stopping of the cohort's models; heldout: as `draw_heldout` returns it."""
    watched = []
    for k, start, stop in cohort.spans():
        patience = plan.parties[k].defence.patience
        if patience is not None and stop > start:
            rows = torch.from_numpy(heldout[k])[cohort.shadow[start:stop]]  # (models, R)
            watched.append(
                Watched(slice(start, stop), rows, patience, plan.steps(k), plan.batches_per_epoch(k))
            )
    return EarlyStopping(watched, cohort.models, stack, pool)


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
        quantises = defence.quantise is not None
        numbers = uniform(key, cohort.rounding[span], stack.parameters) if quantises else None
        for new, old, piece in zip(trained, sent, shaped(updates, defence, numbers), strict=True):
            new.copy_(old + piece.view_as(old).float())
