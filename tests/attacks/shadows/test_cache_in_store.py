"""Shadows kept in a store that fsspec reaches: here, in memory."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from support.shadow_plans import members_of, small_plan, some_pool, w_0

from attacks.shadows import cache
from attacks.shadows.members import Membership
from attacks.shadows.simulate import Laboratory, ShadowRequest, train_shadows
from fedsim.core import stores
from fedsim.core.errors import InputError
from fedsim.core.stores import Remote

MEMBERS = Membership(np.array([[[0, 1]], [[1, 2]]], np.int32), 3)
ARRAYS = {"phi": np.arange(6, dtype=np.float32).reshape(2, 1, 3)}
SHAPES = {"phi": (1, 3)}
NAME = cache.cache_name("a" * 64)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    monkeypatch.setenv("FEDSIM_CACHE", f"memory://{uuid.uuid4().hex}")
    place = cache.cache_folder()
    assert isinstance(place, Remote)
    yield place


def objects(place: Remote) -> list[str]:
    system, path = fsspec.url_to_fs(place.url)
    return [str(name).rpartition("/")[2] for name in system.find(path)]


def test_what_is_kept_is_read_and_more_shadows_join_it(
    store: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan()
    pool = some_pool(plan)
    membership = members_of(plan, 4, pool)

    def ask(shadows: int) -> np.ndarray:
        request = ShadowRequest(plan, w_0(plan), pool, membership.first(shadows), pool, (3,), seed=3)
        return train_shadows(request, Laboratory(cache=store)).phi

    first, more = ask(2), ask(4)
    np.testing.assert_array_equal(more[:2], first)
    assert len(objects(store)) == 1, "one object a request, under its own name"
    monkeypatch.setattr("attacks.shadows.simulate._train_missing", None)  # nothing may be trained
    np.testing.assert_array_equal(ask(4), more)


@pytest.mark.parametrize("atomic", [True, False])
def test_a_store_is_written_whole_or_not_at_all(
    store: Remote, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where puts are not atomic, the object appears by a move alone, and is replaced in the same way."""
    system, seen = fsspec.filesystem("memory"), []
    pipe = type(system).pipe_file

    def spied(self: Any, path: str, content: bytes, **more: Any) -> None:
        seen.append(path)
        pipe(self, path, content, **more)

    monkeypatch.setattr(type(system), "pipe_file", spied)
    if not atomic:
        monkeypatch.setattr(stores, "_ATOMIC", frozenset())
    for _ in range(2):
        cache.write_cache(store / NAME, MEMBERS, ARRAYS)
        assert objects(store) == [NAME]
        np.testing.assert_array_equal(cache.read_cache(store / NAME, MEMBERS, SHAPES)["phi"], ARRAYS["phi"])
    assert all(path.endswith(NAME) is atomic for path in seen) and len(seen) == 2


def test_nothing_is_removed_from_a_store(store: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CACHE_BYTES", 1)
    for digit in "abc":
        cache.write_cache(store / cache.cache_name(digit * 64), MEMBERS, ARRAYS)
    assert len(objects(store)) == 3


@pytest.mark.parametrize(
    ("url", "reason"), [("nope://x", "Protocol not known: nope"), ("down://x", "no route to the store")]
)
def test_a_store_that_does_not_answer_stops_before_any_work(
    url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", url)
    if url.startswith("down"):
        fsspec.register_implementation("down", Down, clobber=True)
    with pytest.raises(InputError, match=f"FEDSIM_CACHE = {url}/shadows: it cannot be read: .*{reason}"):
        cache.cache_folder()


class Down(fsspec.AbstractFileSystem):
    protocol = "down"

    def ls(self, *_: object, **more: object) -> list[str]:
        raise ConnectionError("no route to the store")

    cat_file = _rm = pipe_file = mkdirs = makedirs = ls  # type: ignore[assignment]


def test_a_store_that_fails_later_costs_a_warning() -> None:
    fsspec.register_implementation("down", Down, clobber=True)
    with pytest.warns(RuntimeWarning, match="cannot read down://x.*no route.*trained again"):
        assert cache.read_cache(Remote("down://x") / NAME, MEMBERS, SHAPES) == {}
    with pytest.warns(RuntimeWarning, match="not kept for next time: cannot write down://x.*no route"):
        cache.write_cache(Remote("down://x") / NAME, MEMBERS, ARRAYS)


def test_a_damaged_object_is_noticed(store: Remote) -> None:
    cache.write_cache(store / NAME, MEMBERS, ARRAYS)
    system, path = fsspec.url_to_fs((store / NAME).url)
    content = system.cat_file(path)
    system.pipe_file(path, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(RuntimeWarning, match="damaged; the shadows are trained again"):
        assert cache.read_cache(store / NAME, MEMBERS, SHAPES) == {}


def test_a_local_url_is_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", f"file://{tmp_path}")
    assert cache.cache_folder() == tmp_path / "shadows"
