"""Shadows kept on disk or in a store, so that a repeated attack need not train them again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from attacks.shadows.members import Membership
from fedsim.core import folders
from fedsim.core.errors import InputError
from fedsim.core.files import read_arrays, write_arrays
from fedsim.core.stores import Remote

Block = dict[str, np.ndarray]
"""Arrays of `Shadows` for some of the shadows, by field."""

CACHE_BYTES = 8 * 2**30
"""What simulations may take on disk; of more, those are removed that were not used for longest. Of a store
nothing is removed: it has rules of its own for that."""

Place = Path | Remote

_NAME = re.compile(r"shadows-[0-9a-f]{64}\.safetensors")


def cache_folder() -> Place:
    """Return the folder for simulations: a subfolder of fedsim's own in its cache.

    Raises:
        InputError: FEDSIM_CACHE names a store that does not answer. One that fails later costs a warning.
    """
    url = folders.cache_url()
    if url is None:
        return folders.cache() / "shadows"
    remote = Remote(url) / "shadows"
    remote.check()
    return remote


def cache_name(key: str) -> str:
    """Return the name of the file of a request; key: 64 hexadecimal digits. No other file is ever removed."""
    return f"shadows-{key}.safetensors"


def read_cache(file: Place, membership: Membership, shapes: Mapping[str, tuple[int, ...]]) -> Block:
    """Return the arrays of the leading shadows that are kept; none where the file is of no use.

    shapes: of each array that is asked for, of one shadow
    """
    try:
        arrays = read_arrays(file) if isinstance(file, Path) else _fetched(file)
        members, digest = arrays.pop("members"), arrays.pop("digest")
    except (InputError, KeyError):
        return {}
    if not np.array_equal(digest, _digest(members, arrays)):
        warnings.warn(f"{file} is damaged; the shadows are trained again", RuntimeWarning, stacklevel=3)
        return {}
    if not _fits(members, arrays, membership, shapes):
        return {}
    if isinstance(file, Path):
        _note_use(file)
    n = min(len(members), len(membership))
    same = (members[:n] == membership.members[:n]).all(axis=(1, 2))
    first = n if same.all() else int(np.argmin(same))
    return {name: array[:first] for name, array in arrays.items()}


def _fetched(object: Remote) -> Block:
    """Return the arrays of an object, none where it is missing or, which is said, cannot be had."""
    try:
        return object.read()
    except FileNotFoundError:
        return {}
    except InputError as error:
        warnings.warn(f"{error}; the shadows are trained again", RuntimeWarning, stacklevel=4)
        return {}


def _fits(
    members: np.ndarray, arrays: Block, membership: Membership, shapes: Mapping[str, tuple[int, ...]]
) -> bool:
    """Whether the file holds what is asked for: a file may be renamed, or written by another version."""
    expected = {name: (len(members), *shape) for name, shape in shapes.items()}
    stored = {name: array.shape for name, array in arrays.items() if array.dtype == np.float32}
    return stored == expected and members.shape[1:] == membership.members.shape[1:]


def write_cache(file: Place, membership: Membership, arrays: Block) -> None:
    """Keep the shadows' arrays in ``file``; where that fails, warn: a full disk must not cost the result."""
    members = membership.members
    try:
        kept = {**arrays, "members": members, "digest": _digest(members, arrays)}
        if isinstance(file, Path):
            write_arrays(file, kept)
            _note_use(file)
            _forget_oldest(file)
        else:
            file.write(kept)
    except InputError as error:
        warnings.warn(f"the shadows are not kept for next time: {error}", RuntimeWarning, stacklevel=3)


def _note_use(file: Path) -> None:
    """Write down that ``file`` is used now, to the nanosecond; the system stamps by its ticks alone."""
    now = time.time_ns()
    with contextlib.suppress(OSError):  # a folder that may only be read
        os.utime(file, ns=(now, now))


def _forget_oldest(newest: Path) -> None:
    """Remove the simulations beside ``newest`` not used for longest, until all take `CACHE_BYTES`."""
    used = []
    for file in newest.parent.iterdir():
        if not _NAME.fullmatch(file.name) or file.is_symlink():
            continue
        with contextlib.suppress(OSError):  # another process may have removed it
            used.append((file.stat().st_mtime_ns, file.stat().st_size, file))
    total = 0
    for _, size, file in sorted(used, reverse=True):
        total += size
        if total > CACHE_BYTES and file != newest:
            file.unlink(missing_ok=True)


def _digest(members: np.ndarray, arrays: Block) -> np.ndarray:
    """Return a SHA-256 of names, types, shapes and contents, (32,) uint8.

    safetensors itself would not notice a flipped bit.
    """
    digest = hashlib.sha256()
    for name, array in sorted({**arrays, "members": members}.items()):
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), np.uint8)
