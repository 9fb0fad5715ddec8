"""The names of Flower that are not public, all in one place.

A custom ``Grid`` cannot do without them (flwr 1.41 and 1.42): a message takes its sender from the
process-wide task identity, a reply copies the id of the message it answers, and ``Context.state`` has no
public serialisation. Nor can a node that is to run its own app, not the one that a run brings, and to look
for work more than every three seconds; nor a SuperLink that is to refuse a request before it reads it, and a
server a reply before it holds all of it.
`tests/engines/test_flower_internals.py` fails loudly when an upgrade changes one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NoReturn

# Set before flwr is imported: nothing is sent anywhere and nothing is looked up.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsim.core.errors import plainly
from fedsim.core.patience import Patience

SERVER_NODE_ID = 1

_FIRST_BACKOFF = 0.02  # seconds, doubled with each look

GIVEN_UP = "fedsim: larger than a reply may be"
"""In the reason of the error that Flower's grid puts in place of a reply; see `pulling_at_most`."""


def assume_identity(run_id: int) -> None:
    """Let this process create messages of run ``run_id``."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE_ID
    TaskIdentity.task_id = 0


def empty_run(run_id: int) -> Run:
    """Return the description of a run without an app bundle."""
    return Run.create_empty(run_id)


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message the id that the SuperLink would give it."""
    message.metadata.__dict__["_message_id"] = message_id


def failure(message: Message, error: BaseException) -> Message:
    """Return the reply of a client that raised ``error``."""
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, plainly(error)), reply_to=message)


def to_bytes(state: RecordDict) -> bytes:
    """Serialise a ``Context.state``."""
    return recorddict_to_proto(state).SerializeToString(deterministic=True)


def from_bytes(state: bytes) -> RecordDict:
    """Undo `to_bytes`."""
    return recorddict_from_proto(ProtoRecordDict.FromString(state))


def import_client_runtime() -> None:
    """Import what `run_client_app` needs, before the process forks."""
    import flwr.supernode.cli.flwr_clientapp  # noqa: F401

    pull_soon()


def pull_soon() -> None:
    """Let Flower's functions in this process look sooner again for a piece of a message that is on its way.

    A message is announced before its pieces arrive, and whoever looks in between would wait for a second.
    """
    from flwr.supercore.inflatable import inflatable_utils

    for function in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        defaults = function.__kwdefaults__ or {}
        if "initial_backoff" not in defaults:
            raise ImportError(f"{function.__name__} of flwr has no initial_backoff any more")
        defaults["initial_backoff"] = _FIRST_BACKOFF


class TasksOfNode:
    """What a SuperNode on this machine has to be done, as Flower's SuperExec asks for it; port: its own."""

    def __init__(self, port: int) -> None:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
        from flwr.supercore.runtime import RuntimeHttpClient

        self.address = f"127.0.0.1:{port}"
        self._client = RuntimeHttpClient.from_server_address(
            self.address,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec")],
        )

    def take(self) -> str | None:
        """Return the token of a message to a ClientApp; None where there is none, or no SuperNode (yet).

        Other tasks are left alone. A run may ask for an AgentApp, for which SuperExec would start code that
        came with the run.
        """
        import httpx
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType

        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP]))
        except httpx.TransportError:
            return None
        return answer.token or None


def run_client_app(app: ClientApp) -> None:
    """Do what the command ``flwr-clientapp`` does with ``sys.argv``, but answer with ``app``.

    The app that the run brought is neither installed nor imported, nor are its dependencies.

    Raises:
        SystemExit: always, with the command's exit code.
    """
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp as runtime

    own: dict[str, Any] = {
        "install_from_fab": lambda *_, **__: None,
        "install_app_dependencies": lambda *_, **__: None,
        "get_load_client_app_fn": lambda **_: lambda *_: app,
    }
    for name, replacement in own.items():
        if not hasattr(runtime, name):  # or the app that came would be run, unnoticed
            raise ImportError(f"flwr.supernode.runtime.run_clientapp has no {name} any more")
        setattr(runtime, name, replacement)
    flwr_clientapp()


@contextmanager
def pulling_at_most(largest: float) -> Iterator[None]:
    """Let Flower's grid of a deployment give up a reply once its pieces hold more than ``largest`` bytes.

    It answers with an error in the SuperLink's name, whose reason holds `GIVEN_UP`.
    """
    from flwr.superlink.grid import http_grid

    pull_soon()
    pull_objects = http_grid.pull_objects

    def bounded(
        object_ids: list[str], pull_object_fn: Callable[[str], bytes], **options: Any
    ) -> dict[str, bytes]:
        sizes: list[int] = []

        def pull(object_id: str) -> bytes:
            content = pull_object_fn(object_id)
            sizes.append(len(content))  # whole before another thread looks
            if sum(sizes) > largest:
                raise http_grid.ObjectPullError(object_id, GIVEN_UP)
            return content

        return pull_objects(object_ids, pull, **options)

    http_grid.pull_objects = bounded
    try:
        yield
    finally:
        http_grid.pull_objects = pull_objects


def run_superlink(guard: Callable[[Any], Any]) -> None:
    """Do what the command ``flower-superlink`` does with ``sys.argv``, behind an ASGI middleware of ours.

    guard: called with the application that it is to stand before
    """
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    if not hasattr(extensions, "get_middleware"):  # or all would be let in, unnoticed
        raise ImportError("flwr.superlink.extensions has no get_middleware any more")
    extensions.get_middleware = lambda: (Middleware(guard),)
    flower_superlink()


def import_supernode() -> None:
    """Import what `run_supernode` needs, before the process forks."""
    import flwr.supernode.cli.flower_supernode
    import flwr.supernode.main  # noqa: F401


def run_supernode() -> NoReturn:
    """Do what the command ``flower-supernode`` does with ``sys.argv``, but look for work more often.

    Flower's sleeps for three seconds whenever its server had no message, and for half a second whenever there
    was no reply yet: most of a round. Here that is the longest that it sleeps (`Patience`).

    Raises:
        SystemExit: always, with the command's exit code.
    """
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    patience: dict[float, Patience] = {}

    def sleep(seconds: float) -> None:
        if seconds not in patience:  # it waits for something else than before
            patience.clear()
            patience[seconds] = Patience(seconds / 30, seconds)
        patience[seconds].wait()

    runtime: Any = start_client_internal
    if not hasattr(runtime, "time"):
        raise ImportError("flwr.supernode.start_client_internal has no time any more")
    runtime.time = SimpleNamespace(sleep=sleep)
    pull_soon()
    flower_supernode()
    raise SystemExit(0)
