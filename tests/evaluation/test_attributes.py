"""The judge of attribute inference: intervals that cover, and differences that are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.evaluation import attributes
from fedsim.evaluation.estimates import rate


def test_paired_difference_is_newcombes() -> None:
    """Newcombe 1998 (Statistics in Medicine 17:2635), table II: 36, 12, 2, 0 gives 0.2 (0.0569, 0.3404)."""
    cells = [(True, True)] * 36 + [(True, False)] * 12 + [(False, True)] * 2
    first, second = np.array(cells).T
    found = attributes.paired_difference(first, second)
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.0569, abs=6e-4)
    assert found.high == pytest.approx(0.3404, abs=6e-4)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_paired_difference_covers(share: float) -> None:
    stream, hits = np.random.default_rng(4), 0
    for _ in range(1000):
        base = stream.random(60) < 0.6
        changed = stream.random(60) < share
        found = attributes.paired_difference(base ^ (changed & (stream.random(60) < 0.7)), base)
        true = 0.7 * share * (1 - 2 * 0.6)  # those wrong that turn right, minus those right that turn wrong
        hits += found.low <= true <= found.high
    assert hits >= 930


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_paired_difference_turns_its_sign_with_its_arguments(cells: list[tuple[bool, bool]]) -> None:
    first, second = np.array(cells).T
    one, other = attributes.paired_difference(first, second), attributes.paired_difference(second, first)
    assert one.value == pytest.approx(-other.value)
    assert one.low == pytest.approx(-other.high)
    assert one.low - 1e-12 <= one.value <= one.high + 1e-12


def test_the_leak_is_what_members_lose_beyond_imputation_and_others_do_not() -> None:
    member = np.arange(200) < 100
    value = np.zeros(200, np.int64)
    value[[5, 150]] = -1
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    baseline = np.array([right if i % 2 else wrong for i in range(200)])
    attack = np.where(member[:, None], right, baseline)
    called = np.arange(200) < 50
    judged = attributes.evaluate({"imputation": baseline, "attack": attack}, value, member, called)
    table = attributes.over_games([judged, judged]).set_index(["attack", "records", "metric"])
    assert table.loc[("attack", "members", "accuracy"), "value"] == 1
    assert table.loc[("attack", "members", "accuracy"), "n"] == 2 * 99
    leak = table.loc[("attack", "difference", "leak")]
    assert leak["low"] > 0.3 and leak["value"] == pytest.approx(0.5, abs=0.02)
    none = table.loc[("imputation", "difference", "leak")]
    assert none["value"] == 0 and none["low"] <= 0 <= none["high"]
    assert table.loc[("attack", "called members", "accuracy"), "value"] == 1


def test_a_difference_over_games_may_be_negative() -> None:
    low, high = rate(10, 100), rate(60, 100)
    pooled = attributes.mean_difference([attributes.difference(low, high)] * 3)
    assert pooled.value == pytest.approx(-0.5)
    assert -0.7 < pooled.low < -0.5 < pooled.high < -0.3
