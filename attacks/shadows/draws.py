"""What chance decides for one party of one shadow in one round, as `fedsim.core.training` asks for it.

The numbers are those that the shadow would have in a stack: positions, λ and seeds from its `Schedule`, noise
and uniform numbers from the tables of `fedsim.core.training.stacked.noise`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from attacks.shadows.schedule import Schedule
from fedsim.core import rng
from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training.stacked.clipping import noise_source
from fedsim.core.training.stacked.noise import uniform
from fedsim.core.training.stacked.stack import layout_of


class ShadowNumbers:
    """How the random numbers of a shadow's steps belong to the parameters of a module."""

    def __init__(self, module: nn.Module, classes: int, key: tuple[int, int]) -> None:
        """Key: (seed, game), which decides the tables."""
        self._layout = layout_of(module, classes)
        self._trained = [name for name, p in module.named_parameters() if p.requires_grad]
        self._key = key
        # Made here, since its table must not be made under inference mode.
        self._source = noise_source(key, self._layout)

    @property
    def hidden_widths(self) -> list[int]:
        """Widths of the hidden layers, none of which the layout knows but in a plain stack of layers."""
        return self._layout.hidden_widths

    def uniform(self, number: np.uint64, size: int | None = None) -> Tensor:
        """Return (size,) float32 on [0, 1), by default one per trained number of the module."""
        size = self._layout.parameters if size is None else size
        return uniform(self._key, np.array([number]), size)[0]

    def normal(self, number: np.uint64) -> Tensor:
        """Return a standard normal number for each trained one and one for the count, (p + 1,) float32."""
        flat = torch.empty(1, self._source.size)
        sign = self._source.draw(np.array([number]), out=flat)
        return flat[0] * sign

    def by_parameter(self, flat: Tensor) -> list[Tensor]:
        """Cut (p,), in the layout's order, into the shapes and the order of the trained parameters."""
        layout = self._layout
        named: Mapping[str, Tensor] = layout.state(layout.split(flat[None]))
        return [named[name][0] for name in self._trained]


class ShadowDraws:
    """`fedsim.core.training.draws.Draws` of a party in a round of one shadow."""

    def __init__(self, schedule: Schedule, party: int, numbers: ShadowNumbers) -> None:
        """Schedule: of a single shadow."""
        self._schedule, self._party, self._numbers = schedule, party, numbers

    def permuted(self, n: int, settings: TrainingSettings) -> Iterator[Sequence[Tensor]]:
        """Yield the schedule's batches, one at a time."""
        for positions in self._batches():
            yield [positions]

    def poisson(self, n: int, plan: Plan) -> Iterator[Tensor]:
        """Yield the schedule's batches; of n persons, who may be fewer than records, those that are there."""
        for positions in self._batches():
            yield positions[positions < n]

    def _batches(self) -> Iterator[Tensor]:
        for batch in self._schedule.batches[self._party][0]:
            yield torch.from_numpy(batch[batch >= 0].astype(np.int64))

    def mixup(self, step: int, alpha: float, size: int) -> tuple[float, Tensor]:
        """Return the schedule's λ, and where in the batch the partners are that it names by record."""
        mixing = self._schedule.mixing[self._party]
        batch, partner = self._schedule.batches[self._party][0, step, :size], mixing.partner[0, step, :size]
        order = np.argsort(batch)
        places = order[np.searchsorted(batch, partner, sorter=order)]
        return float(mixing.share[0, step]), torch.from_numpy(places)

    def keep(self, step: int, masks: Sequence[Tensor], dropout: float) -> None:
        """Fill the masks from the uniform table: of a record, layer after layer."""
        widths, rows = self._numbers.hidden_widths, len(masks[0])
        number = self._schedule.dropout[0, self._party, step]
        numbers = self._numbers.uniform(number, rows * sum(widths)).view(rows, -1)
        for mask, part in zip(masks, numbers.split(widths, dim=1), strict=True):
            mask.copy_(part >= dropout)

    def global_stream(self) -> AbstractContextManager[None]:
        """Leave torch's global stream as it is: the shadow as a whole seeds it (`Streams.seed`)."""
        return nullcontext()

    def noise(self, step: int, pieces: Sequence[Tensor], deviation: float) -> None:
        """Fill the pieces from the noise table."""
        flat = self._numbers.normal(self._schedule.noise[0, self._party, step])
        for piece, numbers in zip(pieces, self._numbers.by_parameter(flat[:-1]), strict=True):
            piece.copy_(numbers).mul_(deviation)

    def count_noise(self, step: int, piece: Tensor, deviation: float) -> None:
        """Fill ``piece`` from the noise table: the number after those of the step's noise."""
        flat = self._numbers.normal(self._schedule.noise[0, self._party, step])
        piece.fill_(flat[-1] * deviation)

    def seed(self, purpose: str) -> int:
        """Return a hash of the round's own batches, which no other party, round or shadow has."""
        batches = np.ascontiguousarray(self._schedule.batches[self._party][0], dtype=np.int64)
        digest = hashlib.sha256(batches.tobytes()).digest()
        return rng.integer(int.from_bytes(digest[:8]), purpose, party=str(self._party))

    def rounding(self, sizes: Sequence[int]) -> list[np.ndarray]:
        """Return the uniform table's numbers, parameter after parameter."""
        flat = self._numbers.uniform(self._schedule.rounding[0, self._party])
        return [part.flatten().double().numpy() for part in self._numbers.by_parameter(flat)]
