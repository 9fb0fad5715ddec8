"""The cache removes only what it wrote, and gives only what was asked for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attacks.shadows import cache
from attacks.shadows.members import Membership

MEMBERS = Membership(np.array([[[0, 1]], [[1, 2]]], np.int32), 3)
SHAPES = {"phi": (1, 3)}


def arrays(shadows: int = 2, n: int = 3) -> cache.Block:
    return {"phi": np.arange(shadows * n, dtype=np.float32).reshape(shadows, 1, n)}


def key(digit: str) -> str:
    return digit * 64


def test_a_persons_own_files_are_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FEDSIM_CACHE may name a folder of models; even in fedsim's subfolder the names decide."""
    monkeypatch.setattr(cache, "CACHE_BYTES", 1)
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    folder = cache.cache_folder()
    folder.mkdir()
    names = ("my-llama.safetensors", "shadows-1.safetensors", f"{key('a')}.safetensors", "notes.txt")
    theirs = [parent / name for parent in (tmp_path, folder) for name in names]
    target = tmp_path / "elsewhere"
    target.write_text("theirs")
    (folder / cache.cache_name(key("9"))).symlink_to(target)
    for path in theirs:
        path.write_text("theirs")
        os.utime(path, (1, 1))
    for digit in "abc":
        cache.write_cache(folder / cache.cache_name(key(digit)), MEMBERS, arrays())
    assert all(path.read_text() == "theirs" for path in [*theirs, target])
    ours = [path.name for path in folder.iterdir() if path not in theirs and not path.is_symlink()]
    assert ours == [cache.cache_name(key("c"))], "of fedsim's own, the newest is kept"


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        (arrays(n=4), SHAPES),
        (arrays(), {"phi": (2, 3)}),
        (arrays(), {**SHAPES, "logits": (1, 3, 2)}),
        ({**arrays(), "logits": np.zeros((2, 1, 3, 2), np.float32)}, SHAPES),
        ({"phi": arrays()["phi"].astype(np.float64)}, SHAPES),
        (arrays(shadows=1), SHAPES),
    ],
)
def test_an_entry_of_another_shape_is_of_no_use(
    tmp_path: Path, written: cache.Block, asked: dict[str, tuple[int, ...]]
) -> None:
    """As where a file was renamed, or an earlier version wrote it."""
    file = tmp_path / cache.cache_name(key("0"))
    cache.write_cache(file, MEMBERS, written)
    assert cache.read_cache(file, MEMBERS, asked) == {}


def test_an_entry_about_parties_of_other_sizes_is_of_no_use(tmp_path: Path) -> None:
    file = tmp_path / cache.cache_name(key("0"))
    cache.write_cache(file, MEMBERS, arrays())
    wider = Membership(np.array([[[0, 1, 2]], [[1, 2, 0]]], np.int32), 3)
    assert cache.read_cache(file, wider, SHAPES) == {}
    np.testing.assert_array_equal(cache.read_cache(file, MEMBERS, SHAPES)["phi"], arrays()["phi"])


@given(st.integers(1, 4), st.integers(1, 4))
def test_the_digest_covers_shape_as_well_as_content(rows: int, columns: int) -> None:
    values = np.arange(rows * columns, dtype=np.float32)
    one = cache._digest(MEMBERS.members, {"phi": values.reshape(rows, columns)})
    other = cache._digest(MEMBERS.members, {"phi": values.reshape(columns, rows)})
    assert np.array_equal(one, other) == (rows == columns)
    assert len(one) == 32
