from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from support.tables import column, encoded, facts, said

from fedsim.core.data import columns
from fedsim.core.errors import InputError

Write = Callable[..., str]


def lines(n: int, **made: Callable[[int, np.random.Generator], object]) -> str:
    """A CSV of n records with the columns that are made; and y, a class."""
    draw = np.random.default_rng(0)
    names = [*made, "y"]
    rows = [[str(make(k, draw)) for make in made.values()] + ["np"[k % 2]] for k in range(n)]
    return "\n".join(",".join(row) for row in [names, *rows]) + "\n"


def age(k: int, draw: np.random.Generator) -> object:
    return round(draw.normal(50, 10), 1)


@pytest.mark.parametrize("odd", [".", "#DIV/0!", "<0.5", "k.A.", "inf", "na"])
def test_a_column_of_numbers_with_odd_spellings_stays_one(write: Write, odd: str) -> None:
    text = lines(150, hb=lambda k, draw: odd if k % 6 == 0 else round(draw.normal(14, 2), 2), age=age)
    records = encoded(write(text))
    assert records.feature_names == ("hb", "hb missing", "age")
    assert f"value(s) of 'hb' are not finite numbers and count as missing: '{odd}' (" in said(records)
    rows = facts(records)
    assert 0.1 < rows.loc["hb", "unreadable"] < 0.25 and rows.loc["hb", "kind"] == "number"
    assert np.isfinite(records.features).all()


def test_dates_become_days_and_say_so(write: Write) -> None:
    text = lines(100, seen=lambda k, draw: f"{draw.integers(1, 28):02d}.0{draw.integers(1, 9)}.2020", age=age)
    records = encoded(write(text))
    assert records.feature_names == ("seen", "age")
    assert "'seen': dates DD.MM.YYYY, in days since 1970-01-01" in records.notices
    assert facts(records).loc["seen", "kind"] == "date"


def test_the_files_other_columns_are_evidence(write: Write) -> None:
    rows = "".join(f"{k + 1}.{k + 100};{k},5;{'np'[k % 2]}\n" for k in range(60))
    records = encoded(write("money;age;y\n" + rows), bounds={"money": [0, 100_000], "age": [0, 100]})
    scaled = np.array([(k + 1) * 1000 + k + 100 for k in range(60)]) / 100_000 * 4 - 2
    np.testing.assert_allclose(column(records, "money"), scaled, atol=1e-5)


def test_without_evidence_two_readings_are_refused_and_bounds_decide(write: Write) -> None:
    text = "money;y\n" + "".join(f"{k + 1}.{k + 100};{'np'[k % 2]}\n" for k in range(60))
    with pytest.raises(
        InputError, match=r"records\.csv: column 'money': '\d+\.1\d\d' is .*; set data\.decimal"
    ):
        encoded(write(text))
    one = encoded(write(text), bounds={"money": [0, 100_000]}, decimal=",")
    two = encoded(write(text), bounds={"money": [0, 100]}, decimal=".")
    assert column(one, "money")[0] == pytest.approx(1100 / 1e5 * 4 - 2)
    assert column(two, "money")[0] == pytest.approx(1.1 / 100 * 4 - 2)
    np.testing.assert_array_equal(encoded(write(text), bounds={"money": [0, 62]}).features.ndim, 2)


def test_private_cells_alone_that_have_two_readings_are_refused(write: Write) -> None:
    public = write("n,y\n" + "".join(f"{500 + k},{'np'[k % 2]}\n" for k in range(40)), "public.csv")
    text = "n;y\n" + "".join(
        f"{f'1.{k + 100}' if k % 4 == 0 else k + 100};{'np'[k % 2]}\n" for k in range(40)
    )
    with pytest.raises(InputError, match=r"'1\.100' is 1\.100 .* or 1100"):
        encoded(write(text), public=public)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("Unnamed: 0", lambda k, draw: k),
        ("X", lambda k, draw: k + 1),
        ("record_id", lambda k, draw: 5000 + 3 * k),
        ("number of the record", lambda k, draw: k + 1),
        ("reversed", lambda k, draw: 200 - k),
        ("patient_id", lambda k, draw: (k * 37) % 200),
    ],
)
def test_row_numbers_are_no_features_and_hide_no_duplicates(write: Write, name: str, make: Callable) -> None:
    from fedsim.core.data.encode import deduplicate

    text = lines(200, **{name: make, "age": lambda k, draw: k // 2 % 100}).replace("p\n", "n\n", 1)
    records = encoded(write(text))
    assert records.feature_names == ("age",)
    assert f"'{name}' was dropped: it numbers the records" in said(records)
    assert len(deduplicate(records)) < len(records)
    kept = encoded(write(text), kinds={name: "number"})
    assert name in kept.feature_names


def test_whole_numbers_that_describe_are_kept(write: Write) -> None:
    text = lines(
        300, age=lambda k, draw: draw.integers(20, 90), zip=lambda k, draw: draw.integers(10000, 99999)
    )
    assert encoded(write(text)).feature_names == ("age", "zip")


def test_codes_keep_their_commonest_values_and_other(write: Write) -> None:
    codes = [f"I{k}" for k in range(60)]
    weights = 1 / np.arange(1, 61)
    text = lines(2000, icd=lambda k, draw: draw.choice(codes, p=weights / weights.sum()), age=age)
    records = encoded(write(text))
    names = [name for name in records.feature_names if name.startswith("icd=")]
    assert "icd=other" in names and 10 < len(names) <= 52
    assert (records.features[:, : len(names)].sum(axis=1) == 1).all()
    assert "'icd' keeps its" in said(records) and "data.categories.icd" in said(records)


def test_nearly_unique_values_are_dropped_with_the_reason_and_the_key(write: Write) -> None:
    text = lines(200, name=lambda k, draw: f"n{k % 150}", age=age)
    records = encoded(write(text))
    assert records.feature_names == ("age",)
    assert "'name' was dropped" in said(records) and "data.categories.name" in said(records)
    row = facts(records).loc["name"]
    assert not row["kept"] and "data.kinds.name" in row["change"]


def test_codes_for_missing_and_odd_categories_are_named(write: Write) -> None:
    text = lines(
        300,
        lab=lambda k, draw: -9 if k % 10 == 0 else round(draw.normal(100, 9), 1),
        ward=lambda k, draw: draw.choice(["icu", "ICU", "med"]),
    )
    records = encoded(write(text))
    assert "'-9' in 'lab' stand apart like codes for 'missing'" in said(records)
    assert "values of 'ward' differ in case or blanks only: 'ICU', 'icu'" in said(records)
    again = encoded(write(text), missing=["", "-9"])
    assert "lab missing" in again.feature_names and "stand apart" not in said(again)


def test_a_missing_code_is_missing_however_it_is_written(write: Write) -> None:
    text = "lab,y\n" + "".join(f"{'-9.0' if k % 9 == 0 else k},{'np'[k % 2]}\n" for k in range(90))
    records = encoded(write(text), bounds={"lab": [-10, 100]}, missing=["", "-9"])
    assert (np.array(column(records, "lab"))[::9] == 0).all()


@pytest.mark.parametrize(
    ("values", "is_one"),
    [
        (np.arange(20) * 7 + 3, True),
        (np.random.default_rng(0).permutation(140)[:20] + 1, True),
        (np.repeat(np.arange(10), 2), False),
        (np.arange(20) + 0.5, False),
        (np.random.default_rng(0).choice(5000, 20, replace=False), False),
    ],
)
def test_what_numbers_the_records(values: np.ndarray, is_one: bool) -> None:
    rows = np.arange(0, 140, 7)
    assert columns.is_row_number("n", values.astype(float), rows, 140) == is_one


def test_pixels_of_a_text_table_get_a_shape(write: Write) -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (60, 6))
    pixels[:, 0] = 0  # an edge that is always dark is no reason to drop a pixel
    header = ",".join([*(f"p{k}" for k in range(6)), "y"])
    rows = "\n".join(",".join(map(str, row)) + f",{'np'[k % 2]}" for k, row in enumerate(pixels))
    records = encoded(write(f"{header}\n{rows}\n"), shape=[1, 2, 3])
    assert records.features.shape == (48, 1, 2, 3)
    assert records.features.max() <= 1 and records.features.min() == 0
    assert set(np.round(records.features.ravel() * 255).astype(int)) <= set(pixels.ravel())
    with pytest.raises(
        InputError, match=r"data.shape = \[1, 2, 4\] has 8 values, there are 6 feature columns"
    ):
        encoded(write(f"{header}\n{rows}\n"), shape=[1, 2, 4])


def test_dates_that_rise_day_by_day_number_no_records(write: Write) -> None:
    days = pd.date_range("2020-01-01", periods=90).strftime("%Y-%m-%d")
    text = "seen,lab,y\n" + "".join(f"{day},{k % 7},{'np'[k % 2]}\n" for k, day in enumerate(days))
    assert "seen" in encoded(write(text)).feature_names
