"""A sweep's cells as Ray tasks, here or on a cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from fedsim.core.errors import InputError
from fedsim.core.parallel import SINGLE_THREAD, environment
from fedsim.engines.settings import check_ray_address
from fedsim.sweeps.cells import Cell, Report, attempt


def on_ray(cells: Sequence[Cell], workers: int, address: str | None) -> Generator[Report]:
    """Run the cells as Ray tasks of one core; yield reports as `in_processes` does.

    address: of a cluster, whose nodes share the sweep's folder and the data and have fedsim installed; None:
        a Ray of its own on this machine, with ``workers`` cores.

    Raises:
        InputError: there is no cluster at ``address``.
    """
    if address is not None:
        check_ray_address(address)
    import ray

    ray_errors: Any = ray.exceptions.RayError
    _join_ray(ray, workers, address)
    remote = ray.remote(num_cpus=1, max_retries=0)(attempt)
    slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = deque(cells)
    running: dict[Any, Cell] = {}
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                cell = waiting.popleft()
                running[remote.remote(cell)] = cell
                yield Report(cell.key, "running")
            for reference in ray.wait(list(running), timeout=0.5)[0]:
                cell = running.pop(reference)
                try:
                    yield ray.get(reference)
                except ray_errors as error:
                    reason = str(error).strip().splitlines()[0]
                    yield Report(cell.key, "failed", f"Ray: {reason}")
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        ray.shutdown()


def _join_ray(ray: Any, workers: int, address: str | None) -> None:
    folders = {name: os.environ[name] for name in ("FEDSIM_CACHE", "FEDSIM_DATA") if name in os.environ}
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": {**SINGLE_THREAD, **folders}},
        "log_to_driver": False,
    }
    if address is None:
        options |= {"address": "local", "num_cpus": workers, "include_dashboard": False}
    else:
        options["address"] = address
    try:
        with environment(RAY_USAGE_STATS_ENABLED="0"):
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"--ray-address {address}: no Ray cluster answers there: {reason}") from error
