"""Which path trains the shadows of a plan."""

from __future__ import annotations

import pytest
from support.shadow_plans import small_plan

from attacks.shadows.simulate import path_of

LARGE = {"sizes": (44,) * 5, "hidden": (64, 64), "training": {"batch": 16, "epochs": 5}}


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({}, "fused"),
        ({"rounds": 1}, "fused"),
        ({"private": (0, 1)}, "fused"),
        ({"training": {"batch": 16, "epochs": 1}}, "stacked"),
        ({"hidden": (8,)}, "stacked"),
        ({"hidden": (512, 256)}, "stacked"),
        ({"defences": {1: {"patience": 2}}}, "stacked"),
        ({"defences": {1: {"relaxloss": 0.5}}}, "stacked"),
        ({"defences": {0: {"distil": "dmp"}}}, "one by one"),
    ],
)
def test_it_follows_from_the_plan_alone(changes: dict, path: str) -> None:
    assert path_of(small_plan(**{**LARGE, **changes})) == path
