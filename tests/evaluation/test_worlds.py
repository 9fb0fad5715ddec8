"""The draw of worlds: nested, balanced, and of no record that it should not hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.data import worlds
from fedsim.core.data.worlds import World
from fedsim.core.errors import InputError
from fedsim.evaluation.worlds import draw_worlds

LADDER = ("all", "half", "few", "none", "own")


def records(n: int, share: float, parties: int, stream: np.random.Generator) -> pd.DataFrame:
    party = np.array([f"h-{k % parties}" for k in range(n)], dtype=object)
    return pd.DataFrame({"party": party, "member": stream.permutation(n) < round(share * n)})


@given(
    n=st.integers(60, 400),
    beside=st.sampled_from([0, 7, 90]),
    parties=st.integers(1, 4),
    share=st.sampled_from([0.3, 0.5, 0.7]),
    seed=st.integers(0, 99),
)
def test_worlds_are_nested_and_each_has_the_games_share_of_members(
    n: int, beside: int, parties: int, share: float, seed: int
) -> None:
    stream = np.random.default_rng(seed)
    candidates, auxiliary = records(n, share, parties, stream), records(beside, share, parties, stream)
    try:
        drawn = draw_worlds(LADDER, candidates, auxiliary, stream)
    except InputError as refused:  # of few candidates one in ten may be members alone, or others
        assert n < 240 and "world 'few' asks about" in str(refused)
        assert " 0 members" in str(refused) or " 0 others" in str(refused)
        return
    member = candidates["member"].to_numpy()
    for name, size in (("all", 1.0), ("half", 0.5), ("few", 0.1)):
        world = drawn[name]
        assert len(world.asked) + len(world.owned) == round(size * (n + beside)) and not len(world.nobodys)
        assert abs(member[world.asked].sum() - member.mean() * len(world.asked)) <= 2 * parties + 1
    assert not np.setdiff1d(drawn["few"].asked, drawn["half"].asked).size
    assert not np.setdiff1d(drawn["half"].asked, drawn["none"].asked).size
    none = drawn["none"]
    assert not np.intersect1d(none.asked, none.nobodys).size and len(none.asked) + len(none.nobodys) == n
    assert not member[none.nobodys].any() and not auxiliary["member"].to_numpy()[none.owned].any()
    heldout = int((~member).sum() + (~auxiliary["member"]).sum())
    assert 0 <= heldout // 2 - len(none.nobodys) - len(none.owned) <= 4 * parties + 1
    assert drawn["own"].asked.tolist() == list(range(n)) and not len(drawn["own"].owned)


def test_where_there_are_enough_records_beside_them_the_same_are_asked_about_in_every_world() -> None:
    stream = np.random.default_rng(0)
    drawn = draw_worlds(LADDER, records(20, 0.5, 4, stream), records(334, 0.5, 4, stream), stream)
    for name in ("all", "half", "few", "none"):
        assert drawn[name].asked.tolist() == list(range(20)), name


def test_an_adversary_whose_records_are_held_out_owns_all_of_them() -> None:
    stream = np.random.default_rng(0)
    drawn = draw_worlds(
        ["none"], records(20, 0.5, 2, stream), records(9, 0.0, 2, stream), stream, disjoint=True
    )
    assert drawn["none"].asked.tolist() == list(range(20)) and drawn["none"].owned.tolist() == list(range(9))


def test_a_world_without_members_is_refused_in_a_sentence() -> None:
    stream = np.random.default_rng(0)
    with pytest.raises(InputError, match=r"adversary\.worlds: world 'few' asks about . members and . others"):
        draw_worlds(["few"], records(10, 0.5, 2, stream), records(0, 0.5, 2, stream), stream)


def test_worlds_are_what_they_were_after_a_journey() -> None:
    stream = np.random.default_rng(0)
    drawn = draw_worlds(LADDER, records(40, 0.5, 2, stream), records(9, 0.5, 2, stream), stream)
    again = worlds.from_arrays(worlds.arrays(drawn))
    assert list(again) == list(drawn)
    for name, world in drawn.items():
        assert isinstance(again[name], World)
        for part in ("asked", "owned", "nobodys"):
            np.testing.assert_array_equal(getattr(again[name], part), getattr(world, part))
