from __future__ import annotations

import pytest

from fedsim.core.data.schema import Column, Schema, categories, declare, numbers
from fedsim.core.scenario.settings import DataSettings

SCHEMA = Schema(
    (*numbers({"a": (0, 1)}), Column("b"), Column("n", "number"), *categories({"c": ("u", "v")})),
    "y",
    ("0", "1"),
)


def test_undeclared_columns_are_those_without_bounds_or_categories() -> None:
    assert SCHEMA.undeclared == ("b", "n")
    assert not Column("x", "category").declared
    assert Column("x", "category", categories=()).declared


def test_declaring_twice_changes_nothing() -> None:
    said = DataSettings(bounds={"b": (0, 2)}, kinds={"n": "category"}, ignore=["c"], party="a")
    once = declare(SCHEMA, said, "toy")
    assert declare(once, said.model_copy(update={"ignore": []}), "toy") == once
    assert once.names == ("b", "n") and once.party == "a"
    assert once["b"] == Column("b", "number", (0, 2)) and once["n"] == Column("n", "category")


def test_own_bounds_come_before_the_schema_and_the_schema_before_the_sector() -> None:
    sector = {"a": (5.0, 6.0), "b": (7.0, 8.0), "n": (9.0, 10.0), "c": (1.0, 2.0)}
    found = declare(SCHEMA, DataSettings(bounds={"n": (1, 3)}), "toy", sector)
    assert {c.name: c.bounds for c in found.columns} == {"a": (0, 1), "b": (7, 8), "n": (1, 3), "c": None}


def test_bounds_out_of_order_are_a_bug() -> None:
    with pytest.raises(ValueError, match="not in order"):
        Column("a", "number", (1, 1))
