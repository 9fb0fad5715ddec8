from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.core.data import numbers
from fedsim.core.data.numbers import STYLES, Spelling
from fedsim.core.errors import InputError

NARROW, NO_BREAK = "\u202f", "\u00a0"


def read(cells: list[str], usual: str | None = None, **settings: str | None) -> list[float]:
    styles = numbers.allowed(settings.get("decimal"), settings.get("thousands"))
    column = numbers.profile(cells)
    assert column.is_number
    spelling = numbers.choose("x", column, styles, usual)
    return numbers.read(pd.Series(cells, dtype="str"), spelling).tolist()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1.234,5", "950", "7"], [1234.5, 950, 7]),
        (["1,234.5", "950", "7"], [1234.5, 950, 7]),
        (["1'234.50", "12.25"], [1234.5, 12.25]),
        (["1’234’567", "1"], [1234567, 1]),
        ([f"1{NARROW}234,5", "12,0"], [1234.5, 12]),
        ([f"12{NO_BREAK}345", "1,5"], [12345, 1.5]),
        (["0,857", "1,757"], [0.857, 1.757]),
        (["1.234.567", "8"], [1234567, 8]),
        (["12,34,567", "5"], [1234567, 5]),
        (["€ 1.234,50", "€ 3,00"], [1234.5, 3]),
        (["1.234,50 €", "-3,00 €"], [1234.5, -3]),
        (["$1,234.50", "-$5"], [1234.5, -5]),
        (["CHF 1'234.50", "CHF 5"], [1234.5, 5]),
        (["12 %", "13.5%"], [12, 13.5]),
        (["85 kg", "90.5 kg", "70"], [85, 90.5, 70]),
        (["5 mg/dl", "7.5 mg/dl"], [5, 7.5]),
        (["(1,234.5)", "7.25", "2-"], [-1234.5, 7.25, -2]),
        (["−5", "+3.5", "1e3"], [-5, 3.5, 1000]),
        ([".5", "1."], [0.5, 1]),
        (["4,104E+03", "1,250E+03"], [4104, 1250]),  # nobody groups a mantissa
        (["４８２０.５", "７"], [4820.5, 7]),
        (["٤٨٢٠٫٥", "٧"], [4820.5, 7]),
    ],
)
def test_a_column_is_read_as_its_cells_together_say(cells: list[str], expected: list[float]) -> None:
    assert read(cells) == expected


@pytest.mark.parametrize(
    ("cells", "usual", "expected"),
    [
        (["1.230", "173"], ",", [1230, 173]),
        (["1.230", "173"], ".", [1.23, 173]),
        (["1,230", "173"], ",", [1.23, 173]),
        (["1,230", "173"], ".", [1230, 173]),
        (["0,857", "1,757"], ".", [0.857, 1.757]),  # a group never starts with 0, whatever the file's habit
    ],
)
def test_the_files_other_columns_decide_where_the_column_does_not(
    cells: list[str], usual: str, expected: list[float]
) -> None:
    assert read(cells, usual) == expected


@pytest.mark.parametrize("cells", [["1.230", "173"], ["1,230", "2,500"], ["$1,234", "$5"]])
def test_two_readings_are_refused_with_both_shown_and_settings_decide(cells: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read(cells)
    both = {f"{value:g}" for decimal in ".," for value in read(cells, decimal=decimal)[:1]}
    assert len(both) == 2 and all(value in str(caught.value) for value in both)
    assert "set data.decimal" in str(caught.value)


def test_a_single_slip_does_not_turn_a_column_over() -> None:
    with pytest.raises(InputError, match=r"'1,000' is 1 .* or 1000"):
        read([f"{k},000" for k in range(1, 60)] + ["12,34"], usual=".")


def test_two_ways_of_writing_in_one_column_are_refused() -> None:
    with pytest.raises(InputError, match=r"mixes ways of writing numbers, '1,5' and '1.5'"):
        read(["1,5", "2,5", "3,5", "1.5"])
    assert np.isnan(read(["1,5", "2,5", "3,5", "1.5"], decimal=",", thousands="")[-1])


@pytest.mark.parametrize(
    "cells",
    [["E11.9", "I10"], ["1A", "2B", "3C"], ["c1", "c2"], ["F", "M"], ["10-20", "20-30"], ["a,b", "c"]],
)
def test_words_and_codes_are_no_numbers(cells: list[str]) -> None:
    assert not numbers.profile(cells).is_number


@pytest.mark.parametrize(
    "odd", [".", "#DIV/0!", "<0.5", "> 100", "k.A.", "n/a", "inf", "na", "-", "not done", "unknown", "#N/A"]
)
def test_odd_spellings_leave_a_column_of_numbers_one(odd: str) -> None:
    cells = [f"{k}.5" for k in range(20)] + [odd] * 10
    column = numbers.profile(cells)
    assert column.is_number and dict(column.odd) == {odd: 10}
    spelling = numbers.choose("x", column, STYLES, None)
    values = numbers.read(pd.Series(cells, dtype="str"), spelling)
    assert np.isnan(values[20:]).all() and values[:20].tolist() == [k + 0.5 for k in range(20)]


def slow_value(text: str, style: Spelling) -> float:
    """One cell by the obvious rules, without regular expressions."""
    sign = -1 if text.startswith("-") else 1
    whole, _, fraction = text.lstrip("+-").partition(style.decimal)
    groups = whole.split(style.thousands) if style.thousands else [whole]
    plain = [group.isdigit() for group in groups]
    usual = len(groups) == 1 or (
        len(groups[0]) <= 3 and groups[0][:1] != "0" and all(len(group) == 3 for group in groups[1:])
    )
    if not (all(plain) and usual and (fraction == "" or fraction.isdigit())):
        return np.nan
    return sign * float("".join(groups) + "." + (fraction or "0"))


@given(
    text=st.from_regex(r"\A-?[0-9]{1,4}([.,' ][0-9]{1,4}){0,3}\Z"),
    style=st.sampled_from([style for style in STYLES if style.thousands != ","]),
)
def test_one_cell_is_read_as_the_slow_rules_read_it(text: str, style: Spelling) -> None:
    np.testing.assert_allclose(numbers.values([text], style)[0], slow_value(text, style), rtol=1e-12)


def written(value: float, style: Spelling, places: int) -> str:
    whole, _, fraction = f"{abs(value):,.{places}f}".partition(".")
    text = whole.replace(",", style.thousands) + (style.decimal + fraction if fraction else "")
    return ("-" if value < 0 else "") + text


@given(
    values=st.lists(st.floats(-1e7, 1e7), min_size=5, max_size=30),
    style=st.sampled_from(STYLES),
    places=st.integers(1, 4),
    unit=st.sampled_from(["", " €", " kg", "%"]),
)
def test_numbers_written_in_a_locale_read_back(
    values: list[float], style: Spelling, places: int, unit: str
) -> None:
    """Either as the numbers they are, or refused; never as other ones."""
    rounded = [round(value, places) for value in values]
    cells = [written(value, style, places) + unit for value in rounded]
    declared = {"decimal": style.decimal, "thousands": style.thousands}
    np.testing.assert_allclose(read(cells, **declared), rounded, rtol=1e-9)
    try:
        found = read(cells, usual=style.decimal)
    except InputError as error:
        assert "set data.decimal" in str(error)
        return
    np.testing.assert_allclose(found, rounded, rtol=1e-9)


@given(st.lists(st.text("0123456789.,' +-e", min_size=1, max_size=9), min_size=1, max_size=6))
def test_styles_that_are_taken_for_alike_read_alike(cells: list[str]) -> None:
    text = "".join(cells)
    for style in numbers.STYLES:
        alike = numbers.alike_for(style, text)
        np.testing.assert_array_equal(numbers.values(cells, style), numbers.values(cells, alike))
        for cell in cells:
            fits = [bool(numbers._PATTERNS[one].match(cell)) for one in (style, alike)]
            assert fits[0] == fits[1]


def test_percentages_and_shares_are_not_mixed() -> None:
    with pytest.raises(InputError, match=r"mixes '31.6%' and '0.42', which is 0.42 % or a share of 1"):
        read(["31.6%", "0.42", "8.5%", "0.11"])
    assert read(["31.6%", "42", "8.5%", "0.11"]) == [31.6, 42, 8.5, 0.11]  # 42 is no share


def test_units_that_differ_are_named() -> None:
    assert numbers.several_units(["$5", "€6", "$7"]) == "'$' and '€'"
    assert numbers.several_units(["5 mg", "0.1 g", "7 mg"]) == "'mg' and 'g'"
    assert numbers.several_units(["5 mg", "6", "7 mg"]) == ""
    assert numbers.several_units(["ward 5", "ward 6"]) == ""
