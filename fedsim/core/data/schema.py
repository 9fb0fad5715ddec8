"""What is publicly known of a table before anyone looks at its records: kinds, bounds, categories, keys.

A schema is part of the guarantee (DESIGN §7): encoding may use what stands here, because it does not depend
on any private record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from fedsim.core.errors import InputError, suggestion

if TYPE_CHECKING:
    from fedsim.core.scenario.settings import DataSettings

Kind = Literal["number", "category", "text"]
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Column:
    """A feature column, and what was declared of it.

    kind: None where it is undeclared; `encode` then decides from public records.
    bounds: public lower and upper bound of a number, in the column's own unit.
    categories: public values of a category, as text; every other value counts as unseen.
    missing: whether a number may be missing, which earns it an indicator feature.
    other: whether the last of the categories stands for every value that is not among them.
    """

    name: str
    kind: Kind | None = None
    bounds: Bounds | None = None
    categories: tuple[str, ...] | None = None
    missing: bool = False
    other: bool = False

    def __post_init__(self) -> None:
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds of '{self.name}' are not in order: {self.bounds}")

    @property
    def declared(self) -> bool:
        """Whether the column can be encoded without looking at any record."""
        if self.kind == "number":
            return self.bounds is not None
        return self.kind == "category" and self.categories is not None


@dataclass(frozen=True)
class Schema:
    """Feature columns, label and keys of a table.

    classes: the label's values, in the order of the class indices.
    party, person: columns that name the party and the person of a record.
    image: (channels, height, width) where the columns are pixels in row-major order, else None.
    secret: column of the secret that a canary's text holds, '' in any other record.
    """

    columns: tuple[Column, ...]
    label: str
    classes: tuple[str, ...]
    party: str | None = None
    person: str | None = None
    image: tuple[int, int, int] | None = None
    secret: str | None = None

    @property
    def is_text(self) -> bool:
        """Whether a record is a text, and its features token ids."""
        return [column.kind for column in self.columns] == ["text"]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the feature columns."""
        return tuple(column.name for column in self.columns)

    def __getitem__(self, name: str) -> Column:
        return {column.name: column for column in self.columns}[name]

    @property
    def undeclared(self) -> tuple[str, ...]:
        """Names of the columns that only public records can make encodable."""
        return tuple(column.name for column in self.columns if not column.declared)


def key(section: str, column: str) -> str:
    """Return a key of the scenario for one column, as a person would write it: quoted where it must be."""
    plain = re.fullmatch(r"[A-Za-z0-9_-]+", column) is not None
    return f"data.{section}.{column if plain else repr(column)}"


def numbers(bounds: Mapping[str, Bounds], missing: Iterable[str] = ()) -> tuple[Column, ...]:
    """Return number columns by name; those in ``missing`` may have missing values."""
    may_miss = set(missing)
    return tuple(Column(name, "number", pair, missing=name in may_miss) for name, pair in bounds.items())


def categories(values: Mapping[str, Iterable[str]]) -> tuple[Column, ...]:
    """Return category columns by name."""
    return tuple(Column(name, "category", categories=tuple(known)) for name, known in values.items())


def declare(
    schema: Schema,
    settings: DataSettings,
    source: str,
    sector_bounds: Mapping[str, Bounds] | None = None,
) -> Schema:
    """Return ``schema`` with what the scenario and then the sector declare.

    Applying it again changes nothing.

    sector_bounds: typical bounds by lower-case column name, used only for columns with no kind or with no
        bounds of their own.

    Raises:
        InputError: a setting names a column that does not exist, or contradicts another one.
    """
    check_settings(schema, settings, source)
    label = settings.label or schema.label
    party, person = settings.party or schema.party, settings.person or schema.person
    classes = schema.classes
    if label != schema.label:
        classes = _categories_as_classes(schema, label, source)
    keys = {label, party, person, *settings.ignore}
    columns = tuple(
        _declare_column(column, settings, source, sector_bounds or {})
        for column in schema.columns
        if column.name not in keys
    )
    if not columns:
        raise InputError(f"{source}: no feature column is left; shorten data.ignore or add columns")
    return replace(schema, columns=columns, label=label, classes=classes, party=party, person=person)


def check_settings(schema: Schema, settings: DataSettings, source: str) -> None:
    """Refuse settings that name a column which is not there.

    Raises:
        InputError: naming the key, the value and the nearest column.
    """
    known = {*schema.names, *filter(None, (schema.label, schema.party, schema.person))}
    for key in ("label", "party", "person"):
        name = getattr(settings, key)
        if name is not None and name not in known:
            raise InputError(f"{source}: data.{key} = '{name}': no such column{suggestion(name, known)}")
    for key in ("ignore", "kinds", "bounds", "categories", "clipped"):
        declared = known if key == "ignore" else known | set(settings.ignore)
        for name in getattr(settings, key):
            if name not in declared:
                raise InputError(f"{source}: data.{key}: no column '{name}'{suggestion(name, known)}")
    chosen = [settings.label, settings.party, settings.person]
    for name in filter(None, chosen):
        if chosen.count(name) > 1:
            raise InputError(f"{source}: column '{name}' is two of data.label, data.party and data.person")


def _categories_as_classes(schema: Schema, label: str, source: str) -> tuple[str, ...]:
    known = {column.name: column.categories for column in schema.columns if column.categories}
    if label not in known:
        raise InputError(
            f"{source}: data.label = '{label}' has no declared classes"
            f"{suggestion(label, [schema.label, *known])}"
        )
    return known[label] or ()


def _declare_column(
    column: Column, settings: DataSettings, source: str, sector_bounds: Mapping[str, Bounds]
) -> Column:
    """Apply settings to one column: own words first, then the schema's, then the sector's."""
    name = column.name
    kind = settings.kinds.get(name)
    bounds, known = settings.bounds.get(name), settings.categories.get(name)
    if (bounds or kind == "number") and known is not None:
        raise InputError(f"{source}: data.categories.{name}: '{name}' is declared a number as well")
    if bounds and kind == "category":
        raise InputError(f"{source}: data.bounds.{name}: '{name}' is declared a category as well")
    if bounds or kind == "number":
        lifted = bounds or column.bounds or sector_bounds.get(name.lower())
        return replace(column, kind="number", bounds=lifted, categories=None)
    if known is not None:
        return replace(column, kind="category", bounds=None, categories=tuple(known))
    if kind == "category":
        return replace(column, kind="category", bounds=None)
    if not column.declared and column.kind != "category" and name.lower() in sector_bounds:
        return replace(column, kind="number", bounds=sector_bounds[name.lower()])
    return column
