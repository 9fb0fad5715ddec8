"""Records between two of the same label: they stand for members that the adversary does not own."""

from __future__ import annotations

import numpy as np

from fedsim.core.data.records import Records


def pairs(labels: np.ndarray, rows: np.ndarray, count: int, stream: np.random.Generator) -> np.ndarray:
    """Draw pairs of the rows of equal label, (count, 2) int."""
    first = stream.choice(rows, count)
    second = np.empty_like(first)
    for label in np.unique(labels[first]):
        same = labels[first] == label
        second[same] = stream.choice(rows[labels[rows] == label], same.sum())
    return np.stack([first, second], axis=1)


def between(records: Records, parents: np.ndarray, share: np.ndarray) -> Records:
    """Return share·(first parent) + (1 − share)·(second), with their label.

    parents: (f, 2) int, rows of ``records``; share: (f,) float64
    """
    first, second = records.take(parents[:, 0]), records.take(parents[:, 1])
    along = share.reshape(-1, *[1] * (first.features.ndim - 1)).astype(first.features.dtype)
    return Records(along * first.features + (1 - along) * second.features, first.labels)
