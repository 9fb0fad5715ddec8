"""How many records of a request lie next to an earlier one of the same key: what probing looks like.

Boundary search, noisy copies and near duplicates ask about records next to one another; people seldom
are. The service counts them while the records are in memory and logs the count alone, so that the log
holds neither values nor distances.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from fedsim.core.data.released import ReleasedSchema

NEAR = 0.02
"""Squared distance per column below which two records are neighbours. Two ordinary records of a table differ
by 0.2 to 1 per column, because bounds are four to six standard deviations wide and lie at ±2."""

WINDOW = 2048
"""Records of a key that are remembered, as long as they fit into LARGEST numbers."""

LARGEST, KEYS = 1_000_000, 64


class Neighbours:
    """The last records of each key, in the memory of this process."""

    def __init__(self, schema: ReleasedSchema) -> None:
        width = int(np.prod(schema.shape))
        self._radius = NEAR * len(schema.schema.columns)
        self._window = max(1, min(WINDOW, LARGEST // width))
        self._earlier: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, key: str, features: np.ndarray) -> int:
        """Return how many records, (n, …) float32, have a neighbour among the key's earlier ones.

        A record that is asked again is no neighbour of itself.
        """
        flat = features.reshape(len(features), -1)
        with self._lock:
            earlier = self._earlier.pop(key, flat[:0])
            together = np.concatenate([earlier, flat])
            self._earlier[key] = together[-self._window :].copy()
            if len(self._earlier) > KEYS:
                self._earlier.popitem(last=False)
        distances = _squared_distances(flat, together)
        own = len(earlier) + np.arange(len(flat))
        later = np.arange(len(together))[None, :] >= own[:, None]
        near = (distances > 1e-9) & (distances <= self._radius) & ~later
        return int(near.any(axis=1).sum())


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return (len(a), len(b)) float64."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * x @ y.T
    return np.asarray(squares)
