"""One shadow federation the plain way: one party after another, each trained as the party itself trains
(`fedsim.core.training`), with the same batches, noise and defences as in `attacks.shadows.block`.

It is the path of the modules that cannot be stacked, and of parties whose DP-SGD clips what a person, not a
record, contributes; and what the stacked shadows are tested against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from attacks import deviation
from attacks.shadows.aggregation import server
from attacks.shadows.block import Observe
from attacks.shadows.defences import draw_heldout
from attacks.shadows.draws import ShadowDraws, ShadowNumbers
from attacks.shadows.plan import FederationPlan
from attacks.shadows.schedule import Schedule, Streams, draw_schedule
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.models.weights import exchanged, load_weights, weights_of
from fedsim.core.privacy.plan import Plan
from fedsim.core.training import distillation, dp
from fedsim.core.training.draws import Draws
from fedsim.core.training.persons import bounded, train_by_person
from fedsim.core.training.stacked.batches import Parameters
from fedsim.core.training.steps import LocalTraining, TrainingReport
from fedsim.core.training.updates import shape_answer


def train_one(
    plan: FederationPlan,
    initial: Mapping[str, np.ndarray],
    pool: Records,
    members: np.ndarray,
    signal_records: Records,
    rounds: Sequence[int],
    streams: Streams,
    observe: Observe,
    raised: Records | None = None,
    person: np.ndarray | None = None,
) -> dict[str, Tensor]:
    """Train one shadow: `train_block` with S = 1, but for ``members`` (parties, largest size).

    person: (records,) int, whose each record of ``pool`` is, for a party whose DP-SGD clips by person
    """
    module = zoo.build(plan.model, plan.input_shape, plan.classes)
    shadow = _Shadow(
        plan,
        module,
        _parties(plan, pool, members, streams, person),
        ShadowNumbers(module, plan.classes, streams.key),
        raised,
    )
    current = [torch.tensor(initial[name], dtype=torch.float32) for name in exchanged(module)]
    aggregate = server(plan)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(streams.seed)
        for t in range(plan.rounds + 1):
            if t in rounds:
                state = shadow.load(current)
                weights = {name: w[None] for name, w in state.items()}
                observe(t, _answers(module, signal_records)[None], weights)
            if t < plan.rounds:
                current = aggregate(current, shadow.mean(current, draw_schedule(plan, [streams]), t + 1))
    return {name: w[None] for name, w in shadow.load(current).items()}


@dataclass(frozen=True, eq=False)
class _Shadow:
    """What all rounds of a shadow share; ``module`` is scratch space for one model at a time."""

    plan: FederationPlan
    module: nn.Module
    parties: list[_Party]
    numbers: ShadowNumbers
    raised: Records | None

    def load(self, current: Parameters) -> dict[str, Tensor]:
        """Make ``module`` the global model ``current``; return that by name."""
        state = dict(zip(exchanged(self.module), current, strict=True))
        load_weights(self.module, state)
        return state

    def mean(self, current: Parameters, schedule: Schedule, t: int) -> Parameters:
        """Return the mean of the parties' answers in round t, weighted by their records."""
        plan, total = self.plan, int(schedule.active[0] @ self.plan.sizes)
        mean = [torch.zeros_like(w) for w in current]
        for k in np.flatnonzero(schedule.active[0]).tolist():
            sent = self.load(current)
            self.parties[k].train(self.module, ShadowDraws(schedule, k, self.numbers))
            if plan.ascends(k, t):
                _ascend(plan, self.module, sent, self.raised)
            for sum_, answer in zip(mean, exchanged(self.module).values(), strict=True):
                sum_ += plan.parties[k].size / total * answer
        return mean


class _Party:
    """A simulated party; what outlives a round is the clipping norm, where it adapts."""

    def __init__(
        self,
        plan: FederationPlan,
        party: int,
        records: Records,
        beside: Records | None,
        person: np.ndarray | None,
    ) -> None:
        """Beside: records that it stops early on, or trains a student on; person: whose each record is."""
        self._records, self._person, self._dp = records, person, plan.parties[party].dp
        defence = plan.parties[party].defence
        self._local = LocalTraining(
            plan.training_of(party),
            defence,
            plan.proximal_mu,
            stop_on=beside if defence.patience is not None else None,
            transfer=beside if defence.distil == "dmp" else None,
        )
        self._norm: float | None = None

    def train(self, module: nn.Module, draws: Draws) -> None:
        """Train ``module`` in place for one round, and shape its update."""
        sent = weights_of(module)
        if self._dp is None:
            distillation.train(module, self._records, self._local, draws)
        else:
            self._norm = self._train_privately(module, self._dp, draws).clipping_norm
        shape_answer(module, sent, self._local.defence, draws)

    def _train_privately(self, module: nn.Module, plan: Plan, draws: Draws) -> TrainingReport:
        records, local, norm = self._records, self._local, self._norm
        if plan.unit == "record":
            return dp.train_private(module, records, local, plan, draws, clipping_norm=norm)
        assert self._person is not None  # a `ShadowRequest` has seen to it
        return train_by_person(module, records, self._person, local, plan, draws, clipping_norm=norm)


def _parties(
    plan: FederationPlan, pool: Records, members: np.ndarray, streams: Streams, person: np.ndarray | None
) -> list[_Party]:
    heldout = draw_heldout(plan, members[None], len(pool), [streams])
    parties = []
    for k, rows in enumerate(members):
        rows = rows[rows >= 0]
        dp = plan.parties[k].dp
        if person is not None and dp is not None and dp.unit == "person":
            rows = rows[bounded(person[rows], dp.records_per_person, streams.person)]
        beside = pool.take(heldout[k][0]) if k in heldout else None
        parties.append(_Party(plan, k, pool.take(rows), beside, None if person is None else person[rows]))
    return parties


def _ascend(
    plan: FederationPlan, module: nn.Module, sent: Mapping[str, Tensor], raised: Records | None
) -> None:
    """Add the ascent to the answer ``module`` to the model ``sent``, in place."""
    assert plan.ascent is not None and raised is not None
    answer = exchanged(module)
    learnt = deviation.length({name: (answer[name] - w).numpy() for name, w in sent.items()})
    step = deviation.ascent(module, raised, plan.ascent.rate)
    step = deviation.shortened(step, plan.ascent.limit * learnt)
    module.train()
    for name, change in step.items():
        answer[name] += torch.from_numpy(change)


def _answers(module: nn.Module, records: Records) -> Tensor:
    """Return logits (n, classes) in evaluation mode."""
    module.eval()
    with torch.no_grad():
        parts = [module(x) for x in torch.tensor(records.features).split(4096)]
    module.train()
    return torch.cat(parts)
