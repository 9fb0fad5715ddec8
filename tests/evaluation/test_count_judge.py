"""The judge of counts."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.evaluation import counts

TRUTH = np.array([2, 4, 6])


def test_lists_hold_the_planted_number_of_members_and_nobody_twice() -> None:
    member = np.arange(60) < 35
    drawn = counts.lists(member, 20, 3, np.random.default_rng(0))
    assert [each.members for each in drawn] == [0] * 3 + [5] * 3 + [10] * 3 + [15] * 3 + [20] * 3
    for each in drawn:
        assert len(set(each.rows)) == 20 and member[each.rows].sum() == each.members
    assert all(len(each.rows) == 25 for each in counts.lists(member, 500, 1, np.random.default_rng(0)))


def test_errors_and_gains_are_means_with_students_interval() -> None:
    found = counts.mean_absolute_error(np.array([1, 2, 9]), TRUTH)
    assert found.value == pytest.approx(2)
    assert found.low == 0.0 and found.high == pytest.approx(2 + 4.3026527 * 1 / np.sqrt(3))
    gain = counts.paired_gain(TRUTH, np.array([1, 2, 9]), TRUTH)
    assert gain.value == pytest.approx(2)
    assert counts.covered(np.array([0, 5, 6]), np.array([3, 9, 6]), TRUTH).value == pytest.approx(2 / 3)
