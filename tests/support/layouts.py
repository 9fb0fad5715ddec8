"""Layouts of made-up columns."""

from __future__ import annotations

from fedsim.core.data.layout import ColumnLayout, Layout


def layout_of_features(*names: str) -> Layout:
    """Return the layout of features by name: 'age', 'age missing', 'ward=A', 'ward=B'."""
    columns: list[ColumnLayout] = []
    start = 0
    while start < len(names):
        column, is_value, _ = names[start].partition("=")
        if is_value:
            values = tuple(name.partition("=")[2] for name in names if name.startswith(f"{column}="))
            columns.append(ColumnLayout(column, "category", start, start + len(values), values))
        else:
            missing = names[start + 1 : start + 2] == (f"{column} missing",)
            columns.append(ColumnLayout(column, "number", start, start + 1 + missing, missing=missing))
        start = columns[-1].stop
    return tuple(columns)
