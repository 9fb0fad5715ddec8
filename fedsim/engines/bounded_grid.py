"""The server's grid on Flower's deployment engine, which takes no more of a reply than a reply may hold."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from clients.messages import largest_reply
from fedsim.engines import flower_internals
from fedsim.server.federation import too_large


class BoundedGrid(Grid):
    """Another grid, on which a reply is given up as soon as it is larger than `clients.messages` allows.

    Flower's own takes the pieces of a reply from the SuperLink, where they lie on the disk, until it has all.
    """

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
            replies = list(self._grid.send_and_receive(sent, timeout=timeout))
        by_id = {message.metadata.message_id: message for message in sent}
        return [_named(reply, by_id, largest) for reply in replies]


def _named(reply: Message, sent: dict[str, Message], largest: float) -> Message:
    """Return an error of the node that was asked, where Flower's own stands for a reply that was given up."""
    if not reply.has_error() or flower_internals.GIVEN_UP not in (reply.error.reason or ""):
        return reply
    return too_large(sent[reply.metadata.reply_to_message_id], "its", largest)
