"""Shadows on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from support.shadow_plans import members_of, small_plan, some_pool, w_0
from support.shadows import simulate

from attacks.shadows import cache as shadows_cache
from attacks.shadows import simulate as shadows_simulate
from attacks.shadows.cache import Block, cache_folder
from attacks.shadows.members import Membership, draw_members
from attacks.shadows.simulate import ShadowRequest


def test_the_cache_forgets_what_was_not_used_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan()
    pool = some_pool(plan)
    membership, counting = members_of(plan, 2, pool), Counting(monkeypatch)

    def ask(seed: int) -> int:
        before = counting.trained
        simulate(plan, w_0(plan), pool, membership, pool, rounds=[3], seed=seed, cache=tmp_path)
        return counting.trained - before

    assert ask(1) == 2
    [first] = tmp_path.iterdir()
    monkeypatch.setattr(shadows_cache, "CACHE_BYTES", 2.5 * first.stat().st_size)
    assert [ask(2), ask(1), ask(3)] == [2, 0, 2]  # 2 is the one not used for longest
    assert len(list(tmp_path.iterdir())) == 2
    assert [ask(1), ask(3), ask(2)] == [0, 0, 2]
    monkeypatch.setattr(shadows_cache, "CACHE_BYTES", 1)
    assert ask(4) == 2 and ask(4) == 0, "what was simulated last is kept, however large"


class Counting:
    """Counts the shadows that are really trained."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained = 0
        run = shadows_simulate._run_block

        def counted(job: ShadowRequest, start: int, members: np.ndarray, *more: object) -> Block:
            self.trained += len(members)
            return run(job, start, members, *more)  # type: ignore[arg-type]

        monkeypatch.setattr(shadows_simulate, "_run_block", counted)


def test_cache_is_used_for_the_same_or_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan()
    pool = some_pool(plan)
    membership = members_of(plan, 6, pool)
    counting = Counting(monkeypatch)

    def ask(shadows: int, seed: int = 3, rounds: Sequence[int] = (3,), w: dict | None = None) -> np.ndarray:
        counting.trained = 0
        start = w or w_0(plan)
        return simulate(
            plan, start, pool, membership.first(shadows), pool, rounds=rounds, seed=seed, cache=tmp_path
        ).phi  # fmt: skip

    first = ask(4)
    assert counting.trained == 4
    np.testing.assert_array_equal(ask(4), first)
    assert counting.trained == 0
    np.testing.assert_array_equal(ask(3), first[:3])
    assert counting.trained == 0
    more = ask(6)
    assert counting.trained == 2
    np.testing.assert_array_equal(more[:4], first)
    np.testing.assert_array_equal(ask(6), more)
    assert counting.trained == 0
    for other in ({"seed": 4}, {"rounds": (2, 3)}, {"w": {k: v + 1 for k, v in w_0(plan).items()}}):
        ask(2, **other)  # type: ignore[arg-type]
        assert counting.trained == 2
    other_members = draw_members(6, plan.sizes.tolist(), np.full(len(pool), -1), seed=5)
    mixed = Membership(np.concatenate([membership.members[:2], other_members.members[2:]]), len(pool))
    counting.trained = 0
    simulate(plan, w_0(plan), pool, mixed, pool, rounds=[3], seed=3, cache=tmp_path)
    assert counting.trained == 4  # only the shadows that are the same are taken


def damaged(data: bytes, how: str) -> bytes:
    return {
        "cut": data[: len(data) // 2],
        "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "empty": b"",
    }[how]


@pytest.mark.filterwarnings("ignore:.*damaged")
@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_cache_is_trained_again(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan()
    pool = some_pool(plan)
    membership = members_of(plan, 2, pool)
    request = {"rounds": [3], "seed": 3, "cache": tmp_path}
    first = simulate(plan, w_0(plan), pool, membership, pool, **request)  # type: ignore[arg-type]
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damaged(whole, how))
    counting = Counting(monkeypatch)
    again = simulate(plan, w_0(plan), pool, membership, pool, **request)  # type: ignore[arg-type]
    assert counting.trained == 2
    np.testing.assert_array_equal(again.phi, first.phi)
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    plan = small_plan()
    pool = some_pool(plan)
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(RuntimeWarning, match="not kept"):
        actual = simulate(
            plan,
            w_0(plan),
            pool,
            members_of(plan, 2, pool),
            pool,
            rounds=[3],
            seed=3,
            cache=tmp_path / "file" / "x",
        )
    assert np.isfinite(actual.phi).all()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere/shadows")
    monkeypatch.delenv("FEDSIM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/of/caches")
    assert cache_folder() == Path("/home/of/caches/fedsim/shadows")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/fedsim/shadows"
