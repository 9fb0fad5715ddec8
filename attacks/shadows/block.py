"""A block of shadow federations trained together: the models of all parties of all its shadows are stacked
and make every step together. `attacks.shadows.plain` trains a single one the plain way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from attacks.shadows.aggregation import server
from attacks.shadows.cohort import Cohort, gather, with_empty_row
from attacks.shadows.defences import CohortRegularisation, draw_heldout, early_stopping, shape_updates
from attacks.shadows.paths import quick_path
from attacks.shadows.plan import FederationPlan
from attacks.shadows.schedule import Schedule, Streams, draw_schedule
from fedsim.core.training.stacked.batches import Batches, Parameters, PoolTensors, Stack, Trainer, up
from fedsim.core.training.stacked.clipping import Clipping, StackedPlans, noise_source
from fedsim.core.training.stacked.layers import StackedLayers, Workspace
from fedsim.core.training.stacked.optimizers import Penalties, optimizer

RAISED_TOGETHER = 64
"""Records of an ascent whose gradients are formed at a time; a multiple of 4."""

if TYPE_CHECKING:
    from fedsim.core.training.fused.rounds import FusedLayers

Train = Callable[["_Block", Cohort], None]
"""Trains the models of a cohort in their buffers."""

Observe = Callable[[int, Tensor, Mapping[str, Tensor]], None]
"""Called with t, the logits of w_t, (S, n, classes) float32, and w_t, (S, …) by name."""


def train_block(
    plan: FederationPlan,
    stack: Stack,
    initial: Mapping[str, np.ndarray],
    pool: PoolTensors,
    members: np.ndarray,
    signal_pool: PoolTensors,
    rounds: Sequence[int],
    streams: Sequence[Streams],
    observe: Observe,
    stop: Callable[[int], bool] = lambda t: False,
    raised: PoolTensors | None = None,
) -> dict[str, Tensor]:
    """Train S shadows from w_0 = ``initial``; return their w_T, (S, …) by name.

    members: (S, parties, largest size) int, rows of ``pool``, −1 after a smaller party's
    observe: called with the logits of ``signal_pool`` at w_t for every t of ``rounds``
    stop: called at every w_t with t; true ends the training
    raised: the records that the plan's ascent raises

    Raises:
        CancelledError: ``stop`` returned true.
    """
    with torch.no_grad():
        # Every shadow starts from the same w_0: (1, …) repeated as (S, …).
        current = [p.expand(len(streams), *p.shape[1:]).contiguous() for p in stack.load(initial)]
        block = _block(plan, stack, pool, members, streams, raised)
        aggregate = server(plan)
        for t in range(plan.rounds + 1):
            if stop(t):
                raise CancelledError
            if t in rounds:
                observe(t, stack.logits(current, signal_pool), stack.state(stack.pieces(current)))
            if t < plan.rounds:
                current = aggregate(current, _mean(block, current, draw_schedule(plan, streams), t + 1))
        return stack.state(stack.pieces(current))


@dataclass(frozen=True, eq=False)
class _Block:
    """What all rounds of a block share.

    members: as `with_empty_row` returns them
    heldout: per party that stops early, the records of the pool that it looks at, (S, R)
    norms: C of the next step of a private party, (S, parties) float64
    raised: the records that the plan's ascent raises
    """

    plan: FederationPlan
    stack: Stack
    pool: PoolTensors
    members: np.ndarray
    heldout: dict[int, np.ndarray]
    norms: Tensor
    key: tuple[int, int]
    scratch: Workspace
    raised: PoolTensors | None
    fused: FusedLayers | None
    trainers: dict[int, tuple[Parameters, Train]] = field(default_factory=dict)

    def trainer(self, like: Parameters, models: int) -> tuple[Parameters, Train]:
        """Return buffers for the parameters of ``models`` models, and what trains them there for a round.

        Two are kept, for the private parties and for the others: one per number of models that ever occurred
        would hold on to too much memory.
        """
        if models not in self.trainers:
            if len(self.trainers) == 2:
                self.trainers.clear()
            self.trainers[models] = self._trainer(like, models)
        return self.trainers[models]

    def _trainer(self, like: Parameters, models: int) -> tuple[Parameters, Train]:
        if self.fused is not None:
            flat, local = self.fused.buffers(self.scratch, models)
            return local, partial(_train_fused, layers=self.fused, flat=flat)
        local = [self.scratch(f"local {i}", models, *p.shape[1:]) for i, p in enumerate(like)]
        trainer = self.stack.trainer(local, self.pool)
        return local, partial(_train_together, trainer=trainer, local=local)


def _block(
    plan: FederationPlan,
    stack: Stack,
    pool: PoolTensors,
    members: np.ndarray,
    streams: Sequence[Streams],
    raised: PoolTensors | None,
) -> _Block:
    # Per party; ∞ where nothing is clipped.
    first = [party.dp.clipping_norm if party.dp else math.inf for party in plan.parties]
    return _Block(
        plan,
        stack,
        pool,
        with_empty_row(members, len(pool)),
        draw_heldout(plan, members, len(pool), streams),
        torch.tensor(first, dtype=torch.float64).repeat(len(streams), 1),
        streams[0].key,
        Workspace(),
        raised,
        _fused_layers(plan, stack),
    )


def _fused_layers(plan: FederationPlan, stack: Stack) -> FusedLayers | None:
    if quick_path(plan, stack) != "fused":
        return None
    from fedsim.core.training.fused.rounds import FusedLayers

    assert isinstance(stack, StackedLayers)
    return FusedLayers(stack)


def _mean(block: _Block, current: Parameters, schedule: Schedule, t: int) -> Parameters:
    """Return the mean of the parties' answers in round t, weighted by their records, (S, …)."""
    plan = block.plan
    total = torch.from_numpy(schedule.active @ plan.sizes)  # (S,), records that take part
    mean = [torch.zeros_like(p) for p in current]
    # Steps with and without DP differ, so that plain and private parties are a cohort each.
    for parties in filter(None, (plan.plain, plan.private)):
        cohort = gather(plan, parties, schedule, block.members, len(block.pool))
        if cohort.models == 0:
            continue
        answers = _train(block, current, cohort)
        for k, start, stop in cohort.spans():
            shadows = cohort.shadow[start:stop]  # (models of party k,)
            if plan.ascends(k, t) and stop > start:
                _ascend(block, [p[shadows] for p in current], [p[start:stop] for p in answers])
            share = (plan.parties[k].size / total[shadows]).float()
            for sum_, answer in zip(mean, answers, strict=True):
                _add_share(sum_, shadows, share, answer[start:stop])
    return mean


def _ascend(block: _Block, sent: Parameters, answers: Parameters) -> None:
    """Add the ascent, in place, to the ``answers`` (M, …) that were trained from the models ``sent``."""
    ascent, raised, stack = block.plan.ascent, block.raised, block.stack
    assert ascent is not None and raised is not None
    trainer = stack.trainer(answers, raised)
    step = [torch.zeros_like(p) for p in answers]
    # Row len(raised) is the empty record: it fills the last part up, with weight 0.
    for part in torch.arange(up(len(raised))).clamp_(max=len(raised)).split(RAISED_TOGETHER):
        rows = part.expand(len(answers[0]), -1)  # (M, rows): the same records for every model
        gradient = trainer.gradient(Batches(rows, raised.labels[rows], (rows != len(raised)).float()))
        for i, change in enumerate(step):
            gradient.add_to(i, change, 1.0, ascent.rate)
    learnt = [answer - before for answer, before in zip(answers, sent, strict=True)]
    # The step may be at most `limit` times as long as what training moved.
    long, longest = _length(stack, step), ascent.limit * _length(stack, learnt)
    factor = torch.where(long > longest, longest / long, 1.0).float()
    for answer, change in zip(answers, step, strict=True):
        answer += change * factor.view(-1, *[1] * (change.dim() - 1))


def _length(stack: Stack, update: Parameters) -> Tensor:
    """Return the Euclidean length of each model's update, (M,) float64."""
    squares = [piece.double().square().flatten(1).sum(1) for piece in stack.pieces(update)]
    return torch.stack(squares).sum(0).sqrt()


def _add_share(sum_: Tensor, shadows: Tensor, share: Tensor, answer: Tensor) -> None:
    """Add share·answer to the rows ``shadows`` of ``sum_`` in place; no shadow occurs twice."""
    share = share.view(-1, *[1] * (answer.dim() - 1))
    if len(shadows) == len(sum_):  # all of them, in order: no rows to gather and write back
        sum_.addcmul_(answer, share)
    else:
        sum_[shadows] = torch.addcmul(sum_[shadows], answer, share)


def _train(block: _Block, current: Parameters, cohort: Cohort) -> Parameters:
    """Return the parties' answers after a round's local training, (M, …), valid until the next call."""
    plan, stack = block.plan, block.stack
    local, train = block.trainer(current, cohort.models)
    # (S, …) → (M, …): each model starts from its own shadow's w_t, in buffers that are used again.
    for p, start in zip(local, current, strict=True):
        torch.index_select(start, 0, cohort.shadow, out=p)
    train(block, cohort)
    shape_updates(plan, cohort, stack, current, local, block.key)
    return local


def _train_fused(block: _Block, cohort: Cohort, layers: FusedLayers, flat: Tensor) -> None:
    """Make all steps of one model after the other; ``flat``: the models' parameters, see `FusedLayers`."""
    from fedsim.core.training.fused.rounds import Drawn

    plan, pool = block.plan, block.pool
    private = _private_plans(plan, cohort)
    norm = block.norms[cohort.shadow, cohort.party]
    layers.train(
        flat,
        pool,
        Drawn(
            cohort.rows,
            np.repeat(np.array(cohort.steps, np.int64), cohort.counts),
            cohort.partner,
            cohort.share,
            cohort.dropout,
            cohort.noise,
            block.key,
        ),
        plan.training_of(cohort.parties[0]),
        _penalties(plan, cohort),
        CohortRegularisation(plan, cohort, block.stack, pool, block.key).regularisation,
        None if private is None else (private, norm, noise_source(block.key, block.stack)),
    )
    block.norms[cohort.shadow, cohort.party] = norm


def _train_together(block: _Block, cohort: Cohort, trainer: Trainer, local: Parameters) -> None:
    """Make one step of all models after the other."""
    plan, stack, pool = block.plan, block.stack, block.pool
    update = optimizer(local, plan.training_of(cohort.parties[0]), _penalties(plan, cohort))
    clipping = _clipping(block, cohort)
    regularisation = CohortRegularisation(plan, cohort, stack, pool, block.key)
    stopping = early_stopping(plan, cohort, stack, pool, block.heldout)
    labels = pool.labels.index_select(0, cohort.rows.flatten()).view_as(cohort.rows)  # (steps, M, width)
    present = cohort.rows != len(pool)
    if clipping is None:
        size = present.sum(2, keepdim=True).clamp_(min=1)  # (steps, M, 1): the batch drawn
    else:
        # Under DP the number of records drawn is private: the expected one takes its place.
        size = clipping.expected_batch[:, None]  # (M, 1)
    weight = present / size  # (steps, M, width), of a record in its batch's mean
    steps = zip(*map(cohort.by_step, (cohort.rows, labels, weight)), strict=True)
    for step, (rows, y, w) in enumerate(steps):
        # (n, width) each: the n models that make this step are the first ones.
        batches = regularisation.applied_to(Batches(rows, y, w), step)
        if clipping is not None:
            batches = clipping.applied_to(batches, cohort.noise[step, : len(rows)])
        gradient = trainer.gradient(batches)
        update(gradient, len(rows))
        if clipping is not None:
            clipping.follow(gradient, w, stopping.ended)
        stopping.after(step + 1, local)
    stopping.finish(local)
    if clipping is not None:
        block.norms[cohort.shadow, cohort.party] = clipping.norm


def _penalties(plan: FederationPlan, cohort: Cohort) -> Penalties:
    """Return the parties' penalties; numbers where all have the same, which is quicker."""

    def one_or_each(of: Callable[[int], float]) -> float | Tensor:
        values = {of(k) for k in cohort.parties}
        return values.pop() if len(values) == 1 else cohort.per_model(of)

    l1 = one_or_each(lambda k: plan.parties[k].defence.l1)
    return Penalties(plan.proximal_mu, l1, one_or_each(lambda k: plan.training_of(k).l2))


def _private_plans(plan: FederationPlan, cohort: Cohort) -> StackedPlans | None:
    """Return the DP-SGD of the cohort's models, None for one of plain parties."""
    if plan.parties[cohort.parties[0]].dp is None:
        return None
    return StackedPlans.of([plan.dp(k) for k in cohort.parties], cohort.counts)


def _clipping(block: _Block, cohort: Cohort) -> Clipping | None:
    """Return what clips and adds noise in the cohort's steps, None for one of plain parties."""
    plans = _private_plans(block.plan, cohort)
    if plans is None:
        return None
    source = noise_source(block.key, block.stack)
    flat = block.scratch("noise", cohort.models, source.size)
    return Clipping(plans, block.norms[cohort.shadow, cohort.party], block.stack, source, flat)
