"""What distinguishes a hospital from a bank: words, fitting tables, default model and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedsim.core.scenario.training import ModelSettings


@dataclass(frozen=True)
class Sector:
    """A kind of organisation.

    name: as in ``[parties] sector``
    record: what one record is called
    tables: named data sets that fit, the default first
    model: default model
    bounds: public bounds of usual columns, by lower-case column name; they hold for columns of a
        person's own table that declare none
    """

    name: str
    record: str
    tables: tuple[str, ...]
    model: ModelSettings = field(default_factory=ModelSettings)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
