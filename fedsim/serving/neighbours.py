"""How many records of a request lie next to an earlier one of the same key: what probing looks like.

Boundary search, noisy copies and near duplicates ask about records next to one another; people seldom
are. The service counts them while the records are in memory and logs the count alone, so that the log
holds neither values nor distances.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from fedsim.core.data.released import ReleasedSchema

NEAR = 0.02
"""Squared distance per column below which two records are neighbours. Two ordinary records of a table differ
by 0.2 to 1 per column, because bounds are four to six standard deviations wide and lie at ±2."""

WINDOW = 2048
"""Records of a key that are remembered, as long as they fit into LARGEST numbers."""

LARGEST, KEYS = 1_000_000, 64

SAME = 1e-9
"""Squared distance up to which two records are the same."""


@dataclass
class _Earlier:
    """The last records of one key: features, (n, d) float64, and their squared norms, (n,)."""

    features: np.ndarray
    squares: np.ndarray


class Neighbours:
    """The last records of each key, in the memory of this process."""

    def __init__(self, schema: ReleasedSchema) -> None:
        width = int(np.prod(schema.shape))
        self._radius = NEAR * len(schema.schema.columns)
        self._window = max(1, min(WINDOW, LARGEST // width))
        self._earlier: OrderedDict[str, _Earlier] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, key: str, features: np.ndarray) -> int:
        """Return how many records, (n, …) float32, have a neighbour among the key's earlier ones.

        A record that is asked again is no neighbour of itself.
        """
        flat = features.reshape(len(features), -1).astype(np.float64)
        new = _Earlier(flat, (flat**2).sum(axis=1))
        with self._lock:
            old = self._earlier.pop(key, _Earlier(flat[:0], new.squares[:0]))
            self._earlier[key] = _Earlier(
                np.concatenate([old.features, new.features])[-self._window :],
                np.concatenate([old.squares, new.squares])[-self._window :],
            )
            if len(self._earlier) > KEYS:
                self._earlier.popitem(last=False)
        within = np.tril(self._near(new, new), -1)  # those before it in its own request
        return int((self._near(new, old).any(axis=1) | within.any(axis=1)).sum())

    def _near(self, a: _Earlier, b: _Earlier) -> np.ndarray:
        """Return a mask (len(a), len(b)) of neighbours."""
        distances = a.features @ b.features.T
        distances *= -2
        distances += a.squares[:, None]
        distances += b.squares[None, :]
        return (distances <= self._radius) & (distances > SAME)
