"""Tables that people's machines wrote, each read wrongly once; what is right stands in each test."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.tables import column, encoded, facts, said

from fedsim.core.data.encode import deduplicate
from fedsim.core.data.parties import deal
from fedsim.core.errors import InputError
from fedsim.core.scenario.settings import PartySettings

INPUTS = Path(__file__).resolve().parents[2] / "cases" / "inputs"
HOSPITAL = {"age": [0, 100], "glucose": [50, 300], "bmi": [15, 50]}
DECLARED = {"sex": ["F", "M"], "ward": ["med", "surg", "icu"]}


def place(case: str, name: str = "d.csv") -> Path:
    """The file ``name`` of the one case whose folder begins with ``case``."""
    [folder] = INPUTS.glob(f"{case}-*")
    return folder / name


def read(
    case: str, bounds: dict | None = None, categories: dict | None = None, file: str = "d.csv", **more: object
):
    return encoded(
        place(case, file),
        "outcome",
        party="clinic",
        bounds={**HOSPITAL, **(bounds or {})},
        categories=DECLARED if categories is None else categories,
        **more,
    )


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return (np.clip(values, low, high) - low) / (high - low) * 4 - 2


def test_german_thousands_beside_decimal_commas() -> None:
    records = read("a-03", {"balance": [0, 3000]})
    raw = pd.read_csv(place("a-03"), sep=";", decimal=",", thousands=".", dtype={"balance": str})
    balance = raw["balance"].str.replace(".", "").astype(float)
    np.testing.assert_allclose(column(records, "balance"), scaled(balance.to_numpy(), 0, 3000), atol=1e-5)


def test_a_decimal_comma_with_three_decimals() -> None:
    records = read("a-05", {"creat": [0, 5]})
    creat = pd.read_csv(place("a-05"), decimal=",")["creat"].to_numpy()
    assert creat.max() < 5
    np.testing.assert_allclose(column(records, "creat"), scaled(creat, 0, 5), atol=1e-5)


def test_a_missing_value_of_sas_in_a_column_of_numbers() -> None:
    records = read("a-07")
    assert "hb" in records.feature_names and "hb missing" in records.feature_names
    assert not any(name.startswith("hb=") for name in records.feature_names)
    assert "value(s) of 'hb' are not finite numbers and count as missing: '.'" in said(records)


def test_a_row_number_is_no_feature_and_hides_no_twin() -> None:
    records = read("a-09")
    assert "Unnamed: 0" not in records.feature_names
    assert len(deduplicate(records)) < 0.7 * len(records)
    assert "data.kinds.'Unnamed: 0' = 'number'" in facts(records).loc["Unnamed: 0", "change"]


def test_names_of_parties_are_kept() -> None:
    rows = deal(read("a-10"), PartySettings(), 0)
    assert set(rows) == {"北京医院", "上海医院", "广州医院"}


@pytest.mark.parametrize(
    ("case", "file"), [("a-17", "d.parquet"), ("a-19", "d.parquet"), ("a-22", "d.csv.gz")]
)
def test_a_folder_of_parts_a_named_index_and_a_packed_file_are_the_same_table(case: str, file: str) -> None:
    records = deduplicate(read(case, file=file))  # the two parts of the folder are twins
    assert len(deal(records, PartySettings(), 0)) == 3
    control = deduplicate(read("a-10"))
    np.testing.assert_array_equal(np.sort(records.features, axis=0), np.sort(control.features, axis=0))


def test_excels_separator_line() -> None:
    assert read("a-21").feature_names[:3] == ("age", "glucose", "bmi") and len(read("a-21")) == 120


def test_spellings_of_a_class_are_named_with_their_counts() -> None:
    records = read("a-23")
    assert records.classes == ("No", "Yes", "no", "yes")
    assert "differ in case or blanks only: 'Yes', 'yes'" in said(records)
    assert "'Yes' (" in said(records) and "'no' (" in said(records)


def test_a_party_column_without_a_value_is_a_sentence() -> None:
    with pytest.raises(InputError, match=r"data\.party = 'site': no record has a value"):
        encoded(place("b-08", "party-missing.csv"), party="site", bounds={n: [0, 1] for n in "abc"})


def test_paths_that_are_no_file_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "dirp2.parquet").mkdir()
    for path in (tmp_path / "loop.csv", tmp_path / "dirp2.parquet"):
        with pytest.raises(InputError, match="cannot read"):
            encoded(path)
    with pytest.raises(ValueError, match="it names no file"):
        from support.tables import settings

        settings(tmp_path).model_validate({"path": {}, "label": "y"})


def test_a_public_table_that_is_the_private_one_is_refused(tmp_path: Path) -> None:
    private = INPUTS / "small.csv"
    with pytest.raises(InputError, match="is the private table itself"):
        encoded(private, public=str(private), party="site")
    shutil.copy(private, tmp_path / "copy.csv")
    with (tmp_path / "copy.csv").open("a") as file:
        file.write(f"s0,1,0.5,0.5,0.25{os.linesep}")
    with pytest.raises(InputError, match=r"records of .*copy\.csv are in the private table as well"):
        encoded(private, public=str(tmp_path / "copy.csv"), party="site")
