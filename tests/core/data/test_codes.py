"""Names of ids, and numbers that stand for 'missing'."""

from __future__ import annotations

import numpy as np
import pytest

from fedsim.core.data import codes, columns


@pytest.mark.parametrize("name", ["id", "ID", "patient_id", "PatientID", "patientId", "Unnamed: 0", "MRN"])
def test_ids_are_known_by_their_names(name: str) -> None:
    assert codes.names_a_record(name)


@pytest.mark.parametrize("name", ["uric_acid", "thyroid", "COVID", "lipid", "fluid", "steroid", "x", "nr"])
def test_other_names_end_alike(name: str) -> None:
    assert not codes.names_a_record(name)


def test_a_vague_name_takes_a_span_like_that_of_row_numbers() -> None:
    draw, rows = np.random.default_rng(0), np.arange(0, 240, 12)
    measured = draw.choice(12_000, 20, replace=False).astype(float)
    assert not columns.is_row_number("x", measured, rows, 240)
    assert columns.is_row_number("x", draw.choice(330, 20, replace=False).astype(float), rows, 240)
    assert columns.is_row_number("patient_id", measured, rows, 240)


def test_codes_for_missing_stand_apart() -> None:
    values = np.random.default_rng(0).normal(5000, 900, 200)
    assert codes.missing_codes(values) == []
    assert codes.missing_codes(np.append(values, [999999] * 5)) == ["999999"]
    assert codes.missing_codes(np.append(values, [-9.0] * 5)) == ["-9"]
    assert codes.missing_codes(np.append(values, [999999])) == []  # once: an outlier
