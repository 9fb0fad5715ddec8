"""Tables as files, read and encoded as a run would."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fedsim.core import rng
from fedsim.core.data import table
from fedsim.core.data.encode import Encoded, encode
from fedsim.core.scenario.settings import DataSettings


def settings(path: Path | str, label: str = "y", **more: object) -> DataSettings:
    return DataSettings.model_validate({"path": str(path), "label": label, **more})


def encoded(path: Path | str, label: str = "y", **more: object) -> Encoded:
    """The records of a file as arrays."""
    said = settings(path, label, **more)
    return encode(table.read(said), said, rng.generator(0, "public records"))


def said(records: Encoded) -> str:
    """All notices in one text."""
    return "\n".join((*records.notices, *records.owner_notices))


def column(records: Encoded, name: str) -> list[float]:
    """One feature of all records."""
    return records.features[:, records.feature_names.index(name)].tolist()


def facts(records: Encoded) -> pd.DataFrame:
    """What became of the columns, by name."""
    return pd.DataFrame([vars(fact) for fact in records.columns]).set_index("name")
