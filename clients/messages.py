"""What the messages between server and parties hold, packed and unpacked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict


def to_arrays(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Pack named arrays, such as a model's weights."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def to_numpy(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    """Undo `to_arrays`."""
    return {name: array.numpy() for name, array in arrays.items()}


def global_model(message: Message) -> dict[str, np.ndarray]:
    """Return the weights that the server sent, read-only.

    In one process all parties are sent the same record object, which is unpacked once.
    """
    global _unpacked
    arrays = message.content.array_records["arrays"]
    if _unpacked is None or _unpacked[0] is not arrays:
        _unpacked = arrays, to_numpy(arrays)
        for array in _unpacked[1].values():
            array.flags.writeable = False
    return _unpacked[1]


_unpacked: tuple[ArrayRecord, dict[str, np.ndarray]] | None = None


def server_round(message: Message) -> int:
    """Return the round that the server's message belongs to; 0 before training."""
    return int(cast(int, message.content.config_records["config"]["server-round"]))


def proximal_mu(message: Message) -> float:
    """Return FedProx's μ, which its strategy puts into the message; 0 for any other strategy."""
    return float(cast(float, message.content.config_records["config"].get("proximal-mu", 0.0)))


def numbers(metrics: MetricRecord) -> dict[str, float]:
    """Return scalar metrics as floats."""
    return {name: float(cast(float, value)) for name, value in metrics.items()}


def metrics(values: Mapping[str, float | int]) -> MetricRecord:
    """Pack scalar metrics."""
    return MetricRecord(dict(values))


def refusal(reason: str) -> RecordDict:
    """Answer that a party will not train, and why."""
    return RecordDict({"refusal": ConfigRecord({"reason": reason})})
