"""A node's own table, encoded by the public schema, is what the same rows were in the organiser's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedsim.core.data import released, table
from fedsim.core.data.by_schema import read_own
from fedsim.core.data.encode import encode
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import DataSettings

HEADER = "visit;age;glucose;ward;ill"


def rows(n: int = 60) -> list[str]:
    draw = np.random.default_rng(3)
    lines = []
    for k in range(n):
        glucose = "" if k % 9 == 0 else f"{draw.normal(100, 20):.1f}".replace(".", ",")
        day = f"{k % 28 + 1:02d}.{k % 12 + 1:02d}.20{k % 20:02d}"
        lines.append(f"{day};{draw.integers(20, 90)};{glucose};{'ABC'[k % 3]};{'yn'[int(draw.integers(2))]}")
    return lines


def written(folder: Path, lines: list[str]) -> Path:
    path = folder / "own.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def schema(tmp_path: Path) -> tuple[released.ReleasedSchema, DataSettings, np.ndarray, np.ndarray]:
    """The organiser's: a table whose numbers and dates are written as in Germany, a third of it public."""
    lines = rows()
    (tmp_path / "all.csv").write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    (tmp_path / "public.csv").write_text("\n".join([HEADER, *rows(90)[60:]]) + "\n", encoding="utf-8")
    settings = DataSettings(
        path=str(tmp_path / "all.csv"),
        label="ill",
        public=str(tmp_path / "public.csv"),
        categories={"ill": ["n", "y"]},
    )
    encoded = encode(table.read(settings), settings, np.random.default_rng(0))
    assert encoded.schema is not None
    fixed = released.release_schema(encoded.schema, settings, encoded.readings)
    return released.from_json(released.to_json(fixed)), settings, encoded.features, encoded.labels


def test_the_same_cells_are_the_same_features(tmp_path: Path, schema: tuple) -> None:
    fixed, settings, features, labels = schema
    own = read_own(written(tmp_path, rows()), fixed, settings)
    np.testing.assert_array_equal(own.records.features, features[own.rows])
    np.testing.assert_array_equal(own.records.labels, labels[own.rows])


def test_what_does_not_fit_is_said_and_left_out(tmp_path: Path, schema: tuple) -> None:
    fixed, settings, *_ = schema
    lines = rows()
    lines[3] = lines[3].rpartition(";")[0] + ";perhaps"
    lines[5] = ";".join(["05.06.2005", "high", "100,0", "Z", "y"])
    own = read_own(written(tmp_path, [*lines, lines[0]]), fixed, settings)
    said = " ".join(own.notices)
    assert "1 record(s) without a known 'ill'" in said and "1 duplicate" in said and "'age'" in said
    assert len(own.records) == 59 and 3 not in own.rows
    with pytest.raises(InputError, match="no column 'ward'"):
        (tmp_path / "less.csv").write_text("visit;age;glucose;ill\n01.01.2001;5;1,0;y\n")
        read_own(tmp_path / "less.csv", fixed, settings)
    with pytest.raises(InputError, match="no record has a 'ill'"):
        read_own(written(tmp_path, [line[:-1] + "?" for line in rows()]), fixed, settings)


def test_records_of_one_person_keep_their_owner(tmp_path: Path, schema: tuple) -> None:
    fixed, settings, *_ = schema
    path = tmp_path / "persons.csv"
    lines = [f"{line};p{k // 2}" if k else f"{line};" for k, line in enumerate(rows(10))]
    path.write_text("\n".join([f"{HEADER};patient", *lines]) + "\n", encoding="utf-8")
    own = read_own(path, fixed, settings, person="patient")
    assert own.person is not None
    assert own.person[2] == own.person[3] and len(set(own.person.tolist())) == 6
