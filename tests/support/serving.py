"""A served model on a free port of this machine, for the tests of the service and of who asks it."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.serving import keys, service
from fedsim.serving.app import Service, Settings, create
from fedsim.serving.keys import Limits
from support.runs import finished_run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette's own client prefers a successor of httpx
    from starlette.testclient import TestClient

ROW: dict[str, Any] = {"age": 60.5, "pressure": 131, "ward": "A"}


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def a_run(folder: Path) -> RunDirectory:
    """Three hospitals, one of them with DP-SGD, and one quick attack."""
    return finished_run(folder, dp={"hospital-2": {"epsilon": 8.0}}, adversary={"attacks": ["loss"]})


def opened(run: RunDirectory, clock: Clock | None = None, seed: int | None = 5, **settings: Any) -> Service:
    made = service.opened(run, Settings(**settings), seed=seed)
    if clock is not None:
        made.clock = clock
    return made


def new_key(made: Service, name: str = "clinic", policy: str = "full", **rest: Any) -> str:
    """The text of a new key; ``rest``: settings of the policy, limits, expiry and role."""
    limits = {key: rest.pop(key) for key in ("per_minute", "queries", "epsilon_budget") if key in rest}
    if "epsilon_budget" in limits:
        limits["epsilon"] = limits.pop("epsilon_budget")
    about = {key: rest.pop(key) for key in ("role", "expires") if key in rest}
    told = OutputPolicy(policy=policy, **rest)  # type: ignore[arg-type]
    limited = Limits(**{"per_minute": None, **limits})
    return keys.add(made.database, made.secret, name, told, limited, made.clock(), **about)[1]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def in_memory(made: Service) -> TestClient:
    """A client without a socket; what fails in the service is answered as it would be over one."""
    return TestClient(create(made), raise_server_exceptions=False)


@contextlib.contextmanager
def listening(made: Service) -> Iterator[str]:
    """Serve on a free port in a thread; yields the address."""
    told: list[Any] = []
    ready = threading.Event()

    def note(*said: Any) -> None:
        told.extend(said)
        ready.set()

    thread = threading.Thread(target=service.serve, args=(made, "127.0.0.1", 0, note))
    thread.start()
    try:
        assert ready.wait(20), "the service did not start"
        yield told[0]
    finally:
        told[1]()
        thread.join(20)
