"""What the adversary owns when it simulates parties: records, and what it knows of their parties."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records

FEW = 8
"""Records of a party, below which the adversary's own have to stand for it too."""


@dataclass(frozen=True, eq=False)
class Knowledge:
    """R records whose effect on an update can be simulated, the candidates first.

    party: (R,) int, the only party a record can be in, −1 where it can be in any of the others
    asked: (R,) bool, whose membership is decoded, all together; elsewhere a record is known to be in no other
        party, or is decoded alone (candidates in a world in which one target's record is owned at a time)
    drawable: (R,) bool, whom simulated parties are made of
    candidates: number of them
    sizes: (parties,) int; others: the parties that are not the adversary's own, nor of its coalition
    prior: π, the share of members among the records asked about
    """

    records: Records
    party: np.ndarray
    asked: np.ndarray
    drawable: np.ndarray
    candidates: int
    sizes: np.ndarray
    others: tuple[int, ...]
    prior: float

    def __len__(self) -> int:
        return len(self.party)

    @property
    def by_party(self) -> bool:
        """Whether the party of every record asked about is known, so that each has its own population."""
        known = self.party[self.asked | (np.arange(len(self)) < self.candidates)]
        return bool((known >= 0).all())

    def eligible(self, party: int) -> np.ndarray:
        """Return the rows of the records that a simulated party is drawn from."""
        own = np.flatnonzero(self.drawable & (self.party == party))
        anyones = np.flatnonzero(self.drawable & (self.party < 0))
        return own if len(own) >= FEW and self.by_party else np.concatenate([own, anyones])

    def belonging(self, *parties: int) -> np.ndarray:
        """Return the rows of the records that could be in one of the parties, drawn from or not, sorted."""
        undrawn = ~self.drawable & (np.isin(self.party, parties) | ((self.party < 0) & (not self.by_party)))
        return np.unique(np.concatenate([np.flatnonzero(undrawn), *map(self.eligible, parties)]))

    def populations(self) -> list[tuple[np.ndarray, tuple[int, ...]]]:
        """Return (rows, parties) of every population: the rows are a sample of what its parties hold.

        One a party where the parties of all are known, else one in all.
        """
        if not self.by_party:
            return [(np.flatnonzero(self.drawable), self.others)]
        return [(self.eligible(k), (k,)) for k in self.others]

    def unknown(self, members: np.ndarray, parties: tuple[int, ...]) -> float:
        """Return how many members of a population's parties are expected to be none of its rows."""
        asked = self.prior * self.asked[members].sum()
        return max(0.0, float(self.sizes[list(parties)].sum() - asked))


def of_view(view: ParticipantView, candidates: Records, prior: float = 0.5) -> Knowledge:
    """Return what a participant knows, by what it is assumed to own (adversary.auxiliary).

    Under 'population' all candidates and further records are decoded together, and parties are drawn from
    them. Under 'disjoint' and 'own' parties are drawn from the others that it owns, and every candidate is
    decoded by itself. Its own records stand for the population where it is not told which party is whose.
    """
    known = view.candidate_party
    count = len(candidates)
    party = np.full(count, -1) if known is None or len(known) != count else np.asarray(known)
    together = view.assumptions.auxiliary == "population"
    owned, whose = [candidates], [party]
    if view.auxiliary is not None and len(view.auxiliary):
        owned.append(view.auxiliary.records)
        whose.append(np.asarray(view.auxiliary.party))
    unasked = np.concatenate(whose)
    own = {view.settings.own} if view.own_party is None else {view.settings.own, *view.own_party.tolist()}
    others = tuple(k for k in range(view.settings.parties) if k not in own)
    counts = [np.sum(unasked[0 if together else count :] == k) for k in others]
    if (party < 0).any() or min(counts) < FEW:
        owned += [view.own_train, view.own_heldout]
        whose.append(np.full(len(view.own_train) + len(view.own_heldout), -1))
    whole = np.concatenate(whose)
    asked = (np.arange(len(whole)) < len(unasked)) & together
    sizes = np.array(view.settings.sizes)
    limit = sizes[list(others)].sum() / max(1, asked.sum())
    return Knowledge(
        Records.concatenate(owned),
        whole,
        asked,
        (np.arange(len(whole)) >= count) | together,
        count,
        sizes,
        others,
        min(prior, float(limit)),
    )


def canonical_order(candidates: Records) -> np.ndarray:
    """Return an order of the candidates that depends on what they are, not on where they stand."""
    rows = zip(candidates.labels.tolist(), candidates.features, strict=True)
    keys = [(label, np.ascontiguousarray(features).tobytes()) for label, features in rows]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), int)
