"""Dealing the records to the parties, by the partitioners of flwr-datasets.

Importing them takes seconds, so that happens only where they are needed: natural and i.i.d. parties, a matter
of a line each, are dealt here, to the same records.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import types
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import PartySettings

if TYPE_CHECKING:
    from fedsim.core.data.encode import Encoded

DEFAULT_COUNT = 5
# Two members and two held-out records: fewer leave nothing to compare.
MIN_RECORDS = 4

_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "FLWR_TELEMETRY_ENABLED": "0"}


def deal(encoded: Encoded, settings: PartySettings, seed: int) -> dict[str, np.ndarray]:
    """Deal the records to parties: party name → sorted (n_k,) int64 row indices, no row twice.

    Where the table has persons, every partition but the natural one deals whole persons. The pathological
    and shard partitions leave out what does not fit their scheme, as flwr-datasets defines them.

    Raises:
        InputError: the data name no parties, or not as many as asked for; or a party gets too few records.
    """
    if len(encoded) == 0:
        raise InputError(f"{encoded.name}: no records are left to deal to parties")
    natural = settings.partition == "natural" or (settings.partition == "auto" and encoded.party is not None)
    dealt = _deal_naturally(encoded, settings) if natural else _deal_units(encoded, settings, seed)
    for party, rows in dealt.items():
        if len(rows) < MIN_RECORDS:
            raise InputError(
                f"{encoded.name}: party '{party}' has {len(rows)} record(s), needs at least {MIN_RECORDS}; "
                + ("merge or drop it" if natural else "lower parties.count or add records")
            )
    return dealt


def _deal_naturally(encoded: Encoded, settings: PartySettings) -> dict[str, np.ndarray]:
    if encoded.party is None:
        raise InputError(
            f"parties.partition = 'natural': {encoded.name} has no party column; set data.party, "
            "or choose another partition such as 'iid'"
        )
    known = sorted(set(encoded.party))
    if len(known) < 2 or settings.count not in (None, len(known)):
        raise InputError(
            f"{encoded.name} names {len(known)} part{'y' if len(known) == 1 else 'ies'}, "
            f"parties.count is {settings.count or 'at least 2'}; "
            "leave count out, or set parties.partition = 'iid'"
        )
    codes, names = pd.factorize(encoded.party, sort=True)
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    return {shown(str(name)): rows.astype(np.int64) for name, rows in zip(names, parts, strict=True)}


def _deal_units(encoded: Encoded, settings: PartySettings, seed: int) -> dict[str, np.ndarray]:
    """Deal units, persons or else records, and return the records of each party's units."""
    count = settings.count or DEFAULT_COUNT
    units, first = units_of(encoded)
    if len(first) < MIN_RECORDS * count:
        what, most = "records" if encoded.person is None else "persons", len(first) // MIN_RECORDS
        fewer = f"lower parties.count to at most {most} or " if most > 1 else ""
        raise InputError(
            f"{encoded.name}: {len(first)} {what} for {count} parties, and each needs at least "
            f"{MIN_RECORDS}; {fewer}add records"
        )
    # Shuffled first, since some partitioners cut the records in order.
    shuffled = rng.generator(seed, "partition").permutation(first)
    try:
        parts = _cut(shuffled, encoded, settings, count, seed)
    except ValueError as error:
        raise _does_not_fit(settings, count, error) from error
    dealt = {}
    for number, part in enumerate(parts, start=1):
        is_dealt = np.zeros(len(first), dtype=bool)
        is_dealt[units[part]] = True
        dealt[f"{settings.sector}-{number}"] = np.flatnonzero(is_dealt[units])
    return dealt


def units_of(encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) the unit of each record and (k,) each unit's first record; a unit is a person."""
    if encoded.person is None:
        return np.arange(len(encoded)), np.arange(len(encoded))
    _, first, units = np.unique(encoded.person.astype(str), return_index=True, return_inverse=True)
    return units, first


def _cut(
    shuffled: np.ndarray, encoded: Encoded, settings: PartySettings, count: int, seed: int
) -> list[np.ndarray]:
    """Return the rows of each of ``count`` parties."""
    if settings.partition in ("auto", "iid"):  # as `IidPartitioner` does
        return np.array_split(shuffled, count)
    return _partition(_partitioner(settings, count, seed), shuffled, encoded)


def _partitioner(settings: PartySettings, count: int, seed: int) -> Any:
    flwr = _library()
    partition = settings.partition
    start = rng.integer(seed, "partitioner", bits=32)
    if partition == "dirichlet":
        return flwr.DirichletPartitioner(
            count, "label", settings.alpha, min_partition_size=MIN_RECORDS, seed=start
        )
    if partition == "pathological":
        return flwr.PathologicalPartitioner(
            count, "label", settings.classes, class_assignment_mode="first-deterministic", seed=start
        )
    if partition == "shards":
        return flwr.ShardPartitioner(count, "label", num_shards_per_partition=settings.classes, seed=start)
    by_size = {
        "linear": flwr.LinearPartitioner,
        "square": flwr.SquarePartitioner,
        "exponential": flwr.ExponentialPartitioner,
    }
    return by_size[partition](count)


def _partition(partitioner: Any, shuffled: np.ndarray, encoded: Encoded) -> list[np.ndarray]:
    """Return the rows of each of the library's partitions."""
    with _quiet():
        import datasets

        columns = {"row": shuffled, "label": encoded.labels[shuffled]}
        partitioner.dataset = datasets.Dataset.from_dict(columns)
        parts = [partitioner.load_partition(number) for number in range(partitioner.num_partitions)]
        # All at once: a column read lazily is walked row by row, minutes for a million records.
        return [np.asarray(part.with_format("numpy")[:]["row"], dtype=np.int64) for part in parts]


def _library() -> Any:
    """Return flwr-datasets' partitioners, imported so that nothing asks the network."""
    for switch, value in _OFFLINE.items():
        os.environ.setdefault(switch, value)
    with _quiet(), _without_plots():
        from flwr_datasets import partitioner
    return partitioner


@contextlib.contextmanager
def _without_plots() -> Iterator[None]:
    """Keep flwr-datasets from importing matplotlib for plots that nobody asks for here.

    That is half of its import time, and on a new machine several seconds more for the font cache.
    """
    name = "flwr_datasets.visualization"
    if name in sys.modules:
        yield
        return
    sys.modules[name] = types.ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bars and retry warnings from the terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _does_not_fit(settings: PartySettings, count: int, error: ValueError) -> InputError:
    """Turn a partitioner's refusal into a sentence about the scenario's keys."""
    if settings.partition == "dirichlet":
        return InputError(
            f"parties.alpha = {settings.alpha:g}: no draw gave each of {count} parties {MIN_RECORDS} "
            "records; raise alpha or lower parties.count"
        )
    reason = str(error).strip().rstrip(".")
    return InputError(
        f"parties.partition = '{settings.partition}' with count {count} and classes {settings.classes} "
        f"does not fit these data: {reason}"
    )


def shown(name: str) -> str:
    """Return a party's name as it is shown and written in scenarios: as in the table.

    But 'all' stands for every party where DP is switched on, so that a party of that name gets another one.
    """
    return "all (party)" if name == "all" else name
