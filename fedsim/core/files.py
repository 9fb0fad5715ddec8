"""Whole files or none: everything fedsim writes is written beside its place and renamed into it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.numpy import load_file, save, save_file

from fedsim.core.errors import InputError

_AT_ONCE = 1024**2
"""Bytes of arrays up to which a second copy costs less than what `save_file` does to spare it."""

_UMASK = os.umask(0)
os.umask(_UMASK)


def slug(name: str) -> str:
    """Return a name fit for files, of lower-case ASCII letters, digits and dashes; else 'x'."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60] or "x"


def write_atomically(path: Path, write: Callable[[Path], object], private: bool = False) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it to ``path``.

    A process killed at any moment leaves either the old file or the new one. A file in a folder that is its
    owner's alone is so as well (mode 0600), and so are the folders made for it (0700).

    private: that it is its owner's alone wherever it lies

    Raises:
        InputError: the folder cannot be written to, or the disk is full.
    """
    try:
        make_folder(path.parent)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        if hasattr(os, "fchmod") and not (private or is_private(path.parent)):
            os.fchmod(handle, 0o666 & ~_UMASK)  # mkstemp's files are for their owner alone
        os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        write(Path(temporary))
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError | SafetensorError):
            raise cannot_write(path, error) from error
        raise


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, as private as the one that was there."""
    missing = list(itertools.takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
    for folder in reversed(missing):
        folder.mkdir(0o700 if is_private(folder.parent) else 0o777, exist_ok=True)


def is_private(folder: Path) -> bool:
    """Whether nobody but its owner may enter a folder, as its mode says."""
    return folder.stat().st_mode & 0o077 == 0


_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # of `write_atomically`


def remove_temporary(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in ``folder`` and below it."""
    for path in folder.rglob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def cannot_write(path: Path, error: Exception) -> InputError:
    """Return the one-sentence error for a file that could not be written, whichever library wrote it."""
    number = getattr(error, "errno", None) or _number_in(str(error))
    if number in _FULL:
        return InputError(f"cannot write {path}: the disk is full; free some space and use --resume")
    if number in _FORBIDDEN:
        return InputError(f"cannot write {path}: the folder is read-only; choose another one with --out")
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(f"cannot write {path}: {reason}; choose another folder with --out")


def _number_in(text: str) -> int | None:
    """Return the system's error number in the text of Rust ("os error 28") or Arrow ("errno 28")."""
    number = re.search(r"(?:os error|errno) (\d+)", text, re.IGNORECASE)
    return int(number[1]) if number else None


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes, private: bool = False) -> None:
    """Write bytes, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content), private)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that fedsim wrote.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise cannot_read(path, error) from error


def write_table(path: Path, table: pd.DataFrame, private: bool = False) -> None:
    """Write ``table`` as Parquet, without its index."""
    write_atomically(path, lambda temporary: table.to_parquet(temporary, index=False), private)


def read_table(path: Path) -> pd.DataFrame:
    """Read a Parquet table that fedsim wrote.

    Raises:
        InputError: the file is missing or corrupt.
    """
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise cannot_read(path, error) from error


def write_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    private: bool = False,
) -> None:
    """Write named arrays as safetensors."""
    contiguous, notes = _contiguous(arrays), dict(metadata or {})
    if sum(array.nbytes for array in contiguous.values()) <= _AT_ONCE:
        write_bytes(path, save(contiguous, notes), private)
        return
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, notes), private)


def keep_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Do what `write_arrays` does, where the file does not hold just these arrays already."""
    content = save(_contiguous(arrays), {})
    if not path.is_file() or path.read_bytes() != content:
        write_bytes(path, content)


def _contiguous(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read named arrays from safetensors.

    Raises:
        InputError: the file is missing or corrupt.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise cannot_read(path, error) from error


def cannot_read(path: Path, error: Exception) -> InputError:
    """Return the one-sentence error for a file that could not be read."""
    if isinstance(error, FileNotFoundError) or not _may_exist(path):
        return InputError(f"cannot read {path}: there is no such file")
    description = (isinstance(error, OSError) and error.strerror) or str(error)
    reason = description.splitlines()[0] if description else type(error).__name__
    return InputError(f"cannot read {path}: {reason}")


def _may_exist(path: Path) -> bool:
    try:
        return path.is_symlink() or path.exists()
    except OSError:  # such as a name too long for a file; the first error says so itself
        return True


@contextmanager
def locked(folder: Path, taken: str) -> Iterator[None]:
    """Keep other processes out of what is done in ``folder``; the lock ends with the process.

    Raises:
        InputError: ``taken``; another process holds the lock.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(taken) from error
    except NotImplementedError:  # a file system without locks
        yield
        return
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        yield
    finally:
        lock.release()
