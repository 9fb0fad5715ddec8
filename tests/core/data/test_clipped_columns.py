from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tables import encoded, facts, said

from fedsim.core.data import clipping
from fedsim.core.errors import InputError

Write = Callable[..., str]


def creatinine(in_micromoles: float, n: int = 80) -> str:
    draw = np.random.default_rng(0)
    share = draw.random(n) < in_micromoles
    values = np.where(share, 88.42, 1) * draw.uniform(0.5, 1.8, n)
    return "creat,age,y\n" + "".join(
        f"{v:.2f},{draw.integers(20, 90)},{'np'[k % 2]}\n" for k, v in enumerate(values)
    )


DECLARED = {"bounds": {"creat": [0, 5], "age": [0, 120]}}


def test_a_column_outside_its_bounds_is_refused_with_a_likely_unit(write: Write) -> None:
    path = write(creatinine(1))
    with pytest.raises(
        InputError, match=r"100% of 'creat' lie outside .*88\.42.*creatinine in µmol/L and mg/dL"
    ) as caught:
        encoded(path, **DECLARED)
    assert "data.clipped = ['creat']" in str(caught.value)
    confirmed = encoded(path, **DECLARED, clipped=["creat"])
    assert facts(confirmed).loc["creat", "clipped"] == 1


def test_a_part_outside_is_said_with_where_the_bounds_came_from(write: Write) -> None:
    records = encoded(write(creatinine(0.3)), **DECLARED)
    assert "of 'creat' lie outside its bounds [0, 5] (declared)" in said(records)
    assert 0.15 < facts(records).loc["creat", "clipped"] < 0.5
    assert facts(records).loc["age", ["clipped", "origin"]].tolist() == [0, "declared"]


def test_records_that_collapse_into_one_are_refused(write: Write) -> None:
    rows = "".join(f"{'1' if k % 5 else k * 10 + 2000.5},{'np'[k % 2]}\n" for k in range(4))
    text = (
        "a,y\n"
        + "".join(f"{0.5 if k % 10 == 0 else 10 + k + 0.5},{'np'[k % 2]}\n" for k in range(100))
        + rows
    )
    with pytest.raises(InputError, match=r"different records are .* once clipped, most of all in 'a'"):
        encoded(write(text), bounds={"a": [0, 1]})
    assert len(encoded(write(text), bounds={"a": [0, 1]}, clipped=["a"])) == 104


@given(seed=st.integers(0, 999), n=st.integers(1, 40))
def test_equal_rows_have_equal_hashes_and_others_do_not(seed: int, n: int) -> None:
    rows = np.random.default_rng(seed).choice([0.0, -0.0, 1.0, 2.0], size=(n, 3)).astype(np.float32)
    hashes = clipping.row_hashes(rows)
    for i in range(n):
        for j in range(n):
            assert (hashes[i] == hashes[j]) == np.array_equal(rows[i], rows[j])
