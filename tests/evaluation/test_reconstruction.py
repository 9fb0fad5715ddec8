"""The judge of reconstructions: who stands for whom, and what counts as recovered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.layouts import layout_of_features

from attacks.reconstruction.rows import Rows
from fedsim.evaluation.reconstruction import Matched, match, nearest, shares, typical

LAYOUT = layout_of_features("a", "b", "b missing", "w=x", "w=y")


def drawn(n: int, seed: int) -> np.ndarray:
    return Rows.of(LAYOUT).drawn(n, np.random.default_rng(seed))


@given(st.integers(1, 12), st.integers(0, 1000))
def test_the_order_of_the_rows_does_not_matter(n: int, seed: int) -> None:
    true, labels = drawn(n, seed), np.arange(n) % 2
    order = np.random.default_rng(seed).permutation(n)
    assert match(true[order], labels[order], true, labels, LAYOUT) == Matched(n, 3 * n, n, n, 3)


def test_a_row_counts_where_numbers_are_near_and_categories_right() -> None:
    true = np.array([[0, 0, 0, 1, 0]], np.float32)
    for change, rows, cells in [
        ([0.15, 0, 0, 0, 0], 1, 3),  # a number off by 0.15 / 4
        ([0.5, 0, 0, 0, 0], 0, 2),
        ([0, 0, 1, 0, 0], 0, 2),  # said to be missing
        ([0, 0, 0, -1, 1], 0, 2),
    ]:
        rebuilt = true + np.array(change, np.float32)
        judged = match(rebuilt, np.array([1]), true, np.array([0]), LAYOUT)
        assert (judged.rows, judged.cells, judged.labels) == (rows, cells, 0)


def test_of_a_sum_only_as_many_rows_as_asked_for_are_matched() -> None:
    rebuilt, true = drawn(6, 0), drawn(6, 0)[2:4]
    assert match(rebuilt, np.zeros(6, int), true, np.zeros(2, int), LAYOUT).rows == 2
    assert match(rebuilt[:0], np.zeros(0, int), true, np.zeros(2, int), LAYOUT) == Matched(0, 0, 0, 2, 3)


def test_the_nearest_of_the_population_may_serve_twice() -> None:
    population = drawn(20, 1)
    true = population[[3, 3]]
    assert nearest(population, np.zeros(20, int), true, LAYOUT).rows == 2


def test_shares_are_means_over_batches() -> None:
    rebuilt = shares([Matched(2, 4, 2, 2, 3), Matched(0, 0, 1, 2, 3)])
    assert rebuilt["rows"].value == 0.5 and rebuilt["labels"].value == 0.75
    assert rebuilt["cells"].value == pytest.approx(1 / 3)
    assert rebuilt["rows"].low < 0.5 < rebuilt["rows"].high


def test_a_copied_member_is_nearer_to_members_and_the_middle_to_none() -> None:
    stream = np.random.default_rng(2)
    centre = drawn(1, 3)
    members = centre + np.array([0.1, 0.1, 0, 0, 0]) * stream.normal(size=(50, 5))
    heldout = drawn(50, 4)
    judged = typical(members[0], members, heldout, LAYOUT)
    assert judged.nearer.low > 0.85 and judged.to_member == 0 and judged.to_heldout > 0
    none = typical(drawn(1, 9)[0], drawn(80, 5), drawn(80, 6), LAYOUT)
    assert none.nearer.low < 0.5 < none.nearer.high
