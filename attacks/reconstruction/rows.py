"""Rows of features that are being sought: what lies between two categories, and how a row is made whole.

While it is sought, a category is a point of the simplex and a missing cell the corner 0 (TabLeak's softmax
relaxation, Vero et al. 2023, section 4.1, with one more corner); a row that is handed out has whole values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedsim.core.data.layout import ColumnLayout, Layout

if TYPE_CHECKING:
    import torch

SHARPNESS = 8.0
"""Logit of a category where a search starts from a row that has it."""


@dataclass(frozen=True)
class Rows:
    """The shape of a row: d features of these columns.

    numbers: (d,) bool, where a number lies; indicators: (d,) bool, where its 'missing' does
    """

    layout: Layout
    numbers: np.ndarray
    indicators: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @staticmethod
    def of(layout: Layout) -> Rows:
        """Return the shape of the rows of ``layout``."""
        width = layout[-1].stop
        numbers, indicators = np.zeros(width, bool), np.zeros(width, bool)
        low, high = np.zeros(width, np.float32), np.ones(width, np.float32)
        for column in layout:
            if column.kind == "number":
                numbers[column.start] = True
                indicators[column.start + 1 : column.stop] = True
                low[column.start], high[column.start] = column.low, column.high
        return Rows(layout, numbers, indicators, low, high)

    @property
    def categories(self) -> list[ColumnLayout]:
        """The columns that are categories."""
        return [column for column in self.layout if column.kind == "category"]

    def __len__(self) -> int:
        return len(self.numbers)

    def relaxed(self, free: torch.Tensor) -> torch.Tensor:
        """Return rows (…, d) of any ``free``: numbers as they are, categories p_k = e^u_k / (1 + Σ e^u)."""
        import torch

        parts = []
        for column in self.layout:
            block = free[..., column.features]
            if column.kind == "number":
                parts += [block[..., :1], torch.sigmoid(block[..., 1:])]
            else:
                corner = torch.zeros_like(block[..., :1])
                parts.append(torch.softmax(torch.cat([block, corner], dim=-1), dim=-1)[..., :-1])
        return torch.cat(parts, dim=-1)

    def free(self, rows: np.ndarray) -> np.ndarray:
        """Return numbers (n, d) that `relaxed` takes near to ``rows``."""
        return np.where(self.numbers, rows, SHARPNESS * (np.clip(rows, 0, 1) - 0.5)).astype(np.float32)

    def clipped(self, rows: np.ndarray) -> np.ndarray:
        """Return (n, d) within the columns' ranges, a category's features within the simplex."""
        inside = np.clip(rows, self.low, self.high)
        for column in self.categories:
            block = inside[:, column.features]
            total = block.sum(axis=1, keepdims=True)
            inside[:, column.features] = np.where(total > 1, block / np.maximum(total, 1e-12), block)
        return inside.astype(np.float32)

    def whole(self, rows: np.ndarray) -> np.ndarray:
        """Return (n, d) float32 with each category one-hot or missing, and each indicator 0 or 1."""
        result = np.clip(rows, self.low, self.high).astype(np.float32)
        result[:, self.indicators] = result[:, self.indicators] > 0.5
        for column in self.categories:
            block = result[:, column.features]
            with_corner = np.column_stack([block, 1 - block.sum(axis=1)])
            result[:, column.features] = np.eye(block.shape[1] + 1)[with_corner.argmax(axis=1)][:, :-1]
        return result

    def drawn(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return n rows of independent uniform numbers and uniform categories, (n, d) float32."""
        rows = rng.uniform(self.low, self.high, (n, len(self))).astype(np.float32)
        rows[:, self.indicators] = 0
        for column in self.categories:
            width = column.stop - column.start
            rows[:, column.features] = np.eye(width)[rng.integers(width, size=n)]
        return rows

    def defect(self, rows: np.ndarray) -> np.ndarray:
        """Return how far each row is from being whole, (n,) ≥ 0: 0 for one that could be a record."""
        return np.asarray(np.abs(rows - self.whole(rows)).max(axis=1))


def neutral(layout: Sequence[ColumnLayout]) -> np.ndarray:
    """Return the row (d,) that says nothing: numbers in the middle, every category alike."""
    row = np.zeros(layout[-1].stop, np.float32)
    for column in layout:
        if column.kind == "number":
            row[column.start] = (column.low + column.high) / 2
        else:
            row[column.features] = 1 / (column.stop - column.start)
    return row
