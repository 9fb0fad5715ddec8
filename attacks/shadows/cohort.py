"""The models of one round that are trained together, and the records of each of their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attacks.shadows.plan import FederationPlan
from attacks.shadows.schedule import Schedule, poisson_width
from fedsim.core.training.stacked.batches import up


@dataclass(frozen=True, eq=False)
class Cohort:
    """The M models that are trained together in a round: those with most steps first, then by party.

    parties: those of the models, in the models' order
    counts: models of each of these parties
    shadow, party: of each model, (M,) int64
    rows: (steps, M, width) int32, rows of the pool, the pool's empty last one where there is no record
    steps: per party
    widths: per step, the part of ``rows`` that is in use
    noise, dropout, rounding: as `Schedule` has them, (steps, M) and (M,) uint64, empty where none is drawn
    share, partner: mixup, as `Mixing` has it, (steps, M) float32 and (steps, M, width) int32 rows of the
        pool; None where no party mixes
    """

    parties: list[int]
    counts: list[int]
    shadow: Tensor
    party: Tensor
    rows: Tensor
    steps: list[int]
    widths: list[int]
    noise: np.ndarray
    dropout: np.ndarray
    rounding: np.ndarray
    share: Tensor | None
    partner: Tensor | None

    @property
    def models(self) -> int:
        """M."""
        return len(self.shadow)

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Yield (party, start, stop) of the parties' models."""
        stops = np.cumsum(self.counts).tolist()
        for k, count, stop in zip(self.parties, self.counts, stops, strict=True):
            yield k, stop - count, stop

    def training(self, step: int) -> int:
        """Return how many models make this step: always the first ones."""
        return sum(count for count, steps in zip(self.counts, self.steps, strict=True) if steps > step)

    def by_step(self, values: Tensor) -> list[Tensor]:
        """Cut (steps, M, width) into what each step needs of it, (models that make it, its width)."""
        _, models, widest = values.shape
        cuts = [(self.training(step), width) for step, width in enumerate(self.widths)]
        return [
            # Where nothing is cut off the tensor itself will do: views cost time at every step.
            whole if cut == (models, widest) else whole[: cut[0], : cut[1]]
            for whole, cut in zip(values.unbind(), cuts, strict=True)
        ]

    def per_model(self, of: Callable[[int], float]) -> Tensor:
        """Return a value that a party has, for each of the models, (M,) float32."""
        values = torch.tensor([of(k) for k in self.parties], dtype=torch.float32)
        return values.repeat_interleave(torch.tensor(self.counts))


def with_empty_row(members: np.ndarray, empty: int) -> np.ndarray:
    """Return (S, parties, L) rows of a pool as (S, parties, L + 1), ending with its empty row.

    Then position −1, no record, leads to the empty row, in the flattened array too.
    """
    padded = np.pad(members, ((0, 0), (0, 0), (0, 1)), constant_values=-1)
    return np.where(padded < 0, empty, padded).astype(np.int32)


def gather(
    plan: FederationPlan, parties: Sequence[int], schedule: Schedule, members: np.ndarray, empty: int
) -> Cohort:
    """Collect the models of these parties that train in the round.

    members: as `with_empty_row` returns them; empty: the pool's empty row
    """
    # Most steps first: the models that make a step are then always the first ones, a view and no copy.
    order = sorted(parties, key=lambda k: -plan.steps(k))
    widths = _widths(plan, order, schedule)
    shadows = {k: np.flatnonzero(schedule.active[:, k]) for k in order}
    # firsts (S, parties): where a party's records begin in the flattened members. A position −1 then leads to
    # the one before, which is always an empty row.
    flat, firsts = members.ravel(), np.arange(0, members.size, members.shape[2]).reshape(members.shape[:2])

    def placed(array: Callable[[int], np.ndarray], fill: int, dtype: type, width: int = 0) -> np.ndarray:
        """Return (steps, M, …), given a party's (S, steps, …)."""
        return _placed([array(k)[shadows[k]] for k in order], fill, dtype, width)

    def rows(positions: Callable[[int], np.ndarray]) -> Tensor:
        """Return the pool's rows (steps, M, widest) at a party's positions (S, steps, width)."""
        pool_rows = placed(lambda k: flat[positions(k) + firsts[:, k, None, None]], empty, np.int32, widest)
        return torch.from_numpy(pool_rows)

    widest = max(widths, default=0)
    shadow = np.concatenate([np.empty(0, np.int64), *shadows.values()])
    party = np.repeat(np.array(order, np.int64), [len(s) for s in shadows.values()])
    share = partner = None
    if any(k in schedule.mixing for k in order):
        mixing = schedule.mixing
        # Parties that do not mix do so with λ = 1, which leaves their records as they are.
        share = placed(
            lambda k: mixing[k].share if k in mixing else np.ones(schedule.batches[k].shape[:2]),
            1,
            np.float32,
        )
        partner = rows(lambda k: mixing[k].partner if k in mixing else schedule.batches[k])
    return Cohort(
        parties=order,
        counts=[len(s) for s in shadows.values()],
        shadow=torch.from_numpy(shadow),
        party=torch.from_numpy(party),
        rows=rows(lambda k: schedule.batches[k]),
        steps=[plan.steps(k) for k in order],
        widths=widths,
        noise=placed(lambda k: schedule.noise[:, k, : plan.steps(k)], 0, np.uint64),
        dropout=placed(lambda k: schedule.dropout[:, k, : plan.steps(k)], 0, np.uint64),
        rounding=schedule.rounding[shadow, party] if schedule.rounding.size else schedule.rounding[0],
        share=None if share is None else torch.from_numpy(share),
        partner=partner,
    )


def _placed(parts: Sequence[np.ndarray], fill: int, dtype: type, width: int = 0) -> np.ndarray:
    """Return (models, steps, …) of one party after the other as (steps, M, …), filled up.

    width: of the last dimension, at least
    """
    if not parts:
        return np.empty((0, 0), dtype)
    sizes = [max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim)]
    if len(sizes) > 1:
        sizes[-1] = max(sizes[-1], width)
    whole = np.full((sizes[0], sum(len(part) for part in parts), *sizes[1:]), fill, dtype)
    start = 0
    for part in parts:
        # (steps, models of the party, …); the part arrives models first.
        place = whole[: part.shape[1], start : start + len(part)]
        (place[..., : part.shape[2]] if part.ndim > 2 else place)[:] = part.swapaxes(0, 1)
        start += len(part)
    return whole


def _widths(plan: FederationPlan, parties: Sequence[int], schedule: Schedule) -> list[int]:
    """Return the width of every step's batches: of the largest batch there can be, up to a multiple of 4.

    Parties that do not take part count too: it must not matter which shadows are trained together.
    """
    widths = np.zeros(max((plan.steps(k) for k in parties), default=0), int)
    for k in parties:
        steps, size = np.arange(plan.steps(k)), plan.parties[k].size
        if plan.parties[k].dp is None:
            # (steps,), where in its epoch a batch begins: the last one of an epoch is smaller.
            places = steps % plan.batches_per_epoch(k) * plan.training.batch
            largest = np.minimum(plan.training.batch, size - places)
        else:
            # The usual width, (steps,), unless a Poisson batch is larger: no record drawn may be cut off.
            drawn = (schedule.batches[k] >= 0).sum(axis=2).max(axis=0)
            largest = np.maximum(drawn, poisson_width(size, plan.dp(k).sample_rate))
        widths[steps] = np.maximum(widths[steps], largest)
    return [up(width) for width in widths.tolist()]
