"""How a party under DP-SGD trains, in a scenario with parties that have it and parties that have not."""

from __future__ import annotations

import pytest

from fedsim.core.privacy.plan import make_plan
from fedsim.core.scenario.reading import parse
from fedsim.core.scenario.training import ModelSettings


def test_a_private_party_trains_by_its_own_settings_and_the_others_by_theirs() -> None:
    scenario = parse(
        {
            "training": {"lr": 0.05, "batch": 4, "private": {"lr": 0.7, "epochs": 3, "clipping_norm": 2.5}},
            "dp": {"a": {"epsilon": 3}, "b": {"epsilon": 3, "clipping_norm": 0.5}},
            "defences": {"b": {"epochs": 1}},
        }
    )
    assert (scenario.training_of("c").lr, scenario.training_of("c").batch) == (0.05, 4)
    assert (scenario.training_of("a").lr, scenario.training_of("a").epochs) == (0.7, 3)
    assert scenario.training_of("b").epochs == 1  # what it does by itself goes before what all do
    norms = [dp.clipping_norm for name in "ab" if (dp := scenario.dp_of(name)) is not None]
    assert norms == [2.5, 0.5]


@pytest.mark.parametrize("batch", ["all", 10])
def test_a_step_on_all_records_is_a_gaussian_mechanism(batch: int | str) -> None:
    scenario = parse({"dp": {"all": {"epsilon": 3}}, "training": {"private": {"batch": batch}}})
    dp = scenario.dp_of("a")
    assert dp is not None
    plan = make_plan(dp, scenario.training_of("a"), n=50, rounds=4)
    assert plan.sample_rate == (1.0 if batch == "all" else 0.2)
    assert (plan.expected_batch, plan.steps_per_round) == ((50.0, 1) if batch == "all" else (10.0, 5))
    assert plan.epsilon <= 3


def test_widths_follow_the_model() -> None:
    assert ModelSettings(name="cnn").hidden == [64, 64]
    assert ModelSettings(name="mlp").hidden == ModelSettings().hidden == [64]
