"""The audit log: one JSON line per answered or refused request, chained so that no line can be altered.

Line n carries HMAC-SHA256(key, mac of line n−1 ‖ n ‖ content): who has the file but not the run's secret can
neither change a line, take one out, nor put two in another order. ``audit.head`` holds the number of lines,
their bytes and the last mac, so that a tail that was cut off shows as well. Both files put back together to
an earlier state cannot be told from that state: note the head that `fedsim log verify` prints elsewhere.

A line is written before its answer leaves, so that a killed process loses none. It is flushed to the disk
where `SYNC` seconds have passed since the last flush: that much a power failure may lose. Lines are written
at the end of the file under a lock that processes share; half a line, left by a full disk, was never
answered and is cut off.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fedsim.core import files
from fedsim.core.errors import InputError
from fedsim.serving.state import Secret

LOG, HEAD = "audit.jsonl", "audit.head"
SYNC = 1.0
_START = "0" * 64


@dataclass(frozen=True)
class Head:
    """Where the log ends: lines, bytes, and the mac of the last line."""

    lines: int = 0
    size: int = 0
    mac: str = _START


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: the head, and the first thing that is wrong, None where nothing is."""

    head: Head
    problem: str | None


class AuditLog:
    """Appends to the log of a service's folder; threads and processes may share it.

    sync: seconds between two flushes to the disk; 0 flushes every line before its answer leaves
    """

    def __init__(self, folder: Path, secret: Secret, sync: float = SYNC) -> None:
        self._key, self._sync = secret.key("audit log"), sync
        self._lock, self._flushed = threading.Lock(), 0.0
        try:
            self._log = _open(folder / LOG)
            self._head = _open(folder / HEAD)
            with _locked(self._log):
                self._begin(folder)
        except OSError as error:
            raise files.cannot_write(folder / LOG, error) from error

    def _begin(self, folder: Path) -> None:
        """Note the head of an empty log; refuse one whose head is gone: it may have been cut."""
        if self._noted() is None and os.fstat(self._log).st_size:
            raise InputError(
                f"{folder / HEAD} is missing or altered; keep {LOG} elsewhere to begin a new log"
            )
        if self._noted() is None:
            self._write_head(Head())

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line: ``entry``, JSON values, with its number and mac.

        Raises:
            OSError: it could not be written; whoever asked must not be answered.
        """
        with self._lock, _locked(self._log):
            head = self._whole_lines()
            line, mac = _line(self._key, head.mac, head.lines + 1, entry)
            _write_all(self._log, line)
            self._write_head(Head(head.lines + 1, head.size + len(line), mac))
            if time.monotonic() - self._flushed >= self._sync:
                os.fdatasync(self._log)
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close the files."""
        with self._lock:
            os.fdatasync(self._log)
            os.close(self._log)
            os.close(self._head)

    def _whole_lines(self) -> Head:
        """Return the head of the log, of which a process may have been killed before it noted its line."""
        head = self._noted()
        if head is None:
            raise OSError(f"{HEAD} was altered")
        size = os.fstat(self._log).st_size
        if size <= head.size:  # shorter: lines are missing, which the chain goes on to show
            return head
        rest = os.pread(self._log, size - head.size, head.size)
        whole = rest[: rest.rfind(b"\n") + 1]
        if len(whole) < len(rest):
            os.ftruncate(self._log, head.size + len(whole))
        lines = whole.splitlines()
        if not lines:
            return head
        return Head(head.lines + len(lines), head.size + len(whole), _mac_of(lines[-1]))

    def _noted(self) -> Head | None:
        return _read_head(os.pread(self._head, 256, 0), self._key)

    def _write_head(self, head: Head) -> None:
        """Write the head over the old one: 256 bytes in place are one write within one block."""
        text = f"{head.lines} {head.size} {head.mac}"
        proof = hmac.new(self._key, f"head {text}".encode(), hashlib.sha256).hexdigest()
        os.pwrite(self._head, f"{text} {proof}".ljust(255).encode() + b"\n", 0)


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Return the entries of the log, unverified.

    Raises:
        InputError: there is no log, or a line is not JSON.
    """
    path = folder / LOG
    try:
        with path.open("rb") as file:
            for line in file:
                yield json.loads(line)
    except OSError as error:
        raise files.cannot_read(path, error) from error
    except ValueError as error:
        raise InputError(f"{path}: a line is not JSON; see `fedsim log verify`") from error


def verify(folder: Path, secret: Secret) -> Verdict:
    """Check every line and the end of the log.

    Raises:
        InputError: there is no log.
    """
    key, path = secret.key("audit log"), folder / LOG
    try:
        with path.open("rb") as file:
            with _locked(file.fileno()):  # what is written from here on is not looked at
                size = os.fstat(file.fileno()).st_size
                noted = _read_head((folder / HEAD).read_bytes(), key) if (folder / HEAD).exists() else None
            return _follow(file, size, key, noted)
    except OSError as error:
        raise files.cannot_read(path, error) from error


def _follow(file: BinaryIO, size: int, key: bytes, noted: Head | None) -> Verdict:
    """Follow the chain through the first ``size`` bytes, and compare its end with what was noted."""
    head = Head()
    while head.size < size:
        line = file.readline()
        problem = _wrong(line, key, head)
        if problem is None:
            head = Head(head.lines + 1, head.size + len(line), _mac_of(line))
            if noted is not None and noted.lines == head.lines and noted != head:
                problem = f"{HEAD} does not belong to this log"
        if problem is not None:
            return Verdict(head, problem)
    if noted is None:
        return Verdict(head, f"{HEAD} is missing or altered: lines may have been cut off the end")
    if noted.lines > head.lines:
        return Verdict(head, f"{noted.lines - head.lines} line(s) were cut off the end")
    return Verdict(head, None)


def _wrong(line: bytes, key: bytes, head: Head) -> str | None:
    """Return what is wrong with the line that follows ``head``."""
    number = head.lines + 1
    try:
        entry = json.loads(line)
        mac, n = entry.pop("mac"), entry.pop("n")
        expected, own = _line(key, head.mac, n, entry)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"line {number} was changed: it is no line of an audit log"
    if n != number:
        return f"line {number} has the number {n}: lines were removed, added or put in another order"
    if not isinstance(mac, str) or not hmac.compare_digest(mac.encode(), own.encode()) or expected != line:
        return f"line {number} was changed, or the one before it was replaced"
    return None


def _line(key: bytes, before: str, number: int, entry: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return line ``number`` and its mac."""
    content = json.dumps({"n": number, **entry}, separators=(",", ":"), allow_nan=False)
    mac = hmac.new(key, f"{before}{content}".encode(), hashlib.sha256).hexdigest()
    return f'{content[:-1]},"mac":"{mac}"}}\n'.encode(), mac


def _mac_of(line: bytes) -> str:
    return str(json.loads(line)["mac"])


def _read_head(content: bytes, key: bytes) -> Head | None:
    """Return the noted head; None where there is none, or not of this key."""
    parts = content.decode("ascii", errors="replace").split()
    if len(parts) != 4:
        return None
    proof = hmac.new(key, f"head {' '.join(parts[:3])}".encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(proof, parts[3]):
        return None
    return Head(int(parts[0]), int(parts[1]), parts[2])


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | (os.O_APPEND if path.name == LOG else 0)
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def _locked(handle: int) -> Iterator[None]:
    """Hold the file's lock, which the system lets go when a process dies."""
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _write_all(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]
