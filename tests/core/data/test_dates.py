from __future__ import annotations

import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.data import dates
from fedsim.core.errors import InputError


def read(cells: list[str], declared: str | None = None, usual: bool | None = None) -> list[float]:
    styles, share = dates.best(cells)
    assert share == 1 and dates.could_be_dates(cells)
    return dates.days(cells, dates.choose("x", styles, cells[0], declared, usual)).tolist()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1970-01-02", "2020-01-02"], [1, 18263]),
        (["1970-01-02T12:00:00Z", "1970-01-02 06:00"], [1.5, 1.25]),
        (["1970-01-02T02:00:00+02:00"], [1]),
        (["15.03.2021", "1.4.2020"], [18701, 18353]),
        (["15.03.21 06:00"], [18701.25]),
        (["3/15/2021", "4/1/2021"], [18701, 18718]),
        (["15/3/2021", "1/4/2021"], [18701, 18718]),
        (["3/15/2021 6:00 PM"], [18701.75]),
        (["15-Mar-2021", "1 Apr 2021"], [18701, 18718]),
        (["Mar 15, 2021"], [18701]),
        (["15. März 2021"], [18701]),
        (["20210315", "20210401"], [18701, 18718]),
        (["2021/03/15"], [18701]),
    ],
)
def test_dates_are_days_since_1970(cells: list[str], expected: list[float]) -> None:
    np.testing.assert_allclose(read(cells), expected, atol=1e-9)


def test_day_and_month_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(InputError, match=r"'3/4/2021' is DD/MM/YYYY or MM/DD/YYYY.*data.dates"):
        read(["3/4/2021", "5/6/2021"])
    assert read(["3/4/2021"], "day-first") == [18720] and read(["3/4/2021"], "month-first") == [18690]
    assert read(["3/4/2021"], usual=True) == [18720], "another column of the file tells"


def test_no_date_is_read_out_of_other_things() -> None:
    for cells in (
        ["E11.9", "I10"],
        ["1.5", "2.5"],
        ["10-20", "20-30"],
        ["2021-02-30", "2021-13-01"],
        ["a b"],
    ):
        assert dates.best(cells)[1] == 0 or not dates.could_be_dates(cells)


@given(
    days=st.lists(st.dates(datetime.date(1930, 1, 1), datetime.date(2060, 1, 1)), min_size=1, max_size=20),
    form=st.sampled_from(["%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d %b %Y", "%Y%m%d"]),
)
def test_dates_read_back(days: list[datetime.date], form: str) -> None:
    cells = [day.strftime(form) for day in days]
    declared = "day-first" if form == "%d/%m/%Y" else "month-first"
    if form == "%Y%m%d":
        cells = [cell for cell in cells if cell[:2] in ("19", "20")]
    assert read(cells, declared) == [(day - datetime.date(1970, 1, 1)).days for day in days]
