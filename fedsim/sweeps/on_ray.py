"""A sweep's cells as Ray tasks, here or on a cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

from fedsim.core.cluster import cause_of, joined
from fedsim.core.imports import short
from fedsim.sweeps.cells import Cell, Report, attempt


def on_ray(cells: Sequence[Cell], workers: int, address: str | None) -> Generator[Report]:
    """Run the cells as Ray tasks of one core; yield reports as `in_processes` does.

    address: of a cluster, whose nodes share the sweep's folder and the data and have fedsim installed; None:
        a Ray of its own on this machine, with ``workers`` cores.

    Raises:
        InputError: there is no cluster at ``address``.
    """
    with joined(address, workers) as cluster:
        import ray

        ray_errors: Any = ray.exceptions.RayError
        remote = ray.remote(num_cpus=1, max_retries=0)(attempt)
        waiting = deque(cells)
        running: dict[Any, Cell] = {}
        try:
            while waiting or running:
                while waiting and len(running) < cluster.cores:
                    cell = waiting.popleft()
                    running[remote.remote(cell)] = cell
                    yield Report(cell.key, "running")
                for reference in ray.wait(list(running), timeout=0.5)[0]:
                    cell = running.pop(reference)
                    try:
                        yield ray.get(reference)
                    except ray_errors as error:
                        yield Report(cell.key, "failed", f"Ray: {short(cause_of(error))}")
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
