"""The server's grid on Flower's own engines: it looks for replies often, and takes what one may hold."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from clients.messages import largest_reply
from fedsim.core.patience import Patience
from fedsim.engines import flower_internals
from fedsim.server.federation import too_large


class BoundedGrid(Grid):
    """Another grid, on which a reply is given up as soon as it is larger than `clients.messages` allows.

    Flower's own takes the pieces of a reply from the SuperLink, where they lie on the disk, until it has all,
    and looks for replies every three seconds.
    """

    SHORTEST, LONGEST = 0.05, 3.0
    """Seconds between two looks for replies; the second is Flower's."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids of all parties."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages; the replies wait to be pulled."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver messages and return the replies; an error of its node stands for one that is too large."""
        sent = list(messages)
        largest = max(map(largest_reply, sent), default=0.0)
        with flower_internals.pulling_at_most(largest):
            replies = self._replies(sent, math.inf if timeout is None else timeout)
        by_id = {message.metadata.message_id: message for message in sent}
        return [_named(reply, by_id, largest) for reply in replies]

    def _replies(self, sent: list[Message], timeout: float) -> list[Message]:
        waiting, replies = set(self._grid.push_messages(sent)), list[Message]()
        deadline, patience = time.monotonic() + timeout, Patience(self.SHORTEST, self.LONGEST)
        while waiting:
            late = time.monotonic() >= deadline
            came = list(self._grid.pull_messages(waiting))
            replies += came
            waiting -= {reply.metadata.reply_to_message_id for reply in came}
            if late:
                break
            if waiting:
                patience.wait(deadline - time.monotonic())
        return replies


def _named(reply: Message, sent: dict[str, Message], largest: float) -> Message:
    """Return an error of the node that was asked, where Flower's own stands for a reply that was given up."""
    if not reply.has_error() or flower_internals.GIVEN_UP not in (reply.error.reason or ""):
        return reply
    return too_large(sent[reply.metadata.reply_to_message_id], "its", largest)
