"""Records as arrays: the one form in which data reach models and attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Records:
    """Encoded records, without any word on whose they are or who is a member.

    features: (n, d) or (n, channels, height, width) float32
    labels: (n,) int64, class indices
    """

    features: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if len(self.features) != len(self.labels):
            raise ValueError(f"{len(self.features)} feature rows, {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one record's features."""
        return self.features.shape[1:]

    def take(self, index: np.ndarray) -> Records:
        """Return the records at ``index`` (integers or a boolean mask), in that order."""
        return Records(self.features[index], self.labels[index])

    @staticmethod
    def concatenate(parts: list[Records]) -> Records:
        """Return all records of ``parts``, in order."""
        return Records(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.labels for part in parts]),
        )


@dataclass(frozen=True)
class PersonRecords:
    """All records of the persons of whom candidates are, at every party but the adversary's.

    owner: (n,) int64, the candidate whose person each record is of; her candidate record is among them
    """

    records: Records
    owner: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Return them as named arrays, to be written."""
        return {"features": self.records.features, "labels": self.records.labels, "owner": self.owner}

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> PersonRecords:
        """Undo `arrays`.

        Raises:
            KeyError: an array is missing.
        """
        return PersonRecords(Records(arrays["features"], arrays["labels"]), arrays["owner"])


@dataclass(frozen=True)
class Pool:
    """Records that an adversary holds.

    party: (n,) int64, index of the party that a record belongs to, member or not; −1 where it does not know
    person: (n,) int64, whose each record is, as `store.PartyRecords` numbers them; None where nobody is named
    """

    records: Records
    party: np.ndarray
    person: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.records)

    def first(self, n: int | None) -> Pool:
        """Return the first ``n`` records, all where it is None."""
        return self.take(np.arange(len(self))[:n])

    def take(self, index: np.ndarray) -> Pool:
        """Return the records at ``index`` (integers or a boolean mask), in that order."""
        person = None if self.person is None else self.person[index]
        return Pool(self.records.take(index), self.party[index], person)

    @staticmethod
    def concatenate(parts: Sequence[Pool]) -> Pool:
        """Return all records of ``parts``, in order; their persons where every part names them."""
        persons = [part.person for part in parts if part.person is not None]
        return Pool(
            Records.concatenate([part.records for part in parts]),
            np.concatenate([part.party for part in parts]),
            np.concatenate(persons) if len(persons) == len(parts) else None,
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the pool as named arrays, to be written or sent."""
        arrays = {"features": self.records.features, "labels": self.records.labels, "party": self.party}
        return arrays if self.person is None else arrays | {"person": self.person}

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> Pool:
        """Undo `arrays`.

        Raises:
            KeyError: an array is missing.
        """
        return Pool(Records(arrays["features"], arrays["labels"]), arrays["party"], arrays.get("person"))
