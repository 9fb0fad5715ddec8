"""The study `every_attack.py`: sections that stay, budgets by data set, words of ratios."""

from __future__ import annotations

import math
from types import ModuleType

import click
import pytest
from support import studies

from attacks import registry
from fedsim.evaluation.comparison import Comparison


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return studies.study("every_attack")


def test_a_section_is_replaced_and_the_others_stay(study: ModuleType) -> None:
    page = study.replaced("", "location", ["## location", "", "places"])
    page = study.replaced(page, "hospitals", ["## hospitals", "", "### hospitals, world 'all'", "", "old"])
    assert page.index("## hospitals") < page.index("## location")
    again = study.replaced(page, "hospitals", ["## hospitals", "", "new"])
    assert "new" in again and "old" not in again and "places" in again
    assert again == study.replaced(again, "hospitals", ["## hospitals", "", "new"])
    assert again.count(study.TITLE[0]) == 1 and again.endswith("places\n")


def test_budgets_are_for_all_or_for_one(study: ModuleType) -> None:
    usual = {"heart": 4, "location": 1}
    assert study.by_name([], usual, 1) == usual
    assert study.by_name(["2", "location=3"], usual, 1) == {"heart": 2, "location": 3}
    for text in ("moon=3", "heart=", "heart=0", "many"):
        with pytest.raises(click.BadParameter, match="with a NAME of heart, location"):
            study.by_name([text], usual, 1)


def test_ratios_in_words(study: ModuleType) -> None:
    assert study.times(Comparison(2.04, 1.5, math.inf, 0.01)) == "2.0 (1.5 to ∞)"
    assert study.times(Comparison(math.nan, 0.0, math.inf, 1.0)) == "neither finds any (0.0 to ∞)"


def test_it_asks_for_attacks_that_there_are(study: ModuleType) -> None:
    assert {attack.name for attack in registry.select(list(study.STRONG))} == set(study.STRONG)
