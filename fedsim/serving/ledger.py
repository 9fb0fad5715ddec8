"""What each key has spent: records per minute and in all, and ε; never more than it may, in any process.

A query is paid for in one transaction before it is answered: a process that is killed in between has spent
without answering, never the reverse. A batch is paid for as a whole or not at all. ε is on the disk before
the answer leaves; a power failure may forget the last second's count of queries that cost none (`Database`).

A record that a key asks again is one more query. It costs no ε: the answer is a fixed function of the record
(`fedsim.serving.policy`), so that nothing new is told.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedsim.core.privacy.output import spent
from fedsim.serving.keys import Key
from fedsim.serving.state import Database

MINUTE = 60
DAY = 86_400


@dataclass(frozen=True)
class Charge:
    """What one request cost: records asked about, those new to the key, and the (ε, δ) of these."""

    records: int
    fresh: int
    epsilon: float = 0.0
    delta: float = 0.0


class OverBudget(Exception):
    """The request is beyond what its key may ask.

    limit: which budget; retry_after: whole seconds until asking again has a chance. A budget in all does not
    come back by waiting: it is a day, in which its owner may have been given more.
    """

    def __init__(self, limit: Literal["per-minute", "queries", "epsilon"], retry_after: int) -> None:
        super().__init__(limit)
        self.limit, self.retry_after = limit, retry_after


def spend(database: Database, key: Key, digests: Sequence[bytes], now: float) -> Charge:
    """Pay for a request about the records with these digests.

    now: seconds since 1970-01-01 UTC

    Raises:
        OverBudget: nothing was spent.
    """
    with database.transaction(durable=spent(key.policy, 1) is not None) as connection:
        asked, fresh = connection.execute("SELECT asked, fresh FROM keys WHERE id = ?", (key.id,)).fetchone()
        if key.limits.queries is not None and asked + len(digests) > key.limits.queries:
            raise OverBudget("queries", DAY)
        _count_minute(connection, key, len(digests), int(now))
        charge = _charge(connection, key, digests, fresh)
        connection.execute(
            "UPDATE keys SET asked = asked + ?, fresh = fresh + ? WHERE id = ?",
            (charge.records, charge.fresh, key.id),
        )
    return charge


def epsilon_spent(key: Key) -> float:
    """Return the ε of all that the key was answered; 0 where its policy states none."""
    return (spent(key.policy, key.fresh) or (0.0, 0.0))[0]


def _charge(connection: sqlite3.Connection, key: Key, digests: Sequence[bytes], fresh: int) -> Charge:
    """Note the records of a policy that states an ε, and what they cost."""
    if spent(key.policy, 1) is None:
        return Charge(len(digests), 0)
    before = connection.total_changes
    connection.executemany("INSERT OR IGNORE INTO answered VALUES (?, ?)", [(key.id, d) for d in digests])
    new = connection.total_changes - before
    epsilon, delta = spent(key.policy, new) or (0.0, 0.0)
    total, _ = spent(key.policy, fresh + new) or (0.0, 0.0)
    budget = math.inf if key.limits.epsilon is None else key.limits.epsilon
    if new and total > budget * (1 + 1e-12):  # ten answers of ε = 0.1 are 1, whatever binary fractions say
        raise OverBudget("epsilon", DAY)
    return Charge(len(digests), new, epsilon, delta)


def _count_minute(connection: sqlite3.Connection, key: Key, records: int, second: int) -> None:
    """Count records in the last 60 seconds; those of the second 60 seconds ago count as well.

    Whole seconds suffice, and no 60 seconds, wherever they begin, hold more than the limit.
    """
    if key.limits.per_minute is None:
        return
    connection.execute("DELETE FROM recent WHERE key = ? AND second < ?", (key.id, second - MINUTE))
    rows = connection.execute(
        "SELECT second, records FROM recent WHERE key = ? ORDER BY second", (key.id,)
    ).fetchall()
    excess = sum(count for _, count in rows) + records - key.limits.per_minute
    if excess > 0:
        raise OverBudget("per-minute", _wait(rows, excess, second))
    connection.execute(
        "INSERT INTO recent VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET records = records + excluded.records",
        (key.id, second, records),
    )


def _wait(rows: Sequence[tuple[int, int]], excess: int, second: int) -> int:
    """Return the seconds until so many records have left the last minute."""
    for at, count in rows:
        excess -= count
        if excess <= 0:
            return max(1, at + MINUTE + 1 - second)
    return MINUTE + 1
