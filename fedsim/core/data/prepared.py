"""Records that were prepared elsewhere: a table's numbers are what the model takes, as they stand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core.data import table
from fedsim.core.data.encode import Encoded
from fedsim.core.data.listed import NO, YES
from fedsim.core.data.table import Table, numeric, texts
from fedsim.core.errors import InputError, suggestion
from fedsim.core.imports import is_reference
from fedsim.core.scenario.settings import DataSettings

MOST_CLASSES = 1000
"""Labels 0 … at most this are the model's own class indices."""


def as_they_stand(given: Table, settings: DataSettings, keys: Iterable[str] = ()) -> Encoded:
    """Return the records of a table whose feature columns hold the numbers that a model takes, in order.

    keys: columns beside label, party and person that are no features

    Labels 0, 1, … are class indices; any other labels are classes in the order of `table.classes_of`, or as
    ``settings.categories`` declares them, and a notice says so.

    Raises:
        InputError: a feature is missing or no number, or a record has no label.
    """
    left_out = {*keys, *settings.ignore}
    columns = [column.name for column in given.schema.columns if column.name not in left_out]
    flat = np.empty((len(given), len(columns)), np.float32)  # (n, d)
    for k, name in enumerate(columns):
        flat[:, k] = _numbers(given, name)
    features = flat.reshape(len(given), *(given.schema.image or (len(columns),)))
    labels, classes, notices = _labels(given, settings)
    return Encoded(
        features,
        labels,
        _texts(given.frame, given.schema.party),
        _texts(given.frame, given.schema.person),
        tuple(columns),
        classes,
        (*given.notices, *notices),
        given.source_hashes,
        given.name,
        label=given.schema.label,
    )


def _numbers(given: Table, name: str) -> np.ndarray:
    values = numeric(given.frame[name])
    if np.isnan(values).any():
        row = int(np.flatnonzero(np.isnan(values))[0])
        raise InputError(
            f"{given.name}: column '{name}' of record {row + 1} is {given.frame[name].iloc[row]!r}; it must "
            "be the number that the model takes: leave the column out with data.ignore, or prepare the "
            "records in a function of yours, 'module:callable'"
        )
    return values


def _labels(given: Table, settings: DataSettings) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Return (n,) int64 class indices, the classes, and what to know of their order."""
    label, spelled = given.schema.label, texts(given.frame[given.schema.label])
    if any(text is None for text in spelled):
        raise InputError(
            f"{given.name}: data.label = '{label}': a record has no label; drop it or give it one"
        )
    indices = numeric(given.frame[label])
    if label not in settings.categories and _are_indices(indices):
        largest = max(int(indices.max()), 1)
        return indices.astype(np.int64), tuple(map(str, range(largest + 1))), []
    place = {name: k for k, name in enumerate(given.schema.classes)}
    strange = next((text for text in spelled if text not in place), None)
    if strange is not None:
        raise InputError(
            f"{given.name}: data.categories.{label} has no '{strange}'{suggestion(strange, place)}"
        )
    notices = []
    if label not in settings.categories:
        order = ", ".join(given.schema.classes[:8])
        notices.append(
            f"the model's outputs are taken to be {order}, in this order; data.categories.{label} declares "
            "another"
        )
    return np.array([place[text] for text in spelled], dtype=np.int64), given.schema.classes, notices


def _are_indices(values: np.ndarray) -> bool:
    whole = bool(np.isfinite(values).all() and (values % 1 == 0).all())
    return whole and values.min() == 0 and values.max() <= MOST_CLASSES


def _texts(frame: pd.DataFrame, name: str | None) -> np.ndarray | None:
    return None if name is None else texts(frame[name])


def members_of(given: Table, settings: DataSettings, members: str, key: str | None) -> tuple[np.ndarray, int]:
    """Return (n,) bool, which records were trained on, and how many named records the table has not.

    members: a column of the table that says it (yes/no, true/false, 1/0), or a table of the members: with the
        column ``key``, else with all columns of ``given``, of which rows are compared as they are written

    Raises:
        InputError: there is no such column or file, it says something else, or no record is a member.
    """
    if members in given.frame:
        member, strangers = said_by(given, members), 0
    elif is_reference(members) or Path(members).exists():
        member, strangers = _listed(given, settings, members, key)
    else:
        raise InputError(
            f"--members {members}: it is neither a file nor a column of {given.name}"
            f"{suggestion(members, map(str, given.frame))}"
        )
    if not member.any() or member.all():
        which = "no record of" if not member.any() else "every record of"
        raise InputError(
            f"--members {members}: {which} {given.name} is a member; it must hold both, records that were "
            "trained on and others like them that were not"
        )
    return member, strangers


def said_by(given: Table, column: str) -> np.ndarray:
    """Return (n,) bool, what a column of yes and no says.

    Raises:
        InputError: it says something else.
    """
    words = [str(text).lower() for text in texts(given.frame[column])]
    strange = next((word for word in words if word not in YES + NO), None)
    if strange is not None:
        raise InputError(
            f"{given.name}: column '{column}' says '{strange}'; it takes {', '.join((*YES, *NO))}"
        )
    return np.array([word in YES for word in words])


def _listed(given: Table, settings: DataSettings, members: str, key: str | None) -> tuple[np.ndarray, int]:
    frame = table.read_source(members, settings)
    columns = [key] if key else list(map(str, given.frame))
    for name in columns:
        for side, where in ((given.frame, given.name), (frame, members)):
            if name not in side:
                raise InputError(f"{where}: there is no column '{name}'{suggestion(name, map(str, side))}")
    both = pd.concat([given.frame[columns], frame[columns]], ignore_index=True)
    spelled = pd.DataFrame({name: _spelling(both[name]) for name in columns})
    rows = pd.util.hash_pandas_object(spelled, index=False).to_numpy()  # 64 bits each: none meet by chance
    ours, listed = np.split(rows, [len(given)])
    return np.isin(ours, listed), int((~np.isin(listed, ours)).sum())


def _spelling(column: pd.Series) -> np.ndarray:
    """Return cells that are equal where they mean the same number or text."""
    numbers = numeric(column)
    return texts(column) if np.isnan(numbers).any() else numbers
