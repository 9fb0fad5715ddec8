"""What chance decides in a round of local training, as an argument of that training.

`fedsim.core.training` draws no number by itself. Whoever trains hands it `Draws`: a party, or the audit, its
keyed streams or the operating system's (`PartyDraws`); a simulation of a party, numbers of its own.

Steps of a round are numbered 0, 1, …; a party's streams advance with every call and ignore the number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fedsim.core import rng
from fedsim.core.privacy.plan import Plan, steps_per_round
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import secure


class Draws(Protocol):
    """The random numbers of one round of one party. What is to be filled is filled in place."""

    def permuted(self, n: int, settings: TrainingSettings) -> Iterator[Sequence[Tensor]]:
        """Yield the batches of a round without DP, positions (B,) int64 in 0…n−1.

        They come an epoch at a time, or in smaller parts.

        Each epoch is a permutation of the n records, cut into batches, of which the last may be smaller.
        """

    def poisson(self, n: int, plan: Plan) -> Iterator[Tensor]:
        """Yield the batches of a round with DP, positions (B,) int64.

        Every record is in a batch with probability q, independently of the others and of other steps; a batch
        may be empty.
        """

    def mixup(self, step: int, alpha: float, size: int) -> tuple[float, Tensor]:
        """Return λ ~ Beta(α, α) and a permutation (size,) int64 of the positions in the batch."""

    def keep(self, step: int, masks: Sequence[Tensor], dropout: float) -> None:
        """Fill masks (B, width), one per hidden layer: 0 with probability ``dropout``, else 1."""

    def global_stream(self) -> AbstractContextManager[None]:
        """Let torch's global stream be the party's for a while: modules of any kind may draw from it."""

    def noise(self, step: int, pieces: Sequence[Tensor], deviation: float) -> None:
        """Fill the pieces, one per trained parameter, with N(0, deviation²)."""

    def count_noise(self, step: int, piece: Tensor, deviation: float) -> None:
        """Fill ``piece`` (1,) with N(0, deviation²), the noise on adaptive clipping's count."""

    def rounding(self, sizes: Sequence[int]) -> list[np.ndarray]:
        """Return one array (size,) float64 per parameter, uniform on [0, 1): how quantisation rounds."""

    def seed(self, purpose: str) -> int:
        """Return an integer below 2⁶³ for a stream of its own, another for every purpose and round."""


class PartyDraws:
    """A party's draws, from streams of its own for one round.

    order: (CPU) permutations or Poisson batches; from its seed are derived mixup's stream and torch's
        global one. None: the operating system's cryptographic source, see `core.training.secure`
    noise: (CPU) the noise of DP-SGD, None likewise; a round without DP draws none
    rounding: the rounding of a quantised update, where there is one

    Raises:
        ValueError: one stream is given for both purposes.
    """

    def __init__(
        self,
        order: torch.Generator | None,
        noise: torch.Generator | None,
        rounding: np.random.Generator | None = None,
    ) -> None:
        if order is noise and order is not None:
            raise ValueError(
                "order and noise need a stream each: the batch drawn must not depend on the noise"
            )
        self._secure = order is None
        self._order = order or secure.torch_generator()
        self._noise, self._rounding = noise, rounding
        self._mixing: np.random.Generator | None = None
        # On an accelerator a CPU stream cannot be used, but for seeding one there.
        self._noise_on: dict[torch.device, torch.Generator] = {}
        self._dropout_on: dict[torch.device, torch.Generator] = {}

    def permuted(self, n: int, settings: TrainingSettings) -> Iterator[Sequence[Tensor]]:
        """Yield an epoch's batches at a time; see `Draws`."""
        left = steps_per_round(settings, n)
        while left:
            batches = torch.randperm(n, generator=self._order).split(settings.batch)[:left]
            left -= len(batches)
            yield batches

    def poisson(self, n: int, plan: Plan) -> Iterator[Tensor]:
        """Yield Poisson batches; see `Draws`. In float64, since 24 random bits would bend a small q."""
        for _ in range(plan.steps_per_round):
            if self._secure:
                coins = secure.uniform(n)
            else:
                coins = torch.rand(n, generator=self._order, dtype=torch.float64)
            yield (coins < plan.sample_rate).nonzero().squeeze(1)

    def mixup(self, step: int, alpha: float, size: int) -> tuple[float, Tensor]:
        """Return λ and a permutation, drawn in this order from a stream of their own; see `Draws`."""
        if self._mixing is None:
            self._mixing = rng.generator(self._order.initial_seed(), "mixup")
        share = self._mixing.beta(alpha, alpha)
        return share, torch.from_numpy(self._mixing.permutation(size))

    def keep(self, step: int, masks: Sequence[Tensor], dropout: float) -> None:
        """Fill the masks as torch's own dropout would, layer after layer, under `global_stream`."""
        for mask in masks:
            stream = self._dropout_on.get(mask.device)
            if stream is None:
                stream = torch.Generator(mask.device).manual_seed(self._global_seed())
                self._dropout_on[mask.device] = stream
            mask.bernoulli_(1 - dropout, generator=stream)

    @contextmanager
    def global_stream(self) -> Iterator[None]:
        """Seed torch's global stream by a hash of the seed of ``order``, whose own draws stay as they are."""
        with torch.random.fork_rng():
            torch.manual_seed(self._global_seed())
            yield

    def noise(self, step: int, pieces: Sequence[Tensor], deviation: float) -> None:
        """Fill the pieces in their order, one draw for each; see `Draws`."""
        for piece in pieces:
            normal_(piece, deviation, self._noise_for(piece.device))

    def count_noise(self, step: int, piece: Tensor, deviation: float) -> None:
        """Fill ``piece`` from the stream of the noise; see `Draws`."""
        normal_(piece, deviation, self._noise_for(piece.device))

    def rounding(self, sizes: Sequence[int]) -> list[np.ndarray]:
        """Return uniform numbers, parameter after parameter; see `Draws`.

        Raises:
            ValueError: the party was given no stream for them.
        """
        if self._rounding is None:
            raise ValueError("quantisation needs a stream to round with")
        return [self._rounding.random(size) for size in sizes]

    def seed(self, purpose: str) -> int:
        """Return a hash of the seed of ``order``; see `Draws`."""
        return rng.integer(self._order.initial_seed(), purpose)

    def _global_seed(self) -> int:
        return self.seed("global torch stream")

    def _noise_for(self, device: torch.device) -> torch.Generator | None:
        if self._noise is None or device.type == "cpu":
            return self._noise
        if device not in self._noise_on:
            seed = int(torch.randint(2**62, (), generator=self._noise))
            self._noise_on[device] = torch.Generator(device).manual_seed(seed)
        return self._noise_on[device]


def normal_(tensor: Tensor, deviation: float, noise: torch.Generator | None) -> Tensor:
    """Fill ``tensor`` in place with N(0, deviation²) and return it; None: from the operating system."""
    if noise is None:
        return secure.normal_(tensor, deviation)
    return tensor.normal_(0, deviation, generator=noise)
