"""A Ray cluster as a place for tasks: joined for a while, and what a lost worker was doing is done again.

A task is a function of its arguments alone, so where and how often it runs cannot change its value. What can
is the processor: a cluster gives the bits of one machine where its nodes are of one kind.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fedsim.core.errors import FedsimError, InputError, suggestion
from fedsim.core.parallel import SINGLE_THREAD, Outcome, WorkerDied, environment

ATTEMPTS = 4
"""Times that a task is given to a worker before its loss is the task's own fault, such as want of memory."""

_NAMED = ("auto", "local")
_POLL_SECONDS = 0.5  # between looks at what is done: Ctrl-C is heard in between


def check_address(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would wait for minutes.

    Raises:
        InputError: nothing does, it is no address, or Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError("--ray-address needs Ray; install it with: pip install 'fedsim[ray]'")
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        if address not in _NAMED:
            raise InputError(
                f"--ray-address {address}: neither HOST:PORT, ray://HOST:PORT nor 'auto'"
                f"{suggestion(address, _NAMED)}"
            )
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(f"--ray-address {address}: no Ray cluster answers there: {error}") from error


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process has joined; cores and machines: how many it has now."""

    cores: int
    machines: int

    def run(
        self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], shared: tuple[Any, ...] = ()
    ) -> Generator[Outcome]:
        """Yield what becomes of every ``function(*shared, *task)``, as `parallel.Workers.run` does.

        The tasks are a core's each. What a task raises is its outcome; one whose worker or node is lost is
        done again, `ATTEMPTS` times in all. Tasks that nobody waits for any more are ended.

        function: importable on the nodes; shared: sent to each of them once
        """
        import ray

        # Ray's own retries know no end where memory runs out, and say nothing.
        remote = ray.remote(num_cpus=1, max_retries=0)(function)
        common = [ray.put(value) for value in shared]
        attempts = [0] * len(tasks)
        waiting, running = deque(range(len(tasks))), dict[Any, int]()
        try:
            while waiting or running:
                while waiting and len(running) < self.cores:
                    number = waiting.popleft()
                    attempts[number] += 1
                    running[remote.remote(*common, *tasks[number])] = number
                    if attempts[number] == 1:
                        yield Outcome(number, "started")
                for reference in ray.wait(list(running), timeout=_POLL_SECONDS)[0]:
                    number = running.pop(reference)
                    outcome = _outcome_of(number, reference)
                    if isinstance(outcome.error, WorkerDied) and attempts[number] < ATTEMPTS:
                        logging.getLogger("fedsim").warning("%s; it is done again", outcome.error)
                        waiting.appendleft(number)
                    else:
                        yield outcome
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _outcome_of(number: int, reference: Any) -> Outcome:
    import ray

    ray_error: Any = ray.exceptions.RayError
    try:
        return Outcome(number, "done", ray.get(reference))
    except ray_error as error:
        return Outcome(number, "failed", error=cause_of(error))


def cause_of(error: Exception) -> BaseException:
    """Return what a task of Ray's raised, or `WorkerDied` where its worker was lost."""
    import ray

    if not isinstance(error, ray.exceptions.RayTaskError):
        why = f"{type(error).__name__}: {_first_line(error)}".rstrip(".")
        return WorkerDied(f"a worker of the cluster was lost: {why}")
    cause: BaseException | None = getattr(error, "cause", None)
    return cause or FedsimError(str(error).strip().rpartition("\n")[2])  # the last line of its trace


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


_here: str | None = None
"""Address that `joined` is at."""


@contextlib.contextmanager
def on_cluster(address: str | None) -> Iterator[Cluster | None]:
    """Join the cluster at ``address``, unless that is done already; None: nothing.

    Workers belong to who has joined and import torch first: stay for all that is asked of them.

    Raises:
        InputError: there is no cluster at ``address``.
    """
    if address is None:
        yield None
    elif address == _here:
        yield _size()
    else:
        with joined(address) as cluster:
            yield cluster


@contextlib.contextmanager
def joined(address: str | None, cores: int = 1) -> Iterator[Cluster]:
    """Join the cluster at ``address``, or with None one of its own on this machine with ``cores``; leave it.

    The nodes have fedsim installed; folders that FEDSIM_CACHE and FEDSIM_DATA name are theirs as well.

    Raises:
        InputError: there is no cluster at ``address``.
    """
    global _here
    if address is not None:
        check_address(address)
    import ray

    folders = {name: os.environ[name] for name in ("FEDSIM_CACHE", "FEDSIM_DATA") if name in os.environ}
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {**SINGLE_THREAD, **folders}},
        "log_to_driver": False,
        "logging_level": logging.WARNING,
    }
    if address is None:
        options |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
    else:
        options["address"] = address
    try:
        with environment(RAY_USAGE_STATS_ENABLED="0"):
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"--ray-address {address}: no Ray cluster answers there: {_first_line(error)}"
        ) from error
    _here = address
    try:
        yield _size()
    finally:
        _here = None
        ray.shutdown()


def _size() -> Cluster:
    import ray

    machines = sum(node["Alive"] for node in ray.nodes())
    return Cluster(max(1, int(ray.cluster_resources().get("CPU", 1))), max(1, machines))
