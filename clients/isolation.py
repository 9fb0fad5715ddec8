"""A client whose own code ends or hangs its process loses its own reply alone, where clients share processes.

Flower's simulation gives a process (a Ray actor) to one client after another, and goes on asking one that has
died. There (`ISOLATE`) a person's own code runs in a process of its own below the actor, which is ended when
it hangs and replaced when it dies; the in-process engine has such processes itself.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from clients.messages import ATTACK
from clients.party import run_folder
from clients.warm_up import warm_up
from fedsim.core.errors import plainly
from fedsim.core.parallel import Workers
from fedsim.core.run_directory import RunDirectory

ISOLATE = "FEDSIM_ISOLATE"
"""Environment variable: '1' where clients need processes of their own."""


def wanted() -> bool:
    """Return whether clients need processes of their own here."""
    return os.environ.get(ISOLATE) == "1"


def contained(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Call the client; whatever it raises, SystemExit too, becomes its error reply (a Flower mod)."""
    try:
        return _answer_apart(message, context) if wanted() else call_next(message, context)
    except (Exception, SystemExit) as error:
        logging.getLogger("fedsim").debug("client %s raised", context.node_config, exc_info=error)
        reason = plainly(error)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def _answer_apart(message: Message, context: Context) -> Message:
    folder = run_folder(context)
    scenario = RunDirectory.open(folder).scenario
    attacks = message.metadata.message_type == ATTACK
    timeout = scenario.adversary.timeout if attacks else scenario.federation.timeout
    if folder not in _workers:
        start_worker(folder)
    [(reply, state)] = _workers[folder].map(_answer, [(message, context)], timeout)
    context.state = state
    answer: Message = reply
    return answer


_workers: dict[Path, Workers] = {}


def start_worker(folder: Path, forked: bool = False) -> None:
    """Have a worker for the parties of a run, which ends with this process.

    forked: whether it is a copy of this process, which has no threads yet
    """
    _workers[folder] = Workers(1, functools.partial(_begin, folder), forked).__enter__()


def _begin(folder: Path) -> None:
    os.environ.pop(ISOLATE)
    from clients import client_app  # noqa: F401

    warm_up(RunDirectory.open(folder).scenario)


def _answer(message: Message, context: Context) -> tuple[Message, RecordDict]:
    from clients.client_app import app

    return app(message, context), context.state
