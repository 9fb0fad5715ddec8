"""One test that fails loudly when an upgrade of Flower changes a name that is not public."""

from __future__ import annotations

import inspect
import re
import sys
import threading
import time
from importlib.metadata import version

import pytest
import uvicorn
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsim.engines import flower_cli, flower_internals


def test_what_a_grid_of_ones_own_needs_from_flower() -> None:
    flower_internals.assume_identity(run_id=5)
    message = Message(RecordDict(), 3, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (5, flower_internals.SERVER_NODE_ID)
    flower_internals.set_message_id(message, "m1")
    reply = flower_internals.failure(message, ValueError("broken"))
    assert reply.metadata.reply_to_message_id == "m1" and reply.metadata.src_node_id == 3
    assert reply.error.reason == "ValueError: broken"
    assert flower_internals.empty_run(5).run_id == 5


def test_a_state_survives_serialisation() -> None:
    state = RecordDict(
        {
            "ledger": ConfigRecord({"noise_multiplier": [1.0, 0.5], "steps": [3, 4], "name": "x"}),
            "metrics": MetricRecord({"a": 1, "b": 0.1}),
            "arrays": ArrayRecord(),
        }
    )
    again = flower_internals.from_bytes(flower_internals.to_bytes(state))
    assert dict(again.config_records["ledger"]) == dict(state.config_records["ledger"])
    assert dict(again.metric_records["metrics"]) == {"a": 1, "b": 0.1}


def test_the_version_is_one_that_was_tried() -> None:
    """An upgrade of Flower fails here first: run the tests of all engines, then name it."""
    assert version("flwr").rsplit(".", 1)[0] in ("1.41", "1.42")


def test_a_node_can_put_its_own_app_in_place_of_the_one_that_came(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.clientapp import ClientApp
    from flwr.supernode.runtime import run_clientapp as runtime

    names = ("install_from_fab", "install_app_dependencies", "get_load_client_app_fn")
    for name in names:
        monkeypatch.setattr(runtime, name, getattr(runtime, name))
    flower_internals.import_client_runtime()
    command = sys.modules["flwr.supernode.cli.flwr_clientapp"]
    monkeypatch.setattr(command, "flwr_clientapp", lambda: None)
    own = ClientApp()
    flower_internals.run_client_app(own)
    load = runtime.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    assert load("fab", "1.0", "hash") is own
    source = inspect.getsource(runtime.run_clientapp)  # which calls them by these names, and no others
    assert all(f"{name}(" in source for name in names)


def test_a_node_can_look_for_work_more_often() -> None:
    from flwr.supernode import start_client_internal

    calls = set(re.findall(r"\btime\.\w+\([^)]*\)", inspect.getsource(start_client_internal)))
    assert calls == {"time.sleep(3)", "time.sleep(0.5)"}  # which `run_supernode` puts its own in place of


def test_a_piece_that_is_not_there_yet_is_looked_for_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.inflatable import inflatable_utils as utils

    for function in (utils.pull_objects, utils.pull_and_inflate_object_from_tree):
        monkeypatch.setattr(function, "__kwdefaults__", dict(function.__kwdefaults__ or {}))
    flower_internals.pull_soon()
    asked: list[str] = []

    def pull(object_id: str) -> bytes:
        asked.append(object_id)
        if len(asked) < 3:
            raise utils.ObjectUnavailableError(object_id)
        return b"there"

    started = time.monotonic()
    assert utils.pull_objects(["piece"], pull) == {"piece": b"there"}
    assert time.monotonic() - started < 0.9, "Flower's own waits for a second, then for two"


def test_a_node_takes_messages_to_its_client_app_and_no_app_that_a_run_brings() -> None:
    from flwr.supercore.constant import TaskType
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.main import create_app
    from flwr.supernode.nodestate import NodeStateFactory

    factory = NodeStateFactory(ObjectStoreFactory())
    [port] = flower_cli.free_ports(1)
    tasks = flower_internals.TasksOfNode(port)
    assert tasks.take() is None  # no SuperNode is there yet
    server = uvicorn.Server(uvicorn.Config(create_app(factory), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        state = factory.state()
        state.create_task(TaskType.AGENT_APP, run_id=1, fab_hash="brought along")
        assert tasks.take() is None
        number = state.create_task(TaskType.CLIENT_APP, run_id=1, fab_hash="brought along")
        token = tasks.take()
        assert token
        task = state.get_task_by_token(token)
        assert task is not None and task.task_id == number
        assert tasks.take() is None  # each is taken once
    finally:
        server.should_exit = True
        thread.join()
