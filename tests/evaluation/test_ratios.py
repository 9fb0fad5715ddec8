from __future__ import annotations

import math

import numpy as np
import pytest

from fedsim.evaluation import comparison
from fedsim.evaluation.comparison import Scored
from fedsim.evaluation.estimates import tpr_at_fpr
from fedsim.evaluation.ratios import ratio_of_tpr


def game(seed: int, shifts: tuple[float, float], n: int = 300) -> Scored:
    stream = np.random.default_rng(seed)
    member = np.arange(2 * n) < n
    return Scored(stream.normal(size=(2, 2 * n)) + np.array(shifts)[:, None] * member, member)


def test_it_is_the_ratio_of_the_rates_of_the_leakage_table() -> None:
    one = game(1, (2.0, 1.0))
    rates = [tpr_at_fpr(row[one.member], row[~one.member], 0.1).value for row in one.scores]
    found = ratio_of_tpr([one], 0.1, np.random.default_rng(0))
    assert found.value == pytest.approx(rates[0] / rates[1])
    assert 1 < found.low < found.value < found.high and found.p < 0.01


def test_turned_round_it_is_the_inverse() -> None:
    one = game(2, (1.5, 1.0))
    turned = Scored(one.scores[::-1], one.member)
    there, back = (ratio_of_tpr([each], 0.1, np.random.default_rng(0)) for each in (one, turned))
    assert back.value == pytest.approx(1 / there.value)
    assert back.low == pytest.approx(1 / there.high, rel=0.05)


def test_its_interval_holds_one_where_two_attacks_are_alike() -> None:
    covered = [
        found.low <= 1 <= found.high
        for seed in range(40)
        for found in [ratio_of_tpr([game(seed, (1.0, 1.0))], 0.1, np.random.default_rng(seed), draws=300)]
    ]
    assert np.mean(covered) > 0.85


def test_over_nothing_it_is_infinite_and_of_nothing_unknown() -> None:
    member = np.arange(200) < 100
    none = np.where(member, -1.0, 1.0)  # every member below every non-member
    all_found = np.where(member, 1.0, -1.0)
    found = ratio_of_tpr([Scored(np.stack([all_found, none]), member)], 0.1, np.random.default_rng(0), 50)
    assert found.value == found.high == math.inf
    nothing = ratio_of_tpr([Scored(np.stack([none, none]), member)], 0.1, np.random.default_rng(0), 50)
    assert math.isnan(nothing.value) and nothing.low == 0 and nothing.high == math.inf


def test_the_bootstrap_is_the_one_of_the_difference() -> None:
    one = game(3, (1.5, 1.0))
    rates, drawn = comparison.bootstrapped_tpr([one], 0.1, np.random.default_rng(0), 200)
    difference = comparison.compare_tpr([one], 0.1, np.random.default_rng(0), 200)
    assert difference.value == pytest.approx(rates[0] - rates[1])
    assert difference.low == pytest.approx(np.quantile(drawn[0] - drawn[1], 0.025))
