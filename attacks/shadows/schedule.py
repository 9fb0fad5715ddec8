"""What chance decides in a shadow: who takes part in a round, and on which batches it trains.

Every random number of a shadow comes from streams of its own, keyed by its number, so that neither the other
shadows nor the way in which the work is divided changes what it becomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from attacks.shadows.plan import FederationPlan
from fedsim.core import rng


class Streams:
    """The random streams of one shadow, each made when it is first drawn from: few plans need them all.

    key: (seed, game), common to all shadows of a game
    """

    def __init__(self, seed: int, game: int, shadow: int) -> None:
        self.key = (seed, game)
        self._purpose = f"shadow/{shadow}"

    def _stream(self, what: str) -> np.random.Generator:
        seed, game = self.key
        return rng.generator(seed, f"{self._purpose}/{what}", game=game)

    @cached_property
    def order(self) -> np.random.Generator:
        """Participation, permutations, Poisson batches (`draw_schedule`)."""
        return self._stream("order")

    @cached_property
    def noise(self) -> np.random.Generator:
        """Numbers from which the noise of DP-SGD is made (`fedsim.core.training.stacked.noise`)."""
        return self._stream("noise")

    @cached_property
    def defence(self) -> np.random.Generator:
        """Mixup, and numbers from which dropout and quantisation are made."""
        return self._stream("defence")

    @cached_property
    def heldout(self) -> np.random.Generator:
        """Which records a party that stops early looks at."""
        return self._stream("heldout")

    @cached_property
    def person(self) -> np.random.Generator:
        """Which of a person's records are trained on, where there is a bound."""
        return self._stream("records of a person")

    @property
    def seed(self) -> int:
        """Seed of torch's global stream, for modules that draw from it."""
        seed, game = self.key
        return rng.integer(seed, f"{self._purpose}/module", game=game)


@dataclass(frozen=True, eq=False)
class Mixing:
    """Mixup of one party in one round of S shadows (Zhang et al. 2018).

    share: λ of every batch, (S, steps) float64
    partner: (S, steps, width) int, the position of the record that each is mixed with; −1 for no record
    """

    share: np.ndarray
    partner: np.ndarray


@dataclass(frozen=True, eq=False)
class Schedule:
    """Who trains on what in one round of S shadows.

    active: (S, parties) bool, who takes part
    batches: per party (S, steps, width) int, positions among the party's records; −1 is no record. Plain
        parties go through a fresh permutation per epoch, cut into batches of which the last is smaller;
        private ones draw every record with probability q in every step, or, where their unit is a person,
        every position among the persons, who are no more than the records.
    noise: (S, parties, steps) uint64, from which the noise of a private party's step is made
    mixing: of each party that uses mixup
    dropout: (S, parties, steps) uint64, from which a step's dropout masks are made
    rounding: (S, parties) uint64, from which the rounding of a quantised update is made
    """

    active: np.ndarray
    batches: list[np.ndarray]
    noise: np.ndarray
    mixing: dict[int, Mixing]
    dropout: np.ndarray
    rounding: np.ndarray


def draw_schedule(plan: FederationPlan, streams: Sequence[Streams]) -> Schedule:
    """Draw the next round of the shadows with these streams, each from its own."""
    # The order of these draws is part of the result: another one gives other shadows for the same seed.
    active = np.stack([_participants(plan, stream.order) for stream in streams])
    batches = _permuted(plan, streams) | _poisson(plan, streams)
    parties = range(len(plan.parties))
    mixes = [k for k in parties if plan.parties[k].defence.mixup]
    drops = [k for k in parties if plan.parties[k].defence.dropout]
    quantises = [k for k in parties if plan.parties[k].defence.quantise]
    shape = len(streams), len(parties), _steps(plan, plan.private)
    noisy = any(plan.dp(k).noisy for k in plan.private)
    noise = _raw([stream.noise for stream in streams], shape) if noisy else np.zeros(shape, np.uint64)
    defence = [stream.defence for stream in streams] if mixes or drops or quantises else []
    return Schedule(
        active,
        [batches[k] for k in parties],
        noise,
        mixing={k: _mixing(plan, k, batches[k], defence) for k in mixes},
        dropout=_raw(defence, (len(streams), len(parties), _steps(plan, drops))),
        rounding=_raw(defence, (len(streams), len(parties) if quantises else 0)),
    )


def _steps(plan: FederationPlan, needed: Sequence[int]) -> int:
    """Return the most steps of a round that any of these parties makes, 0 for no party."""
    return max((plan.steps(k) for k in needed), default=0)


def _raw(streams: Sequence[np.random.Generator], shape: tuple[int, ...]) -> np.ndarray:
    """Return random uint64 of this shape (S, …), of which nothing is drawn where there is nothing."""
    if 0 in shape:
        return np.empty(shape, np.uint64)
    return np.stack([stream.bit_generator.random_raw(shape[1:]) for stream in streams])


def _mixing(
    plan: FederationPlan, party: int, batches: np.ndarray, streams: Sequence[np.random.Generator]
) -> Mixing:
    """Draw λ ~ Beta(α, α) and a permutation for every batch of a plain party."""
    alpha, (_, steps, width) = plan.parties[party].defence.mixup, batches.shape
    share = np.stack([stream.beta(alpha, alpha, steps) for stream in streams])
    sizes = (batches[0] >= 0).sum(1)  # the same in all shadows
    # A permutation within each batch, (S, steps, width).
    order = permutations(_raw(streams, (len(streams), steps, 1, width)), sizes)[:, :, 0]
    return Mixing(share, np.take_along_axis(batches, order, axis=2))


def _participants(plan: FederationPlan, stream: np.random.Generator) -> np.ndarray:
    """Return who takes part, (parties,) bool: uniform without replacement."""
    active = np.ones(len(plan.parties), bool)
    if plan.participants < len(active):
        active[:] = False
        active[stream.choice(len(active), plan.participants, replace=False)] = True
    return active


def _permuted(plan: FederationPlan, streams: Sequence[Streams]) -> dict[int, np.ndarray]:
    """Return the batches of the plain parties."""
    if not plan.plain:
        return {}
    sizes = plan.sizes[plan.plain]
    epochs = max(-(-plan.steps(k) // plan.batches_per_epoch(k)) for k in plan.plain)
    shape = (len(sizes), epochs, max(sizes))
    # One key per record, (S, parties, epochs, n).
    keys = np.stack([stream.order.bit_generator.random_raw(shape) for stream in streams])
    orders = permutations(keys, sizes)
    # Each (S, steps, batch): the last epoch may be left before it ends.
    return {
        k: cut(orders[:, i, :, :size], plan.training.batch)[:, : plan.steps(k)]
        for i, (k, size) in enumerate(zip(plan.plain, sizes, strict=True))
    }


def _poisson(plan: FederationPlan, streams: Sequence[Streams]) -> dict[int, np.ndarray]:
    """Return the batches of the private parties."""
    if not plan.private:
        return {}
    sizes = plan.sizes[plan.private]
    shape = (len(sizes), max(plan.steps(k) for k in plan.private), max(sizes))
    coins = np.stack([stream.order.random(shape) for stream in streams])  # (S, parties, steps, n)
    batches = {}
    for i, (k, size) in enumerate(zip(plan.private, sizes, strict=True)):
        rate = plan.dp(k).sample_rate
        drawn = coins[:, i, : plan.steps(k), :size] < rate
        batches[k] = positions(drawn, poisson_width(int(size), rate))
    return batches


def permutations(keys: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Turn random uint64 (S, parties, epochs, n) into permutations of 0…size−1 followed by padding.

    The position is written into the lowest bits of a key and read back after sorting, several times quicker
    than argsort; with some fifty bits left, a tie, and so a preference, is next to impossible.
    """
    n = keys.shape[-1]
    low = np.uint64((1 << (n - 1).bit_length()) - 1)
    position = np.arange(n, dtype=np.uint64)
    keys = (keys & ~low) | position
    beyond = position >= sizes[:, None, None].astype(np.uint64)  # (parties, 1, n)
    keys[np.broadcast_to(beyond, keys.shape)] |= ~low  # the largest keys there are: sorted to the end
    return (np.sort(keys, axis=-1) & low).astype(np.int64)


def cut(orders: np.ndarray, batch: int) -> np.ndarray:
    """Cut permutations (S, epochs, n) into batches, (S, epochs · ⌈n / batch⌉, batch)."""
    shadows, epochs, n = orders.shape
    # −1 fills up each epoch's last batch, so that no batch spans two epochs.
    whole = np.full((shadows, epochs, -(-n // batch) * batch), -1, orders.dtype)
    whole[:, :, :n] = orders
    return whole.reshape(shadows, -1, batch)


def positions(drawn: np.ndarray, width: int) -> np.ndarray:
    """Turn (S, steps, n) bool into the positions drawn, (S, steps, at least ``width``), filled up with −1.

    A batch larger than ``width`` widens them all: none of its records may be dropped.
    """
    n = drawn.shape[-1]
    widest = int(drawn.sum(axis=-1).max(initial=0))
    # Positions of those drawn, n of the others: (S, steps, n).
    places = np.where(drawn, np.arange(n, dtype=np.int32), np.int32(n))
    places.sort(axis=-1)  # those drawn, in order, and then the others
    batches = np.full((*drawn.shape[:-1], max(width, widest)), -1, np.int32)
    first = places[..., : batches.shape[-1]]
    batches[..., : first.shape[-1]] = np.where(first < n, first, -1)
    return batches


@lru_cache(maxsize=256)
def poisson_width(n: int, rate: float) -> int:
    """Return the width that a Poisson batch of n records exceeds with probability 1e-4; at least 12, or n.

    A function of the settings alone, so that as a rule the padding of a shadow's batches is not decided by
    the shadows that it is trained with. Where one exceeds it, the others get a few more records of weight 0.
    """
    from scipy.stats import binom

    return min(n, max(12, int(binom.isf(1e-4, n, rate))))
