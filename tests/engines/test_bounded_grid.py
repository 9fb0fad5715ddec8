"""The server's grid on Flower's engines: when it looks for replies, and when it gives up."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from fedsim.engines import flower_internals
from fedsim.engines.bounded_grid import BoundedGrid


class Grid:
    """Another grid, on which the reply to a message comes after so many looks for it."""

    def __init__(self, after: dict[int, float]) -> None:
        self.after, self.sent, self.looks = after, dict[str, Message](), list[list[str]]()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        for number, message in enumerate(messages):
            flower_internals.set_message_id(message, f"m{number}")
            self.sent[f"m{number}"] = message
        return list(self.sent)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looks.append(sorted(message_ids))
        ready = [name for name in self.looks[-1] if self.after[int(name[1:])] <= len(self.looks)]
        return [Message(RecordDict(), reply_to=self.sent[name]) for name in ready]


def replies(after: dict[int, float], timeout: float | None) -> tuple[list[str], Grid]:
    flower_internals.assume_identity(run_id=5)
    grid: Any = Grid(after)
    sent = [Message(RecordDict(), node, "train") for node in range(2, 2 + len(after))]
    came = BoundedGrid(grid).send_and_receive(sent, timeout=timeout)
    return [reply.metadata.reply_to_message_id for reply in came], grid


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_it_looks_until_all_have_answered_and_asks_for_none_twice(timeout: float | None) -> None:
    started = time.monotonic()
    came, grid = replies({0: 3, 1: 1, 2: 3}, timeout)
    assert came == ["m1", "m0", "m2"]
    assert grid.looks == [["m0", "m1", "m2"], ["m0", "m2"], ["m0", "m2"]]
    assert time.monotonic() - started < 2.5  # Flower's own would have slept twice for three seconds


def test_who_has_not_answered_in_time_is_left_out() -> None:
    started = time.monotonic()
    came, grid = replies({0: 1, 1: float("inf")}, timeout=0.3)
    assert came == ["m0"]
    assert grid.looks[-1] == ["m1"] and 0.3 <= time.monotonic() - started < 2.5


def test_a_reply_that_is_there_is_taken_even_where_no_time_is_left() -> None:
    assert replies({0: 1, 1: 2}, timeout=0.0)[0] == ["m0"]
