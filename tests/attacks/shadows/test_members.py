"""Who is in which shadow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attacks.shadows.members import MOST, draw_members


@settings(max_examples=40, deadline=None)
@given(
    own=st.lists(st.integers(4, 12), min_size=1, max_size=4),
    anyones=st.integers(0, 20),
    sizes=st.data(),
    fixed=st.integers(0, 3),
)
def test_members_are_where_they_may_be(
    own: list[int], anyones: int, sizes: st.DataObject, fixed: int
) -> None:
    party_of = np.concatenate([np.repeat(np.arange(len(own)), own), np.full(anyones, -1)])
    wanted = [sizes.draw(st.integers(1, 12)) for _ in own]
    known = np.arange(fixed)  # of party 0
    drawn = draw_members(6, wanted, party_of, fixed={0: known}, seed=1)
    inside = drawn.inside
    assert inside.shape == (6, len(party_of))
    assert (inside[:, known] == 0).all()
    assert ((inside == -1) | (party_of == -1) | (inside == party_of)).all()
    for k, size in enumerate(drawn.sizes):
        assert ((inside == k).sum(1) == size).all()  # every record once
        assert 1 <= size <= max(wanted[k], fixed)
        if wanted[k] <= MOST * (own[k] - fixed * (k == 0)):
            assert size == max(wanted[k], fixed * (k == 0))
    np.testing.assert_array_equal(
        draw_members(3, wanted, party_of, fixed={0: known}, seed=1).inside, inside[:3]
    )


def test_pairs_are_complementary() -> None:
    party_of = np.repeat([0, 1], [20, 30])
    inside = draw_members(8, [10, 15], party_of, seed=2).inside >= 0
    assert (inside[::2] != inside[1::2]).all()
    anywhere = draw_members(8, [10, 15], np.full(50, -1), seed=2).inside
    assert ((anywhere[::2] >= 0) != (anywhere[1::2] >= 0)).all()


def test_a_record_of_no_party_is_in_a_random_one() -> None:
    inside = draw_members(400, [10, 20], np.full(60, -1), seed=2).inside
    in_first = (inside == 0).sum(0)
    assert stats.chisquare(in_first).pvalue > 0.001
    assert abs((inside == 0).mean() - 10 / 60) < 1e-9


def test_half_of_the_shadows_hold_a_record_and_none_holds_all() -> None:
    inside = draw_members(200, [44, 44], np.repeat([0, 1], [88, 45]), seed=0).inside
    share = (inside >= 0).mean(0)
    np.testing.assert_array_equal(share[:88], 0.5)
    assert share[88:].min() > 0.6 and share[88:].max() < 0.9  # 44 of 45 would leave nobody out


def test_a_party_that_no_record_can_be_in() -> None:
    with pytest.raises(ValueError, match="party 1"):
        draw_members(2, [3, 3], np.zeros(10, int), seed=0)


def test_spare_records_fill_a_party_to_its_true_size_and_leave_half_of_the_owned_out() -> None:
    party_of = np.concatenate([np.full(40, -1), np.repeat([0, 1], 60)])
    spare = {0: np.arange(40, 100), 1: np.arange(100, 160)}
    drawn = draw_members(50, [20, 30], party_of, seed=3, spare=spare)
    assert drawn.sizes == [20, 30]
    inside = drawn.inside
    assert ((inside[:, :40] >= 0).sum(axis=1) == 20).all()
    for k, rows in spare.items():
        assert np.isin(inside[:, rows], [-1, k]).all() and (inside[:, rows] == k).any()
    np.testing.assert_array_equal(draw_members(7, [20, 30], party_of, seed=3, spare=spare).inside, inside[:7])
    assert ((inside[::2, :40] >= 0) != (inside[1::2, :40] >= 0)).all(), "pairs still are complementary"
