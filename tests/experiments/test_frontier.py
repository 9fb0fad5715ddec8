"""The study `experiments/studies/frontier.py`: its words follow the figures."""

from __future__ import annotations

import math
from types import ModuleType

import pandas as pd
import pytest
from scipy import stats
from support import studies

from fedsim.sweeps.file import FIXED


@pytest.fixture(scope="module")
def frontier() -> ModuleType:
    return studies.study("frontier")


def rows(kind: str, metric: str, values: list[float], party: str = "j", attack: str = "") -> list[dict]:
    """Per-game values and their mean, as a sweep's table has them."""
    mean = sum(values) / len(values)
    common = {"kind": kind, "attack": attack, "party": party, "metric": metric, "note": ""}
    common |= {"n_members": 10, "n_nonmembers": 10, "scenario": "s", "cell": "c", "sweep": "epsilon"}
    common["world"] = "all" if attack else ""
    games = [{**common, "game": str(k), "value": value} for k, value in enumerate(values)]
    return [*games, {**common, "game": "all", "value": mean, "low": mean - 0.01, "high": mean + 0.01}]


def variant(name: str, leakage: list[float], own: float = math.inf, utility: float = 0.8) -> pd.DataFrame:
    found = rows("leakage", "auc", leakage, attack="lira") + rows("guarantee", "epsilon", [own])
    found += rows("guarantee", "epsilon", [math.inf], party="i") + rows(
        "leakage", "auc", leakage, "all", "lira"
    )
    found += rows("utility", "auc", [utility + 0.001 * k for k in range(4)], party="all")
    found += rows("leakage", "tpr_at_fpr_0.01", leakage, "all", "lira")
    return pd.DataFrame(found).reindex(columns=[*FIXED, "scenario", "cell", "sweep"]).assign(variant=name)


HIGH, LOW = [0.80, 0.82, 0.78, 0.81], [0.52, 0.50, 0.53, 0.49]


def test_differences_are_paired_by_game(frontier: ModuleType) -> None:
    found = frontier.difference(variant("a", LOW), variant("b", HIGH), "auc", "j", "lira")
    expected = stats.ttest_rel(LOW, HIGH)
    interval = expected.confidence_interval(0.95)
    assert found.value == pytest.approx(sum(LOW) / 4 - sum(HIGH) / 4)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(
    ("own", "others", "everyone", "words"),
    [
        (LOW, HIGH, LOW, ["Yes: ", "lowers the AUC", "not told apart from", "protects j not measurably"]),
        (HIGH, LOW, LOW, ["It does not show: ", "does not measurably change", "protects j too", "less than"]),
        (LOW, LOW, HIGH, ["Yes: ", "more than"]),
    ],
)
def test_the_answer_follows_the_intervals(
    frontier: ModuleType, own: list[float], others: list[float], everyone: list[float], words: list[str]
) -> None:
    found = pd.concat(
        [
            variant("none", HIGH),
            variant("own", own, own=7.9),
            variant("others", others),
            variant("all", everyone, own=7.9),
        ]
    )
    measured = frontier.own_dp(found, "s", "lira")
    assert measured.party == "j" and measured.epsilon == 7.9
    said = frontier.answer([measured], "lira")
    assert said.count(". ") == 1, "two sentences"
    for each in words:
        assert each in said, said


def test_worlds_are_kept_apart(frontier: ModuleType) -> None:
    """What is found where members are unknown stands beside what the closed world has, under its own name."""
    closed, half = variant("a", HIGH), variant("a", LOW)
    half = half[half["kind"] == "leakage"].assign(world="half")
    found = pd.concat([closed, half]).assign(**{frontier.EPSILON: 8.0})
    for world, leakage in (("all", HIGH), ("half", LOW)):
        mine = frontier.in_world(found, world)
        assert frontier.figure(mine, "auc", "all", "lira").value == pytest.approx(sum(leakage) / 4)
        assert frontier.figure(mine, "auc").value == pytest.approx(0.8015)
    lines = frontier.epsilon_section(found, ["lira"])
    assert sum("world 'all'" in line for line in lines) == 1
    cells = next(line for line in lines if line.startswith("| 8 |")).split(" | ")
    assert [cells[column].split(" ")[0] for column in (4, 6)] == ["0.803", "0.510"], "AUC in 'all', in 'half'"


def test_a_defence_is_compared_at_the_strength_nearest_in_utility(frontier: ModuleType) -> None:
    found = pd.concat(
        [
            variant("DP-SGD ε=8", LOW, utility=0.70),
            variant("dropout 0.2", HIGH, utility=0.75),
            variant("dropout 0.5", HIGH, utility=0.705),
            variant("L1 0.1", HIGH, utility=0.60),
        ]
    )
    nearest = frontier.matched(found, "DP-SGD ε=8")
    assert {defence: name for defence, (name, _) in nearest.items()} == {
        "dropout": "dropout 0.5",
        "L1": "L1 0.1",
    }
    assert nearest["dropout"][1].value == pytest.approx(0.005)
    figure = frontier.Figure
    assert frontier.is_matched(figure(0.005, -0.01, 0.02)) and not frontier.is_matched(
        figure(0.005, 0.001, 0.01)
    )
    assert not frontier.is_matched(figure(0.03, -0.01, 0.07))


@pytest.mark.parametrize(("fpr", "epsilon", "delta"), [(0.01, 0.5, 1e-5), (0.1, 4, 1e-5), (0.5, 1, 0.01)])
def test_the_region_is_that_of_the_worst_case_mechanism(
    frontier: ModuleType, fpr: float, epsilon: float, delta: float
) -> None:
    """Kairouz et al.'s mechanism reveals the bit with δ, else answers it by randomised response: its ROC."""
    share = math.exp(epsilon) / (1 + math.exp(epsilon))
    in_world = [delta, (1 - delta) * share, (1 - delta) * (1 - share), 0.0]
    out_world = [0.0, (1 - delta) * (1 - share), (1 - delta) * share, delta]
    tpr, left = 0.0, fpr
    for hit, alarm in zip(in_world, out_world, strict=True):  # Neyman–Pearson: the likeliest first
        part = 1.0 if alarm <= left else left / alarm
        tpr, left = tpr + part * hit, left - part * alarm
    assert frontier.region(fpr, epsilon, delta) == pytest.approx(tpr)


def test_what_exceeds_a_guarantee_is_said(frontier: ModuleType) -> None:
    found = pd.DataFrame(
        rows("leakage", "tpr_at_fpr_0.01", [0.9], attack="lira")
        + rows("guarantee", "epsilon", [1.0])
        + rows("guarantee", "delta", [1e-5])
        + rows("leakage", "tpr_at_fpr_0.01", [0.9], party="i", attack="lira")
        + rows("guarantee", "epsilon", [math.inf], party="i")
    )
    judged = frontier.against_guarantee(found)
    assert list(judged["party"]) == ["j"], "only who has DP has a guarantee"
    assert "1 intervals lie above" in frontier.verdict_on_guarantee(judged)
    twice = pd.concat([found, found.assign(cell="d")])
    assert len(frontier.against_guarantee(twice)) == 1, "one game's figure, though two sweeps have it"
    within = judged.assign(value=0.02, low=0.0)
    said = frontier.verdict_on_guarantee(within)
    assert said.startswith("No: of 1 rates") and "where 0.027 is allowed" in said
