"""How many shadows an adversary simulates."""

from __future__ import annotations

import pytest

from attacks.shadows import budget
from fedsim.core.scenario.adversary import AdversarySettings


def test_the_budget_of_the_first_rounds_is_the_shadows_own_or_what_is_set() -> None:
    assert budget.early(AdversarySettings(shadows=100), 1000) == 800
    assert budget.early(AdversarySettings(shadows=100, early_shadows=150), 1000) == 150
    assert budget.early(AdversarySettings(shadows=100, early_shadows=16), 1000) == 100
    # As many as their weights may take: 256 MiB of four bytes each.
    assert budget.early(AdversarySettings(shadows=100), 2**26 // 300) == pytest.approx(300, abs=1)
    assert budget.early(AdversarySettings(shadows=100), 2**26) == 100


def test_it_is_said_with_every_figure() -> None:
    words = budget.in_words(AdversarySettings(shadows=64), 898)
    assert words == "64 shadow federations of all rounds, 512 of the first two"
    words = budget.in_words(AdversarySettings(shadows=64, decoded_rounds=3), 898)
    assert words.endswith("512 of the first two, 3 updates decoded alone")
    assert "up to 512" in budget.in_words(AdversarySettings(shadows=64), None)
