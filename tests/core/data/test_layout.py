"""Which features are which column's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import prepared_run

from fedsim.core.data import layout
from fedsim.core.data.layout import ColumnLayout, of_names
from fedsim.core.errors import InputError

COLUMNS = st.lists(
    st.tuples(st.sampled_from("nmc"), st.integers(1, 4)), min_size=1, max_size=6
)  # number, number that may be missing, category of so many values


@given(COLUMNS)
def test_the_columns_tile_the_features_in_their_order(columns: list[tuple[str, int]]) -> None:
    names: list[str] = []
    for place, (kind, values) in enumerate(columns):
        name = f"x{place}"
        if kind == "c":
            names += [f"{name}={value}" for value in range(values)]
        else:
            names += [name, f"{name} missing"][: 1 + (kind == "m")]
    made = of_names(tuple(names), {})
    assert [column.name for column in made] == [f"x{place}" for place in range(len(columns))]
    assert [i for column in made for i in range(column.start, column.stop)] == list(range(len(names)))
    assert [column.missing for column in made] == [kind == "m" for kind, _ in columns]


def test_a_missing_number_and_an_unseen_category_are_not_known() -> None:
    number, category = of_names(("age", "age missing", "ward=A", "ward=B"), {"age": (0, 100)})
    rows = np.array([[0.5, 0, 1, 0], [0, 1, 0, 0]], np.float32)
    assert number.known(rows).tolist() == [True, False]
    assert category.known(rows).tolist() == [True, False]
    assert number.in_unit(-2.0) == 0 and number.in_unit(2.0) == 100 and number.in_unit(0.0) == 50


def test_a_run_keeps_its_layout(tmp_path: Path) -> None:
    run = prepared_run(tmp_path)
    assert layout.read_layout(run.path) == (
        ColumnLayout("age", "number", 0, 1, bounds=(0, 100)),
        ColumnLayout("pressure", "number", 1, 2, bounds=(80, 180)),
        ColumnLayout("ward", "category", 2, 5, ("A", "B", "C")),
    )
    with pytest.raises(InputError, match="--column wart: no such column; did you mean 'ward'"):
        layout.column_of(layout.read_layout(run.path), "wart")
    (run.path / layout.LAYOUT).unlink()
    with pytest.raises(InputError, match="older fedsim"):
        layout.read_layout(run.path)
