"""What the messages between server and parties hold, packed and unpacked in one place."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeVar, cast

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

_Kind = TypeVar("_Kind", ArrayRecord, ConfigRecord, MetricRecord)


def to_arrays(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Pack named arrays, such as a model's weights."""
    return record_of({name: _pack(np.asarray(array, order="C")) for name, array in arrays.items()})


def record_of(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Do what ``ArrayRecord(arrays)`` does, which makes every array a second time."""
    record = ArrayRecord()
    record.update(arrays)
    return record


def to_numpy(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    """Undo `to_arrays`; the arrays are read-only."""
    return {name: _unpack(array) for name, array in arrays.items()}


def _pack(array: np.ndarray) -> Array:
    """Do what ``Array(array)`` does, with the .npy header of this dtype and shape written only once."""
    packed = Array.__new__(Array)  # whose checks of four arguments take longer than the rest
    packed.__dict__.update(
        dtype=_name(array.dtype),
        shape=array.shape,
        stype=_NPY,
        data=_npy_header(array.dtype.str, array.shape) + array.tobytes(),
    )
    return packed


def _unpack(array: Array) -> np.ndarray:
    """Do what ``array.numpy()`` does, without parsing the header of an array that `_pack` could have made."""
    view = _view(array)
    return array.numpy() if view is None else view


def _view(array: Array) -> np.ndarray | None:
    """Return the numbers in the bytes of an array that `_pack` could have made, None of any other."""
    dtype, header = _layout(array.dtype, tuple(array.shape))
    if array.stype != _NPY or not array.data.startswith(header):
        return None
    return np.frombuffer(array.data, dtype, offset=len(header)).reshape(array.shape)


class Readable(Array):
    """An array as others packed it, whose ``numpy()`` does not parse its header: a copy, to be written to.

    Flower's strategies read every party's arrays so. Flower does not send a subclass: it stays at the server.
    """

    def __init__(self, array: Array) -> None:
        self.__dict__.update(array.__dict__)

    def numpy(self) -> np.ndarray:
        """Return the array."""
        view = _view(self)
        return super().numpy() if view is None else view.copy()


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
    promised = math.prod(shape) * dtype.itemsize
    header = _npy_header(dtype.str, shape)
    if array.data.startswith(header) and len(array.data) == len(header) + promised:
        return ""  # as `_pack` writes it
    stream = io.BytesIO(array.data)
    try:
        read_header = _NPY_HEADERS[np.lib.format.read_magic(stream)]
        written_shape, _, written_dtype = read_header(stream)
    except (KeyError, ValueError, SyntaxError, TypeError):
        return "is no .npy file"
    if (written_shape, written_dtype) != (shape, dtype):
        return f"holds {written_dtype} of shape {written_shape} and says {dtype} of shape {shape}"
    there = len(array.data) - stream.tell()
    return "" if there == promised else f"holds {there} bytes, not {promised}"


def size_of(content: RecordDict) -> int:
    """Return the bytes of arrays, texts and numbers that a message holds, with their names."""
    return sum(len(name) + _size(value) for record in content.values() for name, value in record.items())


def _size(value: object) -> int:
    if isinstance(value, Array):
        return len(value.data)
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
def _name(dtype: np.dtype) -> str:
    return str(dtype)


@lru_cache(maxsize=1024)
def _layout(name: str, shape: tuple[int, ...]) -> tuple[np.dtype, bytes]:
    """Return the dtype of this name, and how a .npy file of such an array begins."""
    dtype = np.dtype(name)
    return dtype, _npy_header(dtype.str, shape)


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


def arrays_in(content: RecordDict, name: str = "arrays") -> ArrayRecord:
    """Return the arrays of this name; see `_record`."""
    return _record(content, name, ArrayRecord)


def config_in(content: RecordDict, name: str = "config") -> ConfigRecord:
    """Return the settings of this name; see `_record`."""
    return _record(content, name, ConfigRecord)


def metrics_in(content: RecordDict, name: str = "metrics") -> MetricRecord:
    """Return the metrics of this name; see `_record`."""
    return _record(content, name, MetricRecord)


def _record(content: RecordDict, name: str, kind: type[_Kind]) -> _Kind:
    """Do what ``content.array_records[name]`` and its like do, which copy all records at every look.

    Raises:
        KeyError: there is no record of this name and kind.
    """
    record = content[name]
    if not isinstance(record, kind):
        raise KeyError(name)
    return record


def global_model(message: Message) -> dict[str, np.ndarray]:
    """Return the weights that the server sent."""
    return to_numpy(arrays_in(message.content))


def server_round(message: Message) -> int:
    """Return the round that the server's message belongs to; 0 before training."""
    return int(cast(int, config_in(message.content)["server-round"]))


def proximal_mu(message: Message) -> float:
    """Return FedProx's μ, which its strategy puts into the message; 0 for any other strategy."""
    return float(cast(float, config_in(message.content).get("proximal-mu", 0.0)))


def clipping_norm(message: Message) -> float | None:
    """Return the norm to which the server asks parties to clip their updates, None where it asks for none."""
    norm = config_in(message.content).get(CLIPPING_NORM)
    return None if norm is None else float(cast(float, norm))


def workers(message: Message) -> int:
    """Return the number of processes that the engine grants a party for heavy work."""
    return int(cast(int, config_in(message.content).get("workers", 1)))


def numbers(metrics: MetricRecord) -> dict[str, float]:
    """Return scalar metrics as floats."""
    return {name: float(cast(float, value)) for name, value in metrics.items()}


def metrics(values: Mapping[str, float | int]) -> MetricRecord:
    """Pack scalar metrics."""
    return MetricRecord(dict(values))


def refusal(reason: str) -> RecordDict:
    """Answer that a party will not train, and why."""
    return RecordDict({"refusal": ConfigRecord({"reason": reason})})
