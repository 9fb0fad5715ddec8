"""What a service keeps beside the run: its secret, and the database of keys and budgets.

runs/<name>/serving/       for its owner alone (0700)
  secret                   32 random bytes (0600): of key hashes, record digests, noise and the log's chain
  keys.sqlite              keys, what each has spent, what each was answered
  audit.jsonl audit.head   see `fedsim.serving.log`
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import math
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedsim.core import files
from fedsim.core.errors import InputError

BUSY = 30.0
"""Seconds that a transaction waits for another process."""

_TABLES = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY, hash BLOB NOT NULL UNIQUE, name TEXT NOT NULL, role TEXT NOT NULL,
    policy TEXT NOT NULL, per_minute INTEGER, queries INTEGER, epsilon REAL,
    created REAL NOT NULL, expires REAL, revoked REAL,
    asked INTEGER NOT NULL DEFAULT 0, fresh INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS answered (
    key TEXT NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (key, digest)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS recent (
    key TEXT NOT NULL, second INTEGER NOT NULL, records INTEGER NOT NULL, PRIMARY KEY (key, second)
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Secret:
    """The run's secret; every purpose has a key of its own."""

    content: bytes = field(repr=False)

    def key(self, purpose: str) -> bytes:
        """Return 32 bytes for one purpose: HMAC-SHA256 under the secret."""
        return self.digest(b"purpose", purpose.encode())

    def digest(self, *parts: bytes) -> bytes:
        """Return HMAC-SHA256 of length-prefixed parts, so that no two lists of parts are one text."""
        text = b"".join(b"%d:%b" % (len(part), part) for part in parts)
        return hmac.digest(self.content, text, hashlib.sha256)


class Database:
    """Two SQLite connections that the threads of a process share; processes share the file.

    One writes. The other reads what was last committed and waits for nobody, so that how long a key takes to
    be refused tells nothing of who else asks.

    A commit to the write-ahead log outlasts a killed process. A power failure as well where it was flushed to
    the disk: durable ones are, others where ``sync`` seconds have passed since the last flush.
    """

    def __init__(self, path: Path, sync: float = 0.0) -> None:
        self._sync, self._flushed = sync, -math.inf
        try:
            _touch_private(path)
            self._connection, self._reader = (
                sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)
                for _ in range(2)
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.executescript(_TABLES)
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"cannot use {path}: {error}") from error
        self._lock, self._reading = threading.Lock(), threading.Lock()

    @contextlib.contextmanager
    def transaction(self, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Hold the only write transaction of all processes; an exception undoes it."""
        with self._lock:
            flush = durable or time.monotonic() - self._flushed >= self._sync
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if flush else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
            if flush:  # the write-ahead log was flushed as a whole
                self._flushed = time.monotonic()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read what was last committed."""
        with self._reading:
            yield self._reader

    def close(self) -> None:
        """Close both connections."""
        with self._lock, self._reading:
            self._connection.close()
            self._reader.close()


def folder(run: Path) -> Path:
    """Return the service's folder in a run's, made where it is absent.

    Raises:
        InputError: it cannot be made.
    """
    path = run / "serving"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(path, error) from error
    return path


def secret(folder: Path) -> Secret:
    """Return the run's secret, drawn from the operating system the first time.

    Of two processes that start at once one draws it, and both have it.

    Raises:
        InputError: it cannot be read, or others than its owner may read it.
    """
    path = folder / "secret"
    try:
        if not path.exists():
            _draw_secret(path)
        open_to_others = path.stat().st_mode & 0o077
        content = path.read_bytes()
    except OSError as error:
        raise files.cannot_read(path, error) from error
    if open_to_others:
        raise InputError(f"{path} is open to others; `chmod 600` it, and change the keys if they read it")
    if len(content) != 32:
        raise InputError(f"{path} holds {len(content)} bytes, not 32; restore it from a copy")
    return Secret(content)


def _draw_secret(path: Path) -> None:
    temporary = path.with_name(f".secret.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, secrets.token_bytes(32))
        os.fsync(handle)
        with contextlib.suppress(FileExistsError):  # the other process was first
            os.link(temporary, path)
    finally:
        os.close(handle)
        temporary.unlink()


def _touch_private(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
