"""What a person may choose about an engine, beside its name and the number of workers."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from fedsim.core.errors import InputError, suggestion

_NAMED = ("auto", "local")


@dataclass(frozen=True)
class EngineOptions:
    """What ``--engine ray`` may use.

    ray_address: of an existing cluster, 'auto' for the one of this machine; None to start one
    cpus_per_client, gpus_per_client: what Ray sets aside for one party's training
    """

    ray_address: str | None = None
    cpus_per_client: int = 1
    gpus_per_client: float = 0.0


def check_ray_address(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself would wait for minutes.

    Raises:
        InputError: nothing does, or it is no address.
    """
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
