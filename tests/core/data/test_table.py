from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsim.core.data import table
from fedsim.core.data.schema import Column
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import DataSettings

Write = Callable[..., str]


def settings(path: str | dict[str, str], label: str = "y", **more: object) -> DataSettings:
    return DataSettings.model_validate({"path": path, "label": label, **more})


def test_cells_stay_text_without_blanks_and_missing_ones(write: Write) -> None:
    path = write(' a , b,when,y\n"1,234", x ,2020-01-02,no\n 12 ,?,1970-01-01,yes\nNA,"u,v",x,no\n')
    read = table.read(settings(path))
    assert list(read.frame) == ["a", "b", "when", "y"]
    assert table.texts(read.frame["a"]).tolist() == ["1,234", "12", None]
    assert table.texts(read.frame["b"]).tolist() == ["x", None, "u,v"]
    np.testing.assert_array_equal(table.numeric(read.frame["when"]), [18263, 0, np.nan])


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found(write: Write, separator: str) -> None:
    lines = [["age", "note", "y"], ["1", "p", "a"], ["2", "q", "b"]]
    read = table.read(settings(write("\n".join(separator.join(line) for line in lines))))
    assert read.frame["age"].tolist() == ["1", "2"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(write: Write, encoding: str) -> None:
    read = table.read(settings(write("größe,y\n1,ä\n2,b\n".encode(encoding))))
    assert "größe" in read.frame
    assert read.schema.classes == ("b", "ä")
    assert bool(read.notices) == (encoding == "cp1252")


def test_short_rows_end_in_missing_cells(write: Write) -> None:
    read = table.read(settings(write("y,a,b\nu,1\nv,1,2\n"), missing=[""]))
    assert table.texts(read.frame["b"]).tolist() == [None, "2"]


def test_an_unnamed_column_is_an_index_and_ignored(write: Write) -> None:
    read = table.read(settings(write(",a,y\n0,1,u\n1,2,v\n")))
    assert read.schema.names == ("a",)
    assert "without a name" in read.notices[0]


def test_parquet_types_are_declarations(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "i": [1, 2, -9],
            "f": [0.5, np.nan, np.inf],
            "b": [True, False, True],
            "when": pd.to_datetime(["1970-01-02", None, "1970-01-04T12:00"], format="ISO8601"),
            "zoned": pd.to_datetime(["1970-01-02T02:00+02:00"] * 3),
            "day": [datetime.date(1970, 1, 3), None, datetime.date(1970, 1, 1)],
            "money": [Decimal("1.25"), None, Decimal("3")],
            "kind": pd.Categorical(["u", "v", "u"]),
            "nullable": pd.array([1, None, 3], dtype="Int64"),
            "y": ["p", "q", None],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    read = table.read(settings(str(tmp_path / "t.parquet"), missing=["", "-9"]))
    assert read.schema["i"] == Column("i"), "whole numbers may be ids"
    assert read.schema["f"] == Column("f", "number")
    assert read.schema["b"] == Column("b", "category", categories=("False", "True"))
    expected = {
        "i": [1, 2, np.nan],
        "f": [0.5, np.nan, np.nan],
        "when": [1, np.nan, 3.5],
        "zoned": [1, 1, 1],
        "day": [2, np.nan, 0],
        "money": [1.25, np.nan, 3],
        "nullable": [1, np.nan, 3],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(table.numeric(read.frame[name]), values, err_msg=name)
    assert table.texts(read.frame["kind"]).tolist() == ["u", "v", "u"]
    assert table.texts(read.frame["nullable"]).tolist() == ["1", None, "3"]
    assert table.texts(read.frame["b"]).tolist() == ["True", "False", "True"]


def test_one_file_per_party(write: Write) -> None:
    paths = {"b": write("a,y\n1,u\n2,v\n", "x.csv"), "a": write("y,a\nu,3\n", "z.csv")}
    read = table.read(settings(paths))
    assert read.schema.party == "party"
    assert read.frame["party"].tolist() == ["b", "b", "a"]
    assert read.frame["a"].tolist() == ["1", "2", "3"]
    assert set(read.source_hashes) == {"b/x.csv", "a/z.csv"}


def test_labels_are_classes_in_order(write: Write) -> None:
    assert table.read(settings(write("a,y\n1,10\n2,9\n3,10.0\n"))).schema.classes == ("9", "10")
    assert table.read(settings(write("a,y\n1,no\n2,Yes\n"))).schema.classes == ("Yes", "no")


def test_many_whole_classes_with_enough_records_are_classes(write: Write) -> None:
    lines = "\n".join(f"{i},{i % 60}" for i in range(300))
    assert len(table.read(settings(write(f"a,y\n{lines}\n"))).schema.classes) == 60


@pytest.mark.parametrize(
    ("text", "more", "sentence"),
    [
        ("", {}, "the file is empty"),
        ("\n \n", {}, "the file is empty"),
        ("a,y\n", {}, "holds no records"),
        ("a,a,y\n1,2,3\n", {}, "column 'a' appears twice"),
        ("a,yy\n1,2\n", {}, "data.label = 'y': no such column; did you mean 'yy'"),
        ("a,y\n1,u\n2,v\n", {"party": "b"}, "data.party = 'b': no such column; valid: a, y"),
        ("a,y\n1,u\n2,v\n", {"person": "aa"}, "data.person = 'aa': no such column"),
        ("a,y\n1,u\n2,v\n", {"bounds": {"q": [0, 1]}}, "data.bounds: no column 'q'"),
        ("a,y\n1,u\n2,v\n", {"party": "y"}, "'y' is two of"),
        ("a,y\n1,u\n2,u\n", {}, "the only class is 'u'"),
        ("a,y\n1,\n2,\n", {}, "it holds no value"),
        ("a,y\n1,u\n1,2,3,4\n", {}, "Expected 2 fields"),
        ("PK\x03\x04", {}, "the archive is damaged"),
        ("a,y\n" + "\n".join(f"1,{i}.5" for i in range(99)), {}, "99 distinct values; fedsim does"),
        ("a,y\n" + "\n".join(f"1,{i}" for i in range(99)), {}, "classification only"),
        ("a,y\n" + "\n".join(f"1,n{i}" for i in range(99)), {}, "classification only"),
    ],
)
def test_wrong_tables_get_one_sentence(write: Write, text: str, more: dict, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        table.read(settings(write(text), **more))
    assert sentence in str(caught.value)
    assert "records.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_broken_parquet(tmp_path: Path, write: Write) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        table.read(settings(str(tmp_path / "none.csv")))
    with pytest.raises(InputError, match="cannot read"):
        table.read(settings(write("no parquet", "t.parquet")))
    with pytest.raises(InputError, match="cannot read"):
        table.read(settings(str(tmp_path)))


def test_parties_with_different_columns_or_two_party_settings(write: Write) -> None:
    paths = {"a": write("a,y\n1,u\n2,v\n", "x.csv"), "b": write("b,y\n1,u\n", "z.csv")}
    with pytest.raises(InputError, match=r"\.csv: no column '[ab]', which another party's file has"):
        table.read(settings(paths))
    with pytest.raises(InputError, match="names one file per party already"):
        table.read(settings(paths, party="a"))
