"""Which features are which column's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.runs import prepared_run

from fedsim.core import rng
from fedsim.core.data import catalogue, encode, layout
from fedsim.core.data.encode import Encoded
from fedsim.core.data.layout import ColumnLayout
from fedsim.core.errors import InputError
from fedsim.core.files import read_json, write_json
from fedsim.core.scenario.settings import DataSettings

N = 3000


def mixed_table() -> pd.DataFrame:
    """Every kind of column, with cells missing, and names that look like another column's features."""
    stream = np.random.default_rng(0)
    day = pd.Timestamp("2020-01-01") + pd.to_timedelta(stream.integers(0, 900, N), unit="D")
    codes = [f"E{k % 12}" if k % 3 else f"Z{k}" for k in stream.integers(0, 500, N)]
    frame = pd.DataFrame(
        {
            "age": stream.integers(20, 90, N).astype(float),
            "age missing": stream.normal(0, 1, N),
            "x=1": stream.normal(5, 2, N),
            "admitted": day.strftime("%Y-%m-%d"),
            "ward": stream.choice(["A", "B", "C"], N),
            "code": codes,
            "ill": stream.choice(["no", "yes"], N),
        }
    )
    for column in ("age", "admitted", "ward", "code"):
        frame.loc[stream.permutation(N)[:300], column] = np.nan
    return frame


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoded, pd.DataFrame]:
    """The private records, and their rows of the table: a marker column keeps them apart."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    frame = mixed_table().assign(marker=np.arange(N) / N)
    frame.to_csv(path, index=False)
    settings = DataSettings(
        path=str(path),
        label="ill",
        bounds={"age": (30, 80), "marker": (0, 1)},
        categories={"ward": ["A", "B"]},
    )
    result = encode.encode(catalogue.open_table(settings, None), settings, rng.generator(0, "public records"))
    marker = layout.column_of(layout.of(result), "marker")
    rows = [round(marker.in_unit(float(x)) * N) for x in result.features[:, marker.start]]
    return result, frame.iloc[rows].reset_index(drop=True)


def test_every_kind_of_column_is_read_back_from_its_features(encoded: tuple[Encoded, pd.DataFrame]) -> None:
    made, frame = layout.of(encoded[0]), encoded[1]
    rows = encoded[0].features
    assert {"age", "age missing", "x=1", "admitted", "ward", "code"} < {column.name for column in made}
    assert [i for column in made for i in range(column.start, column.stop)] == list(range(rows.shape[1]))
    for column in made:
        cells = frame[column.name]
        if column.name == "admitted":
            epoch = pd.Timestamp("1970-01-01")
            cells = (pd.to_datetime(cells) - epoch) / pd.Timedelta(days=1)
        known = column.known(rows)
        if column.kind == "number":
            assert column.bounds is not None
            assert not column.missing or (known == cells.notna()).all()
            values = np.array([column.in_unit(float(x)) for x in rows[:, column.start]])
            inside = cells.astype(float).clip(*column.bounds)
            assert values[cells.notna()] == pytest.approx(inside.dropna().to_numpy(), rel=1e-4, abs=1e-3)
            continue
        shown = np.array(column.categories)[rows[:, column.features].argmax(axis=1)]
        gathers = column.name == "code"
        seen = cells.where(cells.isin(column.categories) | cells.isna(), "other")
        assert (known == (cells.notna() if gathers else cells.isin(column.categories))).all()
        assert (shown[known] == seen[known]).all()
    assert layout.column_of(made, "code").categories[-1] == "other"
    assert layout.column_of(made, "ward").categories == ("A", "B")
    assert layout.column_of(made, "age").missing


def test_a_layout_is_written_and_read_back(encoded: tuple[Encoded, pd.DataFrame], tmp_path: Path) -> None:
    pixels = (
        ColumnLayout("p0", "number", 0, 1, low=0.0, high=1.0, bounds=(0.0, 255.0)),
        ColumnLayout("p1", "number", 1, 2, low=0.0, high=1.0, bounds=(0.0, 255.0)),
    )
    for made in (layout.of(encoded[0]), pixels):
        layout.write_layout(tmp_path, made)
        assert layout.read_layout(tmp_path) == made
    write_json(tmp_path / layout.LAYOUT, {"columns": [{"name": "age"}]})
    with pytest.raises(InputError, match=r"cannot read .*layout\.json"):
        layout.read_layout(tmp_path)


def test_pixels_are_columns_of_their_own() -> None:
    features = np.zeros((3, 1, 2, 2), np.float32)
    names = ("a", "b", "c", "d")
    made = layout.of(Encoded(features, np.zeros(3, np.int64), None, None, names, ("0", "1"), (), {}))
    assert [(column.name, column.start, column.low, column.high) for column in made] == [
        (name, i, 0.0, 1.0) for i, name in enumerate(names)
    ]


def test_features_of_unknown_columns_have_no_layout() -> None:
    unknown = Encoded(np.zeros((3, 2), np.float32), np.zeros(3, np.int64), None, None, ("a", "b"), (), (), {})
    with pytest.raises(ValueError, match="2 features, the columns have 0"):
        layout.of(unknown)


def test_a_run_keeps_its_layout(tmp_path: Path) -> None:
    run = prepared_run(tmp_path)
    assert layout.read_layout(run.path) == (
        ColumnLayout("age", "number", 0, 1, bounds=(0, 100)),
        ColumnLayout("pressure", "number", 1, 2, bounds=(80, 180)),
        ColumnLayout("ward", "category", 2, 5, ("A", "B", "C")),
    )
    assert layout.LAYOUT in read_json(run.path / "digests.json")
    with pytest.raises(InputError, match="--column wart: no such column; did you mean 'ward'"):
        layout.column_of(layout.read_layout(run.path), "wart")
    (run.path / layout.LAYOUT).unlink()
    with pytest.raises(InputError, match="older fedsim"):
        layout.read_layout(run.path)
