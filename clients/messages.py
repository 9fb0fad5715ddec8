"""What the messages between server and parties hold, packed and unpacked in one place."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

NORM_BIT = "norm_bit"
"""Flower's name for the metric 'my update was clipped', which adaptive clipping at the parties asks for."""
CLIPPING_NORM = "clipping_norm"
"""Flower's name for the norm in the server's message, where the parties clip."""

ATTACK = "query.attack"
"""Type of the message that asks the malicious party for its findings."""

TOO_LARGE = "bytes are more than a reply may hold"
"""What is said of a reply beyond `largest_reply`."""

_BESIDE_THE_MODEL = 1024**2


def to_arrays(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Pack named arrays, such as a model's weights."""
    return ArrayRecord({name: _pack(np.asarray(array, order="C")) for name, array in arrays.items()})


def to_numpy(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    """Undo `to_arrays`; the arrays are read-only."""
    return {name: _unpack(array) for name, array in arrays.items()}


def _pack(array: np.ndarray) -> Array:
    """Do what ``Array(array)`` does, with the .npy header of this dtype and shape written only once."""
    data = _npy_header(array.dtype.str, array.shape) + array.tobytes()
    return Array(dtype=str(array.dtype), shape=array.shape, stype=_NPY, data=data)


def _unpack(array: Array) -> np.ndarray:
    """Do what ``array.numpy()`` does, without parsing the header of an array that `_pack` could have made."""
    header = _npy_header(np.dtype(array.dtype).str, tuple(array.shape))
    if array.stype != _NPY or not array.data.startswith(header):
        return array.numpy()
    return np.frombuffer(array.data, dtype=array.dtype, offset=len(header)).reshape(array.shape)


def payload_flaw(array: Array) -> str:
    """Return why an array's bytes are not the numbers it says they are, '' where they are.

    Whoever sent it may have written anything: before this is known nothing is unpickled, and no memory set
    aside for what a header claims.
    """
    try:
        dtype, shape = np.dtype(array.dtype), tuple(array.shape)
    except (TypeError, ValueError):
        return "has a dtype that is none"
    if array.stype != _NPY or dtype.kind not in "fiu":
        return f"holds {dtype} in the format '{array.stype}', not numbers in '{_NPY}'"
    stream = io.BytesIO(array.data)
    try:
        read_header = _NPY_HEADERS[np.lib.format.read_magic(stream)]
        written_shape, _, written_dtype = read_header(stream)
    except (KeyError, ValueError, SyntaxError, TypeError):
        return "is no .npy file"
    if (written_shape, written_dtype) != (shape, dtype):
        return f"holds {written_dtype} of shape {written_shape} and says {dtype} of shape {shape}"
    promised, there = math.prod(shape) * dtype.itemsize, len(array.data) - stream.tell()
    return "" if there == promised else f"holds {there} bytes, not {promised}"


def size_of(content: RecordDict) -> int:
    """Return the bytes of arrays, texts and numbers that a message holds, with their names."""
    parts: list[tuple[str, object]] = []
    for arrays in content.array_records.values():
        parts += [(name, array.data) for name, array in arrays.items()]
    for configured in content.config_records.values():
        parts += configured.items()
    for measured in content.metric_records.values():
        parts += measured.items()
    return sum(len(name) + _size(value) for name, value in parts)


def _size(value: object) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str | bytes) else 8


def largest_reply(message: Message) -> float:
    """Return the bytes that a reply may hold: twice those that it answers, a model, and 1 MiB.

    The adversary's findings go with candidates and attacks, and are asked for in simulations alone.
    """
    if message.metadata.message_type == ATTACK:
        return math.inf
    return 2 * size_of(message.content) + _BESIDE_THE_MODEL


@lru_cache(maxsize=1024)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


_NPY = "numpy.ndarray"
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def global_model(message: Message) -> dict[str, np.ndarray]:
    """Return the weights that the server sent."""
    return to_numpy(message.content.array_records["arrays"])


def server_round(message: Message) -> int:
    """Return the round that the server's message belongs to; 0 before training."""
    return int(cast(int, message.content.config_records["config"]["server-round"]))


def proximal_mu(message: Message) -> float:
    """Return FedProx's μ, which its strategy puts into the message; 0 for any other strategy."""
    return float(cast(float, message.content.config_records["config"].get("proximal-mu", 0.0)))


def clipping_norm(message: Message) -> float | None:
    """Return the norm to which the server asks parties to clip their updates, None where it asks for none."""
    norm = message.content.config_records["config"].get(CLIPPING_NORM)
    return None if norm is None else float(cast(float, norm))


def workers(message: Message) -> int:
    """Return the number of processes that the engine grants a party for heavy work."""
    return int(cast(int, message.content.config_records["config"].get("workers", 1)))


def numbers(metrics: MetricRecord) -> dict[str, float]:
    """Return scalar metrics as floats."""
    return {name: float(cast(float, value)) for name, value in metrics.items()}


def metrics(values: Mapping[str, float | int]) -> MetricRecord:
    """Pack scalar metrics."""
    return MetricRecord(dict(values))


def refusal(reason: str) -> RecordDict:
    """Answer that a party will not train, and why."""
    return RecordDict({"refusal": ConfigRecord({"reason": reason})})
