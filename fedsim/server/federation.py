"""One game's federation as the server sees it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from clients import messages
from fedsim.core.run_directory import Checkpoint, RunDirectory
from fedsim.core.scenario.settings import Scenario

START_SECONDS = 15.0
"""What a process takes to start and to import what it needs, on a busy core."""

log = logging.getLogger("fedsim")


@runtime_checkable
class KeepsStates(Protocol):
    """A grid that can hand out and take back its clients' states, so that a run can be resumed."""

    def states(self) -> dict[int, bytes]:
        """Return partition id → serialised ``Context.state``."""
        ...

    def restore(self, states: dict[int, bytes]) -> None:
        """Undo `states`."""
        ...


@dataclass(frozen=True)
class Written:
    """What is on the disk of a federation's whole rounds.

    rows: how many of its rows; at: when it was written, on the monotonic clock; seconds: what that took
    """

    rows: int = 0
    at: float = -math.inf
    seconds: float = 0.0


@dataclass
class Federation:
    """One game's federation as the server sees it."""

    grid: Grid
    run: RunDirectory
    game: int
    scenario: Scenario
    parties: dict[int, str]  # partition id → name
    nodes: dict[int, int]  # partition id → node id
    strategy: Strategy
    rows: list[dict[str, Any]]
    earlier_games: pd.DataFrame | None
    round_started: float = 0.0
    whole: int = 0  # rows of whole rounds
    checkpoint: Checkpoint | None = None  # after the last of these, where the engine can hand out states
    written: Written = Written()

    @cached_property
    def _partitions(self) -> dict[int, int]:
        return {node: partition for partition, node in self.nodes.items()}

    def partition_of(self, message: Message) -> int:
        """Return the partition id that a reply comes from."""
        return self._partitions[message.metadata.src_node_id]


def ordered(weights: dict[str, np.ndarray]) -> ArrayRecord:
    """Pack a model by name: Flower's strategies go by position, and files have an order of their own."""
    return messages.to_arrays(dict(sorted(weights.items())))


def send(
    grid: Grid, content: RecordDict, nodes: Iterable[int], message_type: str, scenario: Scenario
) -> list[Message]:
    """Send the same content to all these nodes, and return the replies that come in time."""
    sent = [Message(content, node, message_type) for node in nodes]
    return ask(grid, sent, scenario.federation.timeout)


def _starting(grid: Grid, clients: int) -> float:
    """Return the seconds that the clients' processes are given to start, beside what they are asked for.

    Flower's engines start one for a message, and all at once; a client's own time would pass before it began.
    In the process engine it begins when the client's process is ready.
    """
    if isinstance(grid, KeepsStates):
        return 0.0
    return START_SECONDS * math.ceil(clients / (os.cpu_count() or 1))


def ask(grid: Grid, sent: list[Message], timeout: float) -> list[Message]:
    """Send messages, one to a node, and return the first reply of each node that was asked.

    Where a node is gone the SuperLink answers with an error in its own name: there the node sent no reply.
    A reply that is too large is replaced by an error, before anything makes arrays of it.
    """
    asked = {message.metadata.dst_node_id: message for message in sent}
    largest = {node: messages.largest_reply(message) for node, message in asked.items()}
    first: dict[int, Message] = {}
    for reply in grid.send_and_receive(sent, timeout=timeout + _starting(grid, len(sent))):
        node = reply.metadata.src_node_id
        if node in asked:
            first.setdefault(node, _of_size(reply, asked[node], largest[node]))
        else:
            log.warning("%s", reply.error.reason if reply.has_error() else f"node {node} was not asked")
    return list(first.values())


def _of_size(reply: Message, sent: Message, largest: float) -> Message:
    if reply.has_error() or (size := messages.size_of(reply.content)) <= largest:
        return reply
    return too_large(sent, f"{size:,}", largest)


def too_large(sent: Message, size: str, largest: float) -> Message:
    """Return the error that stands for a reply of ``size`` bytes, where ``largest`` is the most."""
    reason = f"{size} {messages.TOO_LARGE}, {largest:,.0f}"
    return Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, reason), reply_to=sent)
