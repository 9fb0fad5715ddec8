"""Which records the simulated parties hold.

A party has its true size, always: how far a party moves, and how far one record moves it, depend on it. Where
the adversary owns too few records of a party, the rest are interpolated between two of the same label.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from attacks.rounds.knowledge import Knowledge
from attacks.rounds.party_rounds import MemberSets
from attacks.shadows.interpolation import between, pairs
from fedsim.core import rng
from fedsim.core.data.records import Records

DRAWN = 0.5
"""Share of a party's eligible records that a set holds, at most: each is left out of some."""
VARIETY, FILLERS = 4, 2048
"""Interpolated records for each that a set needs, up to about this many in all."""


@dataclass(frozen=True, eq=False)
class Fillers:
    """F interpolated records, share·(first parent) + (1 − share)·(second).

    parents: (F, 2) int, rows of the knowledge; share: (F,) float64; party: (F,) int
    """

    records: Records
    parents: np.ndarray
    share: np.ndarray
    party: np.ndarray


@dataclass(frozen=True, eq=False)
class Context:
    """A party but for one place: ``rest`` fill it, each record of ``open`` is put into the place in turn.

    party: whose size it has; rest: (n_k − 1,) rows of the pool; open: (m,) rows of the knowledge
    """

    party: int
    rest: np.ndarray
    open: np.ndarray

    def sets(self, number: int) -> MemberSets:
        """Return the sets of all records of ``open``, (m,), which differ in their first place alone."""
        rest = np.broadcast_to(self.rest, (len(self.open), len(self.rest)))
        rows = np.concatenate([self.open[:, None], rest], axis=1)
        return MemberSets(np.full(len(rows), self.party), rows, np.full(len(rows), number))


def fillers(knowledge: Knowledge, seed: int) -> Fillers:
    """Draw the interpolated records of every party whose true size half of its owned records do not reach."""
    parents, party = [np.empty((0, 2), int)], [np.empty(0, int)]
    for k in knowledge.others:
        rows = knowledge.eligible(k)
        missing = max(0, int(knowledge.sizes[k]) - int(DRAWN * len(rows)))
        count = min(VARIETY * missing, max(missing, FILLERS))
        stream = rng.generator(seed, "round-decoding/fillers", round=k)
        parents.append(pairs(knowledge.records.labels, rows, count, stream))
        party.append(np.full(count, k))
    both = np.concatenate(parents)
    share = rng.generator(seed, "round-decoding/shares").random(len(both))
    return Fillers(between(knowledge.records, both, share), both, share, np.concatenate(party))


def draw_sets(knowledge: Knowledge, spare: Fillers, count: int, seed: int) -> MemberSets:
    """Draw ``count`` independent sets of true size, of one other party after another."""
    width = int(knowledge.sizes.max())
    rows, party = np.full((count, width), -1), np.resize(np.array(knowledge.others), count)
    for s, k in enumerate(party.tolist()):
        stream = rng.generator(seed, "round-decoding/set", round=s)
        eligible, size = knowledge.eligible(k), int(knowledge.sizes[k])
        owned = stream.permutation(eligible)[: min(size, int(DRAWN * len(eligible)))]
        rows[s, :size] = _filled(knowledge, spare, k, owned, size, stream)
    return MemberSets(party, rows, np.arange(count))


def draw_contexts(knowledge: Knowledge, spare: Fillers, repeats: int, seed: int) -> Iterator[Context]:
    """Draw contexts in which each record is put ``repeats`` times into the open place.

    Contexts come in pairs: one half of a party's records fills the one and is put into the other.
    """
    for repeat in range(repeats):
        k = knowledge.others[repeat % len(knowledge.others)]
        for party in knowledge.others if knowledge.by_party else (k,):
            stream = rng.generator(seed, f"round-decoding/context/{repeat}", round=party)
            yield from _pair(knowledge, spare, party, stream)


def _pair(knowledge: Knowledge, spare: Fillers, party: int, stream: np.random.Generator) -> Iterator[Context]:
    eligible, size = stream.permutation(knowledge.eligible(party)), int(knowledge.sizes[party]) - 1
    alone = np.setdiff1d(knowledge.belonging(party), eligible)
    halves = np.array_split(eligible, 2)
    beside = np.array_split(stream.permutation(alone), 2)
    for inside, outside, others in zip(halves, halves[::-1], beside, strict=True):
        rest = _filled(knowledge, spare, party, inside[:size], size, stream)
        yield Context(party, rest, np.concatenate([outside, others]))


def _filled(
    knowledge: Knowledge,
    spare: Fillers,
    party: int,
    owned: np.ndarray,
    size: int,
    stream: np.random.Generator,
) -> np.ndarray:
    """Return ``owned`` and interpolated records up to the size, (size,) rows of the pool."""
    missing = size - len(owned)
    if missing <= 0:
        return owned
    rows = np.flatnonzero(spare.party == party)
    return np.concatenate([owned, len(knowledge) + stream.choice(rows, missing, replace=missing > len(rows))])


def design(knowledge: Knowledge, spare: Fillers, sets: MemberSets) -> np.ndarray:
    """Return how much of each record is in each set, (B, R) float32; of an interpolated one its parents."""
    counts = np.zeros((len(sets), len(knowledge)), np.float32)
    place, column = np.nonzero(sets.rows >= 0)
    row = sets.rows[place, column]
    plain = row < len(knowledge)
    np.add.at(counts, (place[plain], row[plain]), 1)
    mixed, filler = place[~plain], row[~plain] - len(knowledge)
    for parent, share in ((0, spare.share), (1, 1 - spare.share)):
        np.add.at(counts, (mixed, spare.parents[filler, parent]), share[filler].astype(np.float32))
    return counts
