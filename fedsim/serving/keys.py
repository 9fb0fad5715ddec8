"""Who may ask: keys that are shown once, kept as a hash, and end.

A key is 256 random bits, so that a keyed hash needs no stretching. Whether one that is presented is unknown,
revoked or expired cannot be told from the answer: the look-up goes by its hash, and every failure takes the
same path.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from fedsim.core.errors import InputError, suggestion
from fedsim.core.scenario.protection import STATES_EPSILON, OutputPolicy
from fedsim.serving.state import Database, Secret

Role = Literal["client", "operator"]
ROLES: tuple[Role, ...] = ("client", "operator")
PREFIX = "fedsim_"
_COLUMNS = "id, name, role, policy, per_minute, queries, epsilon, created, expires, revoked, asked, fresh"
_NOBODY = ("", "", "client", OutputPolicy().model_dump_json(), None, None, None, 0.0, 0.0, 0.0, 0, 0)


@dataclass(frozen=True)
class Limits:
    """What a key may ask; None: without limit.

    per_minute: records in any 60 seconds
    queries: records in all
    epsilon: ε in all, of a policy that states one
    """

    per_minute: int | None = 600
    queries: int | None = None
    epsilon: float | None = None


@dataclass(frozen=True)
class Key:
    """A key as it is kept: everything but the key itself.

    created, expires, revoked: seconds since 1970-01-01 UTC
    asked: records answered so far; fresh: those of them that cost ε
    """

    id: str
    name: str
    role: Role
    policy: OutputPolicy
    limits: Limits
    created: float
    expires: float | None = None
    revoked: float | None = None
    asked: int = 0
    fresh: int = 0

    def state(self, now: float) -> Literal["active", "revoked", "expired"]:
        """Return whether the key can be used."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "active"


def add(
    database: Database,
    secret: Secret,
    name: str,
    policy: OutputPolicy,
    limits: Limits,
    now: float,
    *,
    role: Role = "client",
    expires: float | None = None,
) -> tuple[Key, str]:
    """Make a key; return it and its text, which is nowhere kept.

    Raises:
        InputError: the name is taken by an active key, or the policy states an ε and the limits do not.
    """
    if policy.policy in STATES_EPSILON and limits.epsilon is None:
        raise InputError(f"policy '{policy.policy}' spends ε at every answer: give the key a budget of it")
    if policy.policy not in STATES_EPSILON and limits.epsilon is not None:
        raise InputError(
            f"policy '{policy.policy}' states no ε; a budget of it is for {', '.join(STATES_EPSILON)}"
        )
    if any(key.name == name and key.state(now) == "active" for key in everyone(database)):
        raise InputError(f"there is an active key named '{name}'; choose another name or revoke it first")
    text = PREFIX + secrets.token_urlsafe(32)
    key = Key(secrets.token_hex(4), name, role, policy, limits, now, expires)
    row = (key.id, _hash(secret, text.encode()), name, role, policy.model_dump_json())
    with database.transaction() as connection:
        connection.execute(
            "INSERT INTO keys (id, hash, name, role, policy, per_minute, queries, epsilon, created, expires)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, limits.per_minute, limits.queries, limits.epsilon, now, expires),
        )
    return key, text


def everyone(database: Database) -> list[Key]:
    """Return all keys, oldest first."""
    with database.reading() as connection:
        rows = connection.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created, id").fetchall()
    return [_key(row) for row in rows]


def revoke(database: Database, which: str, now: float) -> Key:
    """End a key at once, by its id or the name of an active one.

    Raises:
        InputError: there is no such active key.
    """
    active = [key for key in everyone(database) if key.state(now) == "active"]
    chosen = next((key for key in active if which in (key.id, key.name)), None)
    if chosen is None:
        near = suggestion(which, [key.name for key in active]) if active else "; no key is active"
        raise InputError(f"there is no active key '{which}'{near}")
    with database.transaction() as connection:
        connection.execute("UPDATE keys SET revoked = ? WHERE id = ?", (now, chosen.id))
    return chosen


def authenticate(database: Database, secret: Secret, presented: bytes, now: float) -> Key | None:
    """Return the active key whose text was presented, else None."""
    with database.reading() as connection:
        row = connection.execute(
            f"SELECT {_COLUMNS} FROM keys WHERE hash = ?", (_hash(secret, presented),)
        ).fetchone()
    key = _key(row or _NOBODY)  # an unknown key takes the time that an ended one does
    return key if row is not None and key.state(now) == "active" else None


def _hash(secret: Secret, presented: bytes) -> bytes:
    return secret.digest(b"api key", presented)


def _key(row: tuple) -> Key:
    id, name, role, policy, per_minute, queries, epsilon, *rest = row
    try:
        settings = OutputPolicy.model_validate_json(policy)
    except ValidationError as error:
        raise InputError(
            f"key '{name}': its output policy cannot be read: {error.errors()[0]['msg']}"
        ) from error
    return Key(id, name, role, settings, Limits(per_minute, queries, epsilon), *rest)
