"""The default engine: a Flower grid that calls the ClientApp directly, without Ray or network.

Clients run in this process, or in a pool of processes (`fedsim.core.parallel`): where there are several
workers, and always where a client runs a person's own code, which may hang or take its process along. There a
client that takes too long, exits or is killed costs its own reply and no other. A client's answer depends
only on its message, its context and its own records: the number of workers cannot change a bit of the result.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from fedsim.engines import flower_internals  # before any other import of flwr

from flwr.app import Context, Message, RecordDict, UserConfig  # isort: skip
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from clients import node
from clients.warm_up import warm_up
from fedsim.core.parallel import Outcome, TaskLate, Workers
from fedsim.core.run_directory import RunDirectory
from fedsim.engines.own_code import runs_own_code

RUN_ID = 1
ClientApp = Callable[[Message, Context], Message]


def run_game(run: RunDirectory, game: int, workers: int = 1, cluster: str | None = None) -> None:
    """Run one game of ``run``, with ``workers`` processes for the parties.

    cluster: address of a Ray cluster for the malicious party's shadows

    One worker is this process, unless a person's own code runs in it: that gets a process of its own.
    """
    import torch

    from fedsim.server import server_app

    torch.set_num_threads(1)
    quiet_flower()
    processes = workers if workers > 1 or runs_own_code(run.scenario) else 0
    with InProcessGrid(run.path, game, run.scenario.parties.count or 0, processes, cluster=cluster) as grid:
        context = Context(RUN_ID, flower_internals.SERVER_NODE_ID, {}, RecordDict(), grid.run_config)
        server_app.app(grid, context)


class InProcessGrid(Grid):
    """Flower's Grid over clients that live in this process or in a pool of processes.

    workers: processes for the clients; 0 to run them in this one
    client_app: instead of fedsim's own, in this process only
    cluster: what their `node.CLUSTER` says, None for nothing
    """

    def __init__(
        self,
        run: Path,
        game: int,
        parties: int,
        workers: int = 0,
        client_app: ClientApp | None = None,
        cluster: str | None = None,
    ) -> None:
        flower_internals.assume_identity(RUN_ID)
        self.run_config: UserConfig = {"run": str(run), "game": game}
        self._path = run
        self._run = flower_internals.empty_run(RUN_ID)
        self._contexts = {
            flower_internals.SERVER_NODE_ID + 1 + partition: self._new_context(partition, parties, cluster)
            for partition in range(parties)
        }
        self._message_numbers = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._client_app = client_app
        start = functools.partial(_start_worker, run)
        self._pool = Workers(min(workers, parties), start) if workers else None
        self._warm = False

    def _new_context(self, partition: int, parties: int, cluster: str | None) -> Context:
        node_config: UserConfig = {"partition-id": partition, "num-partitions": parties}
        if cluster is not None:
            node_config[node.CLUSTER] = cluster
        node_id = flower_internals.SERVER_NODE_ID + 1 + partition
        return Context(RUN_ID, node_id, node_config, RecordDict(), self.run_config)

    def __enter__(self) -> InProcessGrid:
        if self._pool is not None:
            self._pool.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.__exit__(*exception)

    # ---------------------------------------------------------- Flower's Grid
    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

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
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver messages; the replies wait to be pulled."""
        pushed = list(messages)
        for reply in self.send_and_receive(pushed):
            self._replies[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Deliver messages and return the replies, in the messages' order.

        timeout: seconds for each client; a reply that took longer is lost, and the client's process is ended
        """
        numbered = list(messages)
        for message in numbered:
            flower_internals.set_message_id(message, str(next(self._message_numbers)))
        if self._pool is None:
            return self._answer_here(numbered, timeout)
        return self._answer_in_pool(self._pool, numbered, timeout)

    # --------------------------------------------------------------- delivery
    def _answer_here(self, messages: list[Message], timeout: float | None) -> list[Message]:
        app = self._client_app or _client_app()
        if not self._warm:
            warm_up(RunDirectory.open(self._path).scenario)
            self._warm = True
        replies = []
        for message in messages:
            started = time.monotonic()
            reply = answer(app, message, self._contexts[message.metadata.dst_node_id])
            if timeout is None or time.monotonic() - started <= timeout:
                replies.append(reply)
        return replies

    def _answer_in_pool(self, pool: Workers, messages: list[Message], timeout: float | None) -> list[Message]:
        contexts = [self._contexts[message.metadata.dst_node_id] for message in messages]
        tasks = list(zip(messages, contexts, strict=True))
        replies: dict[int, Message] = {}
        for outcome in pool.run(_answer_in_worker, tasks, timeout):
            if outcome.state == "done":
                reply, context = outcome.value
                self._contexts[messages[outcome.number].metadata.dst_node_id] = context
                replies[outcome.number] = reply
            elif outcome.state == "failed" and not isinstance(outcome.error, TaskLate):
                replies[outcome.number] = _failure(messages[outcome.number], outcome)
        return [replies[number] for number in sorted(replies)]

    # ----------------------------------------------------------------- resume
    def states(self) -> dict[int, bytes]:
        """Return partition id → serialised ``Context.state``."""
        return {
            int(context.node_config["partition-id"]): flower_internals.to_bytes(context.state)
            for context in self._contexts.values()
        }

    def restore(self, states: dict[int, bytes]) -> None:
        """Undo `states`."""
        for context in self._contexts.values():
            state = states.get(int(context.node_config["partition-id"]))
            if state is not None:
                context.state = flower_internals.from_bytes(state)


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Call the client; what it raises, SystemExit too, becomes Flower's error reply."""
    try:
        return app(message, context)
    except (Exception, SystemExit) as error:
        logging.getLogger("fedsim").debug("client %s raised", context.node_config, exc_info=error)
        return flower_internals.failure(message, error)


def _failure(message: Message, outcome: Outcome) -> Message:
    assert outcome.error is not None
    return flower_internals.failure(message, outcome.error)


# --------------------------------------------------------------------- workers
def _start_worker(run: Path) -> None:
    flower_internals.assume_identity(RUN_ID)
    quiet_flower()
    _client_app()
    warm_up(RunDirectory.open(run).scenario)


def _client_app() -> ClientApp:
    from clients.client_app import app

    return app


def _answer_in_worker(message: Message, context: Context) -> tuple[Message, Context]:
    return answer(_client_app(), message, context), context


def quiet_flower() -> None:
    """Flower logs every step of a strategy; the run's own table says it better."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
