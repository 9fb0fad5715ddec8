"""What is let in to a SuperLink, before it looks at who sent it."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from fedsim.engines import flower_internals
from fedsim.engines.guarded_superlink import LARGEST, Guard

ELSEWHERE, HERE = "192.0.2.7", "127.0.0.1"
PUSH, ORDER = "/v1/fleet/push-object", "/v1/control/start-run"


def asked(path: str, host: str | None, method: str = "POST", **headers: str) -> int:
    """Send a request through the guard; return the status of the answer, 200 from the application."""
    answers: list[Message] = []
    read: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        read.append(True)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        raise AssertionError("the guard reads no body")

    async def send(message: Message) -> None:
        answers.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: Scope = {
        "type": "http", "path": path, "method": method, "headers": named,
        "client": None if host is None else (host, 50000),
    }  # fmt: skip
    asyncio.run(Guard(app)(scope, receive, send))
    assert bool(read) == (answers[0]["status"] == 200)
    return int(answers[0]["status"])


@pytest.mark.parametrize("path", [ORDER, "/v1/control/register-node", "/v1/runtime/push-messages", "/docs"])
def test_orders_are_taken_from_this_machine_alone(path: str) -> None:
    assert asked(path, ELSEWHERE, content_length="3") == 403
    assert asked(path, "::ffff:192.0.2.7", content_length="3") == 403
    assert asked(path, None, content_length="3") == 403
    for here in (HERE, "::1", "::ffff:127.0.0.1"):
        assert asked(path, here, content_length="3") == 200


@pytest.mark.parametrize("host", [ELSEWHERE, HERE])
def test_a_request_says_how_long_it_is_and_is_not_too_long(host: str) -> None:
    assert asked(PUSH, host, content_length=str(LARGEST)) == 200
    assert asked(PUSH, host, content_length=str(LARGEST + 1)) == 413
    assert asked(PUSH, host) == 411
    assert asked(PUSH, host, content_length="3", transfer_encoding="chunked") == 411
    assert asked(PUSH, host, content_length="-3") == 411
    assert asked("/health", host, method="GET") == 200


def test_flowers_own_app_stands_behind_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that Flower does not call any more would let everything in, unnoticed."""
    import flwr.superlink.cli.flower_superlink  # noqa: F401
    from flwr.superlink import extensions, main

    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    made: list[Any] = []
    command = sys.modules["flwr.superlink.cli.flower_superlink"]  # its package has a function of this name
    monkeypatch.setattr(command, "flower_superlink", lambda: made.append(main.create_app()))
    flower_internals.run_superlink(Guard)
    assert made[0].user_middleware[0].cls is Guard
    assert "flwr.ee" not in sys.modules  # whose own middleware it would replace


def test_a_reply_is_given_up_once_its_pieces_are_too_large() -> None:
    from flwr.superlink.grid import http_grid

    pieces = {f"piece {number}": b"x" * 100 for number in range(50)}
    taken: list[str] = []

    def take(name: str) -> bytes:
        taken.append(name)
        return pieces[name]

    unbounded = http_grid.pull_objects
    with flower_internals.pulling_at_most(5000):
        assert http_grid.pull_objects(object_ids=list(pieces), pull_object_fn=take) == pieces
    taken.clear()
    with (
        flower_internals.pulling_at_most(450),
        pytest.raises(http_grid.ObjectPullError, match=flower_internals.GIVEN_UP),
    ):
        http_grid.pull_objects(object_ids=list(pieces), pull_object_fn=take)
    assert len(taken) < 10
    assert http_grid.pull_objects is unbounded
