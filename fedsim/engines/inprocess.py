"""The default engine: a Flower grid that calls the ClientApp directly, without Ray or network.

With ``workers > 1`` the messages of a round are spread over a persistent pool of processes. A client's
answer depends only on its message, its context and its own records, so the number of
workers cannot change a single bit of the result.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim.engines import flower_internals as internals  # before any other import of flwr

from flwr.app import Context, Message, RecordDict, UserConfig  # isort: skip
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedsim.core.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN_ID = 1
ClientApp = Callable[[Message, Context], Message]


def run_game(run: RunDirectory, game: int, workers: int = 1) -> None:
    """Run one game of ``run`` in this process, with ``workers`` processes for the parties."""
    import torch

    from fedsim.server import server_app

    torch.set_num_threads(1)
    _quiet_flower()
    with InProcessGrid(run.path, game, run.scenario.parties.count or 0, workers) as grid:
        context = Context(RUN_ID, internals.SERVER_NODE_ID, {}, RecordDict(), grid.run_config)
        server_app.app(grid, context)


class InProcessGrid(Grid):
    """Flower's Grid over clients that live in this process or in a pool of processes."""

    def __init__(
        self, run: Path, game: int, parties: int, workers: int = 1, client_app: ClientApp | None = None
    ) -> None:
        internals.assume_identity(RUN_ID)
        self.run_config: UserConfig = {"run": str(run), "game": game}
        self._run = internals.empty_run(RUN_ID)
        self._contexts = {
            internals.SERVER_NODE_ID + 1 + partition: self._new_context(partition, parties)
            for partition in range(parties)
        }
        self._message_numbers = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._client_app = client_app
        self._pool = _new_pool(min(workers, parties)) if workers > 1 else None

    def _new_context(self, partition: int, parties: int) -> Context:
        node_config: UserConfig = {"partition-id": partition, "num-partitions": parties}
        node_id = internals.SERVER_NODE_ID + 1 + partition
        return Context(RUN_ID, node_id, node_config, RecordDict(), self.run_config)

    def __enter__(self) -> InProcessGrid:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()  # whatever a worker is still doing, nobody waits for it any more
            self._pool.shutdown(wait=True, cancel_futures=True)

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
        """Deliver messages and return the replies; one that took longer than ``timeout`` is lost."""
        numbered = list(messages)
        for message in numbered:
            internals.set_message_id(message, str(next(self._message_numbers)))
        if self._pool is None:
            return self._answer_here(numbered, timeout)
        return self._answer_in_pool(numbered, timeout)

    # --------------------------------------------------------------- delivery
    def _answer_here(self, messages: list[Message], timeout: float | None) -> list[Message]:
        app = self._client_app or _client_app()
        replies = []
        for message in messages:
            started = time.monotonic()
            reply = answer(app, message, self._contexts[message.metadata.dst_node_id])
            if timeout is None or time.monotonic() - started <= timeout:
                replies.append(reply)
        return replies

    def _answer_in_pool(self, messages: list[Message], timeout: float | None) -> list[Message]:
        assert self._pool is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        futures: list[Future[tuple[Message, Context]]] = [
            self._pool.submit(_answer_in_worker, message, self._contexts[message.metadata.dst_node_id])
            for message in messages
        ]
        replies = []
        for message, future in zip(messages, futures, strict=True):
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                reply, context = future.result(left)
            except FutureTimeout:
                future.cancel()
                continue
            self._contexts[message.metadata.dst_node_id] = context
            replies.append(reply)
        return replies

    # ----------------------------------------------------------------- resume
    def states(self) -> dict[int, bytes]:
        """Return partition id → serialised ``Context.state``."""
        return {
            int(context.node_config["partition-id"]): internals.to_bytes(context.state)
            for context in self._contexts.values()
        }

    def restore(self, states: dict[int, bytes]) -> None:
        """Undo `states`."""
        for context in self._contexts.values():
            state = states.get(int(context.node_config["partition-id"]))
            if state is not None:
                context.state = internals.from_bytes(state)


def answer(app: ClientApp, message: Message, context: Context) -> Message:
    """Call the client; an exception becomes Flower's error reply, as on the other engines."""
    try:
        return app(message, context)
    except Exception as error:
        logging.getLogger("fedsim").debug("client %s raised", context.node_config, exc_info=error)
        return internals.failure(message, error)


# --------------------------------------------------------------------- workers
def _new_pool(workers: int) -> ProcessPoolExecutor:
    """Return a pool of single-threaded processes that have the ClientApp imported."""
    with environment(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1"):
        pool = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
        )
        for _ in range(workers):
            pool.submit(os.getpid)  # start all processes while the environment is set
    return pool


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables for the processes that the body starts."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    internals.assume_identity(RUN_ID)
    _quiet_flower()
    _client_app()


def _client_app() -> ClientApp:
    from clients.client_app import app

    return app


def _answer_in_worker(message: Message, context: Context) -> tuple[Message, Context]:
    return answer(_client_app(), message, context), context


def _quiet_flower() -> None:
    """Flower logs every step of a strategy; the run's own table says it better."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
