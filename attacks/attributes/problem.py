"""The question that attribute inference answers: which of V values does one column have in each record?

The adversary knows every other column and the label. A category's values are its known ones, a number's are
bins between quantiles of the adversary's own records; a cell that is missing has no value to infer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from attacks.views.participant import ParticipantView
from fedsim.core.data.layout import ColumnLayout
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError


@dataclass(frozen=True, eq=False)
class Options:
    """The values that a column may have.

    names: V texts for people
    encoded: (V, width) float32, each value as the column's features; of a bin its median
    edges: (V − 1,) float64, increasing inner edges of a number's bins; None for a category
    """

    column: ColumnLayout
    names: tuple[str, ...]
    encoded: np.ndarray
    edges: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def index_of(self, records: Records) -> np.ndarray:
        """Return the place of each record's value, (n,) int64; −1 where the cell is missing or unseen."""
        rows = flat(records)
        block = rows[:, self.column.features]
        if self.edges is None:
            index = block.argmax(axis=1)
        else:
            index = np.searchsorted(self.edges, block[:, 0], side="right")
        return np.where(self.column.known(rows), index, -1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Problem:
    """Records whose column is hidden, and what the column may hold.

    hidden: n records; the column's features are 0
    """

    options: Options
    hidden: Records

    def filled(self) -> Records:
        """Return every record with every value, n·V records: the V versions of a record are neighbours."""
        count = len(self.options)
        rows = np.repeat(flat(self.hidden), count, axis=0)
        rows[:, self.options.column.features] = np.tile(self.options.encoded, (len(self.hidden), 1))
        return Records(rows.reshape(-1, *self.hidden.shape), np.repeat(self.hidden.labels, count))

    def by_value(self, numbers: np.ndarray) -> np.ndarray:
        """Return one number per version of `filled`, (n·V,), as (n, V)."""
        return numbers.reshape(len(self.hidden), len(self.options))


def flat(records: Records) -> np.ndarray:
    """Return the features as rows, (n, d)."""
    return records.features.reshape(len(records), int(np.prod(records.shape)))


def population(view: ParticipantView) -> Records:
    """Return the records that the adversary owns: its own, on both sides, and the auxiliary ones."""
    parts = [view.own_train, view.own_heldout]
    return Records.concatenate(parts + ([view.auxiliary.records] if view.auxiliary is not None else []))


def options_of(column: ColumnLayout, owned: Records, bins: int = 3) -> Options:
    """Return what ``column`` may hold, as far as the adversary's own records show it.

    bins: of a number: quantiles cut its known values; with ties, or few distinct values, there are fewer.

    Raises:
        InputError: the column has fewer than two values among these records.
    """
    rows = flat(owned)
    values = rows[column.known(rows)][:, column.features]
    if column.kind == "category":
        if len(column.categories) < 2:
            raise InputError(f"--column {column.name}: it has no two values; choose another column")
        return Options(column, column.categories, np.eye(len(column.categories), dtype=np.float32))
    numbers = values[:, 0].astype(np.float64)
    edges = _edges(numbers, bins)
    if not len(edges):
        raise InputError(
            f"--column {column.name}: the adversary's {len(numbers)} known values do not differ; "
            "choose another column"
        )
    index = np.searchsorted(edges, numbers, side="right")
    medians = [float(np.median(numbers[index == k])) for k in range(len(edges) + 1)]
    encoded = np.zeros((len(medians), column.stop - column.start), dtype=np.float32)
    encoded[:, 0] = medians
    return Options(column, _bin_names(column, edges), encoded, edges)


def _edges(numbers: np.ndarray, bins: int) -> np.ndarray:
    """Return the inner edges of at most ``bins`` bins none of which is empty."""
    if not len(numbers):
        return np.empty(0)
    distinct = np.unique(numbers)
    if len(distinct) <= bins:  # an edge half-way between neighbours: each bin is one value
        return (distinct[1:] + distinct[:-1]) / 2
    cuts = np.unique(np.quantile(numbers, np.arange(1, bins) / bins))
    cuts = np.unique(distinct[np.searchsorted(distinct, cuts)])  # a bin begins with a value: none is empty
    cuts = cuts[cuts > distinct[0]]
    return cuts if len(cuts) else distinct[:2].mean(keepdims=True)  # the least value is nearly all there is


def _bin_names(column: ColumnLayout, edges: np.ndarray) -> tuple[str, ...]:
    in_unit = [column.in_unit(edge) for edge in edges]
    shown = [f"{edge:.0f}" if abs(edge) >= 10_000 else f"{edge:.4g}" for edge in in_unit]
    middle = [f"{low} to {high}" for low, high in itertools.pairwise(shown)]
    return (f"below {shown[0]}", *middle, f"{shown[-1]} and more")


def pose(options: Options, candidates: Records) -> Problem:
    """Return the question about ``candidates``, whose own values in the column are erased."""
    rows = flat(candidates).copy()
    rows[:, options.column.features] = 0
    return Problem(options, Records(rows.reshape(candidates.features.shape), candidates.labels))
