"""Records as arrays: the one form in which data reach models and attacks."""

from __future__ import annotations

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
