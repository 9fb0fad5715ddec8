"""What a person may choose about an engine, beside its name and the number of workers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineOptions:
    """What ``--engine ray`` may use, and the in-process engine for its shadows.

    ray_address: of an existing cluster, 'auto' for the one of this machine; None: Ray starts one, and the
        in-process engine needs none
    cpus_per_client, gpus_per_client: what Ray sets aside for one party's training
    """

    ray_address: str | None = None
    cpus_per_client: int = 1
    gpus_per_client: float = 0.0
