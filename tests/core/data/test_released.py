"""Raw records of a released model: the same features as in training, and back."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import prepared_run
from support.tables import encoded, settings

from fedsim.core.data import catalogue, dates, encode, numbers, released, table
from fedsim.core.data.released import ReleasedSchema, decode_rows, encode_rows, release_schema
from fedsim.core.data.schema import Column, Schema
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import DataSettings

COLUMNS = (
    Column("age", "number", (0.0, 100.0), missing=True),
    Column("pressure", "number", (80.0, 180.0)),
    Column("ward", "category", categories=("A", "B", "1", "None")),
    Column("smokes", "category", categories=("False", "True")),
)
SCHEMA = Schema(COLUMNS, "ill", ("no", "yes"))
OWN = release_schema(SCHEMA, DataSettings(path="own.csv", label="ill", missing=["?", "NA", "-9"]))
ROW: dict[str, Any] = {"age": 40, "pressure": 120.5, "ward": "A", "smokes": True}


def in_training(schema: ReleasedSchema, frame: pd.DataFrame) -> np.ndarray:
    """The slow twin: the features that `encode` gives the same cells."""
    whole = frame.assign(**{schema.schema.label: schema.schema.classes[0]})
    clean = pd.DataFrame({name: table._clean(whole[name], list(schema.spellings)) for name in whole})
    source = table.Table(clean, schema.schema, "table", {})
    return encode.encode(source, DataSettings(), np.random.default_rng(0)).features


def cells(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The frame's rows as a client would send them: through JSON, null for a missing value."""
    plain = frame.astype(object).where(frame.notna(), None)
    return json.loads(json.dumps(plain.to_dict("records"), default=lambda value: value.item()))


@pytest.mark.parametrize("name", [n for n in catalogue.names() if not catalogue.get(n).schema.is_text])
def test_every_named_set_is_encoded_as_in_training(name: str, data_dir: Path) -> None:
    if catalogue.get(name).files and not (data_dir / catalogue.get(name).folder).is_dir():
        pytest.skip(f"{name} is not in {data_dir}")
    source = catalogue.load(name, data_dir)
    few = source.frame.sample(min(60, len(source)), random_state=1).reset_index(drop=True)
    own = replace(source.schema, party=None, person=None)
    encoded = encode.encode(replace(source, frame=few, schema=own), DataSettings(), np.random.default_rng(0))
    schema = release_schema(source.schema, DataSettings(name=name))
    features = encode_rows(schema, cells(few[list(source.schema.names)]))
    np.testing.assert_array_equal(features, encoded.features)
    np.testing.assert_allclose(encode_rows(schema, decode_rows(schema, features)), features, atol=1e-7)


def own_table(n: int, seed: int) -> pd.DataFrame:
    """A table as people write one: every kind of column, every one with missing cells."""
    stream = np.random.default_rng(seed)
    day = pd.Timestamp("2020-01-01") + pd.to_timedelta(stream.integers(0, 900, n), "D")
    frame = pd.DataFrame(
        {
            "weight": [f"{value:.1f} kg".replace(".", ",") for value in stream.uniform(40, 120, n)],
            "cost": [
                f"{value:,.2f}".translate(str.maketrans(",.", ".,")) for value in stream.gamma(2, 900, n)
            ],
            "beds": stream.integers(1, 9, n).astype(str),
            "seen": day.strftime("%d.%m.%Y"),
            "born": day.strftime("%Y%m%d"),
            "told": day.strftime("%Y-%m-%dT%H:%M:%S"),
            "icd": [f"C{int(value)}" for value in stream.exponential(15, n)],
            "ward": stream.choice(["1", "2.0", "north"], n),
            "smokes": stream.choice(["True", "False"], n),
            "y": stream.choice(["no", "yes"], n),
        }
    )
    for name in frame.columns[:-1]:
        frame.loc[stream.random(n) < 0.1, name] = stream.choice(["", "?", "-9"])
    return frame


def test_a_table_as_people_write_it_is_encoded_as_in_training(tmp_path: Path) -> None:
    """Units, decimal commas, dates in three spellings, codes with 'other': all learnt from public records."""
    own_table(400, 1).to_csv(tmp_path / "public.csv", index=False, sep=";")
    raw = own_table(150, 2)
    raw.to_csv(tmp_path / "own.csv", index=False, sep=";")
    stated = {"public": str(tmp_path / "public.csv"), "missing": ["", "?", "-9"]}
    learnt = encoded(tmp_path / "own.csv", **stated)
    assert learnt.schema is not None and len(learnt) == len(raw)
    assert learnt.schema["icd"].other and learnt.schema["ward"].kind == "category"
    schema = release_schema(learnt.schema, settings(tmp_path / "own.csv", **stated), learnt.readings)
    assert {name: style.words for name, style in schema.written.items() if style.words} == {
        "weight": "decimal comma, in kg",
        "cost": "decimal comma",
        "seen": "DD.MM.YYYY",
        "born": "YYYYMMDD",
        "told": "YYYY-MM-DD",
        "beds": "decimal comma",
    }
    schema = released.from_json(json.loads(json.dumps(released.to_json(schema))))
    rows = raw[list(schema.schema.names)].to_dict("records")
    features = encode_rows(schema, rows)
    np.testing.assert_array_equal(features, learnt.features)
    assert features[:, learnt.feature_names.index("icd=other")].any()
    whole = [
        row | {"born": int(row["born"])} if row["born"].isdigit() else row for row in rows
    ]  # a number is a day as it is written
    np.testing.assert_array_equal(encode_rows(schema, whole), features)
    np.testing.assert_allclose(encode_rows(schema, decode_rows(schema, features)), features, atol=1e-6)


def test_a_typed_file_is_encoded_as_in_training(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    n = 120
    frame = pd.DataFrame(
        {
            "share": stream.normal(size=n),
            "stage": stream.integers(1, 5, n),
            "count": np.where(stream.random(n) < 0.2, -9, stream.integers(0, 300, n)),
            "when": pd.Timestamp("2021-05-01 06:30") + pd.to_timedelta(stream.integers(0, 90_000, n), "min"),
            "smokes": stream.random(n) < 0.5,
            "y": stream.choice(["no", "yes"], n),
        }
    )
    frame.to_parquet(tmp_path / "own.parquet")
    frame.sample(60, random_state=1).assign(share=stream.normal(size=60)).to_parquet(
        tmp_path / "public.parquet"
    )
    stated = {
        "public": str(tmp_path / "public.parquet"),
        "missing": ["-9"],
        "kinds": {"stage": "category"},
    }
    learnt = encoded(tmp_path / "own.parquet", **stated)
    assert learnt.schema is not None
    schema = release_schema(learnt.schema, settings(tmp_path / "own.parquet", **stated), learnt.readings)
    rows = cells(frame.assign(when=frame["when"].dt.strftime("%Y-%m-%dT%H:%M:%S"))[list(schema.schema.names)])
    np.testing.assert_array_equal(encode_rows(schema, rows), learnt.features)


def test_pixels_are_encoded_as_in_training(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    frame = pd.DataFrame(stream.integers(0, 300, (40, 4)).astype(float), columns=list("abcd"))
    frame = frame.mask(stream.random(frame.shape) < 0.1).assign(y=stream.choice(["no", "yes"], 40))
    frame.to_csv(tmp_path / "own.csv", index=False)
    stated = {"shape": [1, 2, 2], "bounds": {name: [0, 255] for name in "abcd"}}
    learnt = encoded(tmp_path / "own.csv", **stated)
    assert learnt.schema is not None
    schema = release_schema(learnt.schema, settings(tmp_path / "own.csv", **stated), learnt.readings)
    np.testing.assert_array_equal(encode_rows(schema, cells(frame[list("abcd")])), learnt.features)


DATED = replace(OWN, written={"age": dates.STYLES[3]})


def test_a_day_can_be_written_as_in_the_table_or_as_iso_8601_alone() -> None:
    one, other = encode_rows(DATED, [ROW | {"age": "02.01.1970"}, ROW | {"age": "1970-01-02"}])
    np.testing.assert_array_equal(one, other)
    for wrong in (1.0, 1, True, "1970", "01/02/1970"):
        with pytest.raises(InputError, match=r"'age' takes a date, DD\.MM\.YYYY or YYYY-MM-DD, or null"):
            encode_rows(DATED, [ROW | {"age": wrong}])


@pytest.mark.parametrize("style", [None, numbers.Spelling(",", ".", "€"), dates.STYLES[3]])
@pytest.mark.parametrize("text", ["(" + "1" * 900_000, "1" * 900_000 + " ", "\ud800", "1.1." * 200_000])
def test_no_text_takes_long_to_refuse(style: Any, text: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match="'age' takes"):
        encode_rows(replace(OWN, written={} if style is None else {"age": style}), [ROW | {"age": text}])
    assert time.monotonic() - began < 1


figures = st.one_of(
    st.none(),
    st.floats(-1e6, 1e6),
    st.integers(-1000, 1000),
    st.sampled_from(["12", " 7.50 ", "?", "NA", "-9", "1e2", "2020-02-29"]),
)
words = st.one_of(st.none(), st.sampled_from(["A", "B ", "1", "1.0", "None", "?", "z", "1.", ""]))


@given(st.lists(st.tuples(figures, figures, words), min_size=1, max_size=8))
def test_cells_are_encoded_as_in_training(rows: list[tuple[Any, Any, Any]]) -> None:
    given_rows = [{"age": a, "pressure": b, "ward": c, "smokes": None} for a, b, c in rows]
    frame = pd.DataFrame(given_rows, columns=list(SCHEMA.names)).astype(object)
    given_rows[0]["pressure"] = frame.loc[0, "pressure"] = 100.0  # a column of text alone is refused there
    given_rows[0]["age"] = frame.loc[0, "age"] = 50.0
    as_text = frame.map(lambda cell: None if cell is None else str(cell))
    np.testing.assert_array_equal(encode_rows(OWN, given_rows), in_training(OWN, as_text))


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(80, 180), st.sampled_from(["A", "B", None]))))
def test_decoded_records_have_the_features_they_came_from(rows: list[tuple[float, float, str]]) -> None:
    records = [{"age": a, "pressure": b, "ward": c, "smokes": "True"} for a, b, c in rows]
    records.append({"age": None, "pressure": None, "ward": None, "smokes": None})
    features = encode_rows(OWN, records)
    again = encode_rows(OWN, decode_rows(OWN, features))
    np.testing.assert_allclose(again, features, rtol=1e-7, atol=1e-15)


def test_what_no_table_can_say_is_moved_to_what_it_can() -> None:
    features = encode_rows(OWN, [ROW])
    features[0, 0], features[0, 3:7] = 9.0, [0.2, 0.7, 0.6, 0.1]
    (nearest,) = decode_rows(OWN, features)
    assert nearest["age"] == 100.0 and nearest["ward"] == "B" and nearest["smokes"] == "True"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"age": "forty"}, "record 2: column 'age' takes a finite number or null"),
        ({"age": float("inf")}, "takes a finite number"),
        ({"age": float("nan")}, "takes a finite number"),
        ({"age": 10**400}, "takes a finite number"),
        ({"age": True}, "takes a finite number"),
        ({"age": [1]}, "column 'age' takes a number or null, nothing nested"),
        ({"ward": {"x": 1}}, "column 'ward' takes a category or null"),
        ({"Age": 1}, "record 2 has a column that the model does not know; did you mean 'age'?"),
    ],
)
def test_bad_cells_are_named_and_not_repeated(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        encode_rows(OWN, [ROW, ROW | changes])
    assert said in str(error.value) and "forty" not in str(error.value)


def test_an_absent_column_is_named() -> None:
    with pytest.raises(InputError, match="record 1 has no column 'ward'; a missing value is null"):
        encode_rows(OWN, [{name: value for name, value in ROW.items() if name != "ward"}])


def test_the_features_do_not_depend_on_the_other_records() -> None:
    rows = [ROW, ROW | {"ward": 1}, ROW | {"ward": True}, ROW | {"ward": "1.0", "age": None}]
    together = encode_rows(OWN, rows)
    np.testing.assert_array_equal(together, np.concatenate([encode_rows(OWN, [row]) for row in rows]))
    assert together[1, 5] == 1 and not together[2, 3:7].any()


def test_a_category_spelled_like_a_missing_value_stays_one_in_a_named_set() -> None:
    named = release_schema(SCHEMA, DataSettings(name="heart-disease"))
    assert "None" not in named.spellings and "?" in named.spellings
    assert encode_rows(named, [ROW | {"ward": "None"}])[0, 6] == 1


def test_a_run_folder_keeps_the_schema(tmp_path: Path) -> None:
    run = prepared_run(tmp_path)
    schema = released.read_schema(run.path)
    assert schema.shape == tuple(run.manifest["input_shape"])
    assert schema.schema.classes == tuple(run.manifest["classes"]) and schema.schema.names == (
        "age",
        "pressure",
        "ward",
    )
    records = released.from_json(json.loads(json.dumps(released.to_json(schema))))
    assert records == schema


def test_under_dp_the_classes_are_those_that_public_records_show(tmp_path: Path) -> None:
    own_table(100, 1).to_csv(tmp_path / "public.csv", index=False, sep=";")
    own_table(100, 2).assign(y=["no", "yes", "rare", "no"] * 25).to_csv(tmp_path / "own.csv", index=False)
    learnt = encode.under_dp(encoded(tmp_path / "own.csv", public=str(tmp_path / "public.csv")))
    assert learnt.schema is not None and learnt.schema.classes == learnt.classes == ("no", "yes")


def test_the_learnt_schema_is_kept_too(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, n=120, data={"path": str(tmp_path / "patients.csv"), "label": "ill"})
    schema = released.read_schema(run.path).schema
    assert not schema.undeclared and schema["ward"].categories == ("A", "B", "C")


def test_a_run_without_it_and_a_corrupt_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"schema\.json is missing: an earlier fedsim made this run"):
        released.read_schema(tmp_path)
    (tmp_path / "schema.json").write_text('{"columns": [{"name": "x"}]}')
    with pytest.raises(InputError, match="it is not the schema of a table"):
        released.read_schema(tmp_path)
