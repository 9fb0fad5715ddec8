"""Who is in which shadow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.core import rng


@dataclass(frozen=True, eq=False)
class Membership:
    """Who is in which shadow.

    members: (S, parties, largest size) int32, rows of the pool; −1 fills up a smaller party
    records: size of the pool
    """

    members: np.ndarray
    records: int

    def __len__(self) -> int:
        return len(self.members)

    @property
    def sizes(self) -> list[int]:
        """Number of records of every party, the same in all shadows."""
        return [int(n) for n in (self.members[0] >= 0).sum(axis=1)]

    @property
    def inside(self) -> np.ndarray:
        """The party that holds a record in a shadow, −1 where none does, (S, records) int16."""
        party = np.full((len(self), self.records), -1, np.int16)
        shadow, k, slot = np.nonzero(self.members >= 0)
        party[shadow, self.members[shadow, k, slot]] = k
        return party

    def first(self, shadows: int) -> Membership:
        """Return the first of the shadows."""
        return Membership(self.members[:shadows], self.records)


MOST = 0.75
"""At most this share of the records that could be in a party is in it, however large the party was."""

HALF = 0.5
"""The same where further members are unknown to the adversary: as many as are members of the target."""


def draw_members(
    shadows: int,
    sizes: Sequence[int],
    party_of: np.ndarray,
    *,
    fixed: Mapping[int, np.ndarray] | None = None,
    seed: int,
    game: int = 0,
    spare: Mapping[int, np.ndarray] | None = None,
    person: np.ndarray | None = None,
) -> Membership:
    """Draw which records of the pool are in which party of which shadow.

    sizes: the target's party sizes; kept exactly where the pool has enough records, but at most `MOST` of the
        records that could be in a party are drawn, so that each is left out of some shadows.
    party_of: (records,) int, the only party that a record can be in, or −1 where it can be in any.
    fixed: party → rows that are in it in every shadow, which the adversary knows to be there.
    spare: party → rows that stand for members whom the adversary does not own, in no other party. With them
        at most half of the records that could be in a party are drawn, and it has its true size.
    person: (records,) int, whose each record of the pool is, where persons are drawn and not records: all of
        hers that could be in a party are, or none. Of the last one drawn only as many as there is room for.

    Shadows 2j and 2j + 1 are drawn from one permutation, from its two ends: where there are twice as many
    records as places the second holds exactly what the first does not. The first S of more shadows are the
    same as S shadows.

    Raises:
        ValueError: no record can be in some party.
    """
    held = [np.asarray((fixed or {}).get(k, []), np.int64) for k in range(len(sizes))]
    free = np.ones(len(party_of), bool)
    free[np.concatenate(held)] = False
    others = [np.asarray((spare or {}).get(k, []), np.int64) for k in range(len(sizes))]
    free[np.concatenate(others)] = False
    share = MOST if spare is None else HALF
    own = [np.flatnonzero(free & (party_of == k)) for k in range(len(sizes))]
    anyones = np.flatnonzero(free & (party_of < 0))
    from_own = [
        _places(size - len(f), len(rows), share) for size, f, rows in zip(sizes, held, own, strict=True)
    ]
    missing = [max(0, size - len(f) - n) for size, f, n in zip(sizes, held, from_own, strict=True)]
    from_any = _shared_out(missing, _places(sum(missing), len(anyones), share))
    unknown = [min(m - b, len(rows)) for m, b, rows in zip(missing, from_any, others, strict=True)]
    counts = [len(f) + a + b + c for f, a, b, c in zip(held, from_own, from_any, unknown, strict=True)]
    if not all(counts):
        raise ValueError(f"no record of the pool can be in party {counts.index(0)}")
    members = np.full((shadows, len(sizes), max(counts)), -1, np.int32)
    for s in range(shadows):
        if s % 2 == 0:
            stream = rng.generator(seed, f"shadow/{s}/members", game=game)
            orders = [_shuffled(rows, person, stream) for rows in own]
            common = _shuffled(anyones, person, stream)
        else:
            orders, common = [order[::-1] for order in orders], common[::-1]
        dealt = np.split(common[: sum(from_any)], np.cumsum(from_any)[:-1])
        filling = rng.generator(seed, f"shadow/{s}/spare", game=game) if any(unknown) else stream
        for k, count in enumerate(counts):
            filled = filling.choice(others[k], unknown[k], replace=False) if unknown[k] else others[k][:0]
            members[s, k, :count] = np.concatenate([held[k], orders[k][: from_own[k]], dealt[k], filled])
    return Membership(members, len(party_of))


def _shuffled(rows: np.ndarray, person: np.ndarray | None, stream: np.random.Generator) -> np.ndarray:
    """Return ``rows`` in a random order; where ``person`` says whose they are, hers follow one another."""
    order = stream.permutation(rows)
    if person is None or not len(rows):
        return order
    _, unit = np.unique(person[order], return_inverse=True)
    # Persons by a rank of their own: by their first record, those with many would come first.
    rank = stream.permutation(int(unit.max()) + 1)
    return order[np.argsort(rank[unit], kind="stable")]


def _places(wanted: int, available: int, share: float) -> int:
    return min(wanted, max(1, int(share * available))) if wanted > 0 and available > 0 else 0


def _shared_out(wanted: Sequence[int], total: int) -> list[int]:
    """Return ``wanted`` scaled down to the sum ``total``, by largest remainders."""
    if sum(wanted) <= total:
        return list(wanted)
    exact = [w * total / sum(wanted) for w in wanted]
    shares = [int(x) for x in exact]
    by_remainder = sorted(range(len(wanted)), key=lambda k: shares[k] - exact[k])
    for k in by_remainder[: total - sum(shares)]:
        shares[k] += 1
    return shares
