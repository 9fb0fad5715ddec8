"""DP-SGD whose unit is a person: all records of one person together move a step by at most C.

Each step draws a Poisson batch of persons, forms each drawn person's mean gradient over her records, clips it
to norm C, sums, adds N(0, (σC)²) and divides by the expected number of persons (McMahan et al. 2018,
algorithm 1, with a step for a round; 'user-level sampling' of Charles et al. 2024, arXiv:2407.07737). For the
accountant this is DP-SGD on as many units as there are persons. Gradients are Opacus', one per record.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.core.data.records import Records
from fedsim.core.models.layers import dropout
from fedsim.core.privacy.plan import Plan
from fedsim.core.training import losses
from fedsim.core.training.clipping import ByOpacus, clipping_factors
from fedsim.core.training.dp import AdaptiveNorm, Watch
from fedsim.core.training.draws import Draws
from fedsim.core.training.metrics import tensors
from fedsim.core.training.regularisation import targets_for
from fedsim.core.training.steps import LocalTraining, TrainingReport, make_steps
from fedsim.core.training.stopping import early_stopping


def bounded(person: np.ndarray, most: int, stream: np.random.Generator) -> np.ndarray:
    """Return the sorted rows of the records that are trained on: at most ``most`` of each person, at random.

    person: (n,) int; most: 0 for all, as `Plan.records_per_person`

    The bound keeps one person's mean gradient from resting on very many records, and a step from costing as
    much; the guarantee does not need it. It stays as it is: what is drawn of others is distributed alike with
    and without her.
    """
    if not most:
        return np.arange(len(person))
    order = stream.permutation(len(person))
    by_person = order[np.argsort(person[order], kind="stable")]
    _, first, size = np.unique(person[by_person], return_index=True, return_counts=True)
    place = np.arange(len(person)) - np.repeat(first, size)  # of each record among her own
    return np.sort(by_person[place < most])


def train_by_person(
    module: nn.Module,
    records: Records,
    person: np.ndarray,
    local: LocalTraining,
    plan: Plan,
    draws: Draws,
    *,
    clipping_norm: float | None = None,
    watch: Watch | None = None,
) -> TrainingReport:
    """Train ``module`` in place for one round of ``plan``, whose unit is a person; no loss is reported.

    person: (n,) int, whose each record is; plan: of as many units as there are different ones
    clipping_norm: C to go on with where clipping adapts, default the plan's
    watch: as of `core.training.dp.train_private`

    Formal guarantee:
        As `core.training.dp.train_private`'s, under the same conditions, for all of one person's records at
        this party added or taken away, however many she has: her part of a step's sum is one vector of norm
        at most C, and she takes part with probability q. The number of persons is public, as that of records
        is there.

    Raises:
        ValueError: there are no records, or the defence mixes records.
    """
    if len(records) == 0 or len(person) != len(records):
        raise ValueError(
            f"{len(records)} records of {len(person)} persons: each record has one, and there is one"
        )
    if local.defence.mixup:
        raise ValueError("mixup mixes records: no gradient would be of one person alone")
    module.to(local.device).train()
    _, owner = np.unique(person, return_inverse=True)
    unit = torch.from_numpy(owner).to(local.device)
    data = tensors(records, local.device)
    data = data[0], targets_for(module, data, local.defence)
    hidden_dropout = dropout(module, local.defence.dropout)
    with draws.global_stream(), hidden_dropout, warnings.catch_warnings(action="ignore"):
        private = _ByPerson(module, local, data, unit)
        norm = AdaptiveNorm(plan, clipping_norm or plan.clipping_norm)
        steps = _make_steps(private, plan, draws, norm, local, watch)
        private.finish()
    return TrainingReport(steps, clipping_norm=norm.value if plan.clipping == "adaptive" else None)


def _make_steps(
    private: _ByPerson,
    plan: Plan,
    draws: Draws,
    norm: AdaptiveNorm,
    local: LocalTraining,
    watch: Watch | None,
) -> int:
    def step(number: int, drawn: Tensor, _: Tensor) -> None:
        norms = private.write_mean_of(drawn, norm.value)
        draws.noise(number, private.noise, plan.gradient_noise * norm.value)
        private.step(plan.expected_batch)
        norm.follow(norms, draws, number)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for drawn in draws.poisson(private.persons, plan):
            yield drawn, drawn

    def seen() -> None:
        if watch:
            watch(private.parameters(), norm.value)

    epoch = -(-private.persons // local.settings.batch)
    stop = early_stopping(private.trained, local.stop_on, local.defence, epoch, local.device)
    return make_steps(batches(), step, stop, watch=seen)


class _ByPerson(ByOpacus):
    """A module in training, whose clipped sum is over persons; see `ClippedSum`."""

    def __init__(
        self, module: nn.Module, local: LocalTraining, data: tuple[Tensor, Tensor], unit: Tensor
    ) -> None:
        super().__init__(module, local, ghost=False)
        self._data, self._unit = data, unit
        self.persons = int(unit.max()) + 1

    def write_mean_of(self, drawn: Tensor, clipping_norm: float) -> Tensor:
        """Write into ``grad`` the clipped sum of the mean gradients of the persons ``drawn``; (B,) int64.

        Return their norms before clipping, (B,).

        Formal guarantee:
            The sum changes by at most C = ``clipping_norm`` in Euclidean norm when one person, with all of
            her records, is added or taken away; up to float32 rounding.
        """
        for p in self._parameters:
            p.grad, p.grad_sample = torch.zeros_like(p), None
        place = torch.full((self.persons,), -1, device=self._unit.device)
        place[drawn] = torch.arange(len(drawn), device=self._unit.device)
        rows = (place[self._unit] >= 0).nonzero().squeeze(1)
        if not len(rows):
            return self._data[0].new_zeros(0)
        of = place[self._unit[rows]]  # (r,) the place of each record's person among those drawn
        losses.total(self.trained(self._data[0][rows]), self._data[1][rows]).backward()
        shares = torch.zeros(len(drawn), len(rows), device=of.device)
        shares[of, torch.arange(len(rows), device=of.device)] = 1.0
        shares /= shares.sum(1, keepdim=True)
        means = [torch.einsum("pr,r...->p...", shares, p.grad_sample) for p in self._parameters]
        parts = torch.stack([torch.linalg.vector_norm(mean.flatten(1), dim=1) for mean in means])
        norms = torch.linalg.vector_norm(parts, dim=0)  # of (parameters, B)
        factor = clipping_factors(norms, clipping_norm)
        for p, mean in zip(self._parameters, means, strict=True):
            p.grad = torch.einsum("p,p...->...", factor, mean)
        return norms
