"""How near what was reconstructed lies to the real records: rows of a batch, and a class's typical record.

Differences of numbers are in shares of the column's encoded range, so that 0.05 is a twentieth of it.
Intervals are 95 %; those of a batch's rows are taken over batches (`estimates.mean`), since the rows of one
stand or fall together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsim.core.data.layout import Layout
from fedsim.evaluation.estimates import Estimate, auc, mean, rate

TOLERANCE = 0.05
"""Share of a number's range by which a recovered one may be off."""


@dataclass(frozen=True)
class Matched:
    """How well one batch was recovered.

    rows: records with every category right and the root mean square of the numbers' errors in tolerance
    cells: columns that are right, over all rows; labels: records whose label is right
    n: records in the batch; columns: of a record
    """

    rows: int
    cells: int
    labels: int
    n: int
    columns: int


def cell_errors(rebuilt: np.ndarray, true: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the error of every column of each rebuilt row against each true one, (m, n, K) float64.

    rebuilt: (m, d), true: (n, d). A number's error is |difference| / range, 1 where only one of them is
    missing; a category's is 0 or 1.
    """
    errors = np.empty((len(rebuilt), len(true), len(layout)))
    for k, column in enumerate(layout):
        f, t = rebuilt[:, None, column.features], true[None, :, column.features]
        if column.kind == "category":
            errors[:, :, k] = np.abs(f - t).max(axis=2) > 0.5
        else:
            apart = np.abs(f - t)
            errors[:, :, k] = apart[:, :, 0] / (column.high - column.low)
            if column.missing:
                unlike = apart[:, :, 1] > 0.5
                errors[:, :, k] = np.where(unlike, 1.0, errors[:, :, k])
    return errors


def match(
    rebuilt: np.ndarray, rebuilt_labels: np.ndarray, true: np.ndarray, labels: np.ndarray, layout: Layout
) -> Matched:
    """Return how many of the true rows were rebuilt, each rebuilt row standing for one at most (Kuhn 1955).

    rebuilt: (m, d), of more records than asked for where the update was of several parties; true: (n, d)
    """
    from scipy.optimize import linear_sum_assignment

    n, columns = len(true), len(layout)
    if not len(rebuilt) or not n:
        return Matched(0, 0, 0, n, columns)
    errors = cell_errors(rebuilt, true, layout)
    i, j = linear_sum_assignment(errors.mean(axis=2))
    paired = errors[i, j]
    is_number = np.array([column.kind == "number" for column in layout])
    close = np.sqrt(np.mean(paired[:, is_number] ** 2, axis=1)) <= TOLERANCE if is_number.any() else True
    whole = close & (paired[:, ~is_number] < 0.5).all(axis=1)
    right = int((rebuilt_labels[i] == labels[j]).sum())
    return Matched(int(np.sum(whole)), int((paired <= TOLERANCE).sum()), right, n, columns)


def nearest(
    population: np.ndarray, population_labels: np.ndarray, true: np.ndarray, layout: Layout
) -> Matched:
    """Return how well each true row is met by the population's nearest record: a baseline without an update.

    It is generous: it knows which of the population's records to name. No label is guessed by it.
    """
    if not len(population):
        return Matched(0, 0, 0, len(true), len(layout))
    best = [match(population, population_labels, row[None], np.array([-1]), layout) for row in true]
    rows, cells = sum(m.rows for m in best), sum(m.cells for m in best)
    return Matched(rows, cells, 0, len(true), len(layout))


def shares(batches: Sequence[Matched]) -> dict[str, Estimate]:
    """Return the shares of rows, cells and labels recovered, each the mean over batches of the same size."""
    return {
        "rows": mean([rate(m.rows, m.n) for m in batches]),
        "cells": mean([rate(m.cells, m.n * m.columns) for m in batches]),
        "labels": mean([rate(m.labels, m.n) for m in batches]),
    }


@dataclass(frozen=True)
class Typical:
    """Where a reconstructed typical record lies.

    nearer: P(a member is nearer to it than a held-out record of the same class), 0.5 where it tells nothing
        of who is in the data
    to_member, to_heldout, to_mean: its distance to the nearest member, the nearest held-out record, and the
        members' mean: root mean square over columns
    """

    nearer: Estimate
    to_member: float
    to_heldout: float
    to_mean: float


def typical(row: np.ndarray, members: np.ndarray, heldout: np.ndarray, layout: Layout) -> Typical:
    """Judge the reconstructed ``row`` (d,) of a class by its members and held-out records, (n, d) each."""
    to_members, to_heldout = (distances(row, rows, layout) for rows in (members, heldout))
    centre = distances(row, members.mean(axis=0, keepdims=True), layout)[0] if len(members) else np.nan
    return Typical(
        auc(-to_members, -to_heldout),
        float(to_members.min(initial=np.inf)),
        float(to_heldout.min(initial=np.inf)),
        float(centre),
    )


def distances(row: np.ndarray, rows: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the root mean square over columns of the differences between ``row`` (d,) and ``rows``, (n,).

    A category's difference is the total variation ½ Σ |p − q| of its features, a number's in its range.
    """
    square = np.zeros(len(rows))
    for column in layout:
        apart = np.abs(rows[:, column.features] - row[column.features])
        if column.kind == "category":
            square += (apart.sum(axis=1) / 2) ** 2
        else:
            square += (apart[:, 0] / (column.high - column.low)) ** 2
    return np.asarray(np.sqrt(square / len(layout)))
