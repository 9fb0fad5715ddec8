"""How the work is divided changes nothing."""

from __future__ import annotations

import math
import threading
import weakref
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shadow_plans import MODULES, members_of, small_plan, some_pool, w_0
from support.shadows import simulate

from attacks.shadows import paths
from attacks.shadows.simulate import BLOCK_MODELS, _stack, block_size, bytes_per_shadow
from fedsim.core import parallel
from fedsim.core.scenario.training import ModelSettings
from fedsim.core.training.stacked import layers

DEFENDED = {
    0: {"l1": 0.01, "dropout": 0.3, "label_smoothing": 0.2, "mixup": 0.5, "patience": 1, "quantise": 5},
    1: {"l2": 0.1, "dropout": 0.1, "patience": 1, "clip_update": 0.5, "sparsify": 0.5},
}


FOLLOWED = {
    0: {"l1": 0.01, "dropout": 0.3, "label_smoothing": 0.2, "mixup": 0.5, "quantise": 5},
    1: {"l2": 0.1, "dropout": 0.1, "clip_update": 0.5, "sparsify": 0.5},
}
"""What the fused path follows of them."""


@pytest.mark.parametrize(
    ("defences", "least_work"),
    [({}, math.inf), (DEFENDED, math.inf), ({}, 0), (FOLLOWED, 0)],
    ids=["open", "defended", "fused", "fused, defended"],
)
def test_blocks_and_threads_change_no_bit(
    defences: dict, least_work: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "LEAST_WORK", least_work)
    plan = small_plan(
        (9, 14, 5), private=(1,), participants=2, hidden=(7, 5), classes=3, defences=defences, adaptive=(1,)
    )
    pool = some_pool(plan)
    membership = members_of(plan, 7, pool)
    request = {"rounds": [1, 3], "seed": 3, "logit_rounds": [1, 3], "weight_rounds": [1, 3]}
    whole = simulate(plan, w_0(plan), pool, membership, pool, **request)  # type: ignore[arg-type]
    for how in ({"max_bytes": 1}, {"max_bytes": 100_000}, {"workers": 2}):
        parts = simulate(plan, w_0(plan), pool, membership, pool, **request, **how)  # type: ignore[arg-type]
        for name in ("phi", "logits", "weights"):
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    few = simulate(plan, w_0(plan), pool, membership.first(3), pool, **request)  # type: ignore[arg-type]
    np.testing.assert_array_equal(few.phi, whole.phi[:3])


def test_trainers_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds on to memory; where parties take turns, nearly every round has another number of models."""
    plan = small_plan(private=(1,), participants=1, rounds=20)
    pool = some_pool(plan)
    make_trainer, made, alive = layers.StackedLayers.trainer, [], []

    def spy(self: layers.StackedLayers, *of: object) -> layers.LayerTrainer:
        actual = make_trainer(self, *of)  # type: ignore[arg-type]
        made.append(weakref.ref(actual))
        alive.append(sum(trainer() is not None for trainer in made))
        return actual

    monkeypatch.setattr(layers.StackedLayers, "trainer", spy)
    simulate(plan, w_0(plan), pool, members_of(plan, 30, pool), pool, rounds=[20], seed=1)
    assert len(made) > 10 and max(alive) <= 2


def test_processes_change_no_bit(tmp_path: Path) -> None:
    """What is not made of linear layers goes to processes."""
    (tmp_path / "shadow_modules.py").write_text(MODULES)
    plan = small_plan((10, 14), model=ModelSettings(name="shadow_modules:smooth", folder=str(tmp_path)))
    pool = some_pool(plan)
    membership = members_of(plan, 10, pool)
    one, two = (
        simulate(plan, w_0(plan), pool, membership, pool, rounds=[1, 3], seed=11, workers=workers).phi
        for workers in (1, 2)
    )
    np.testing.assert_array_equal(one, two)


def test_an_interrupted_simulation_stops_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while others are at work: they stop at their next round."""
    plan = small_plan(rounds=100_000)
    pool = some_pool(plan)

    def interrupted(futures: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(parallel, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate(plan, w_0(plan), pool, members_of(plan, 2, pool), pool, rounds=[3], seed=3, workers=2)
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


@settings(max_examples=15, deadline=None)
@given(
    d=st.integers(1, 20), hidden=st.lists(st.integers(1, 40), max_size=2), classes=st.integers(2, 9),
    batch=st.integers(1, 40), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    private=st.booleans(), momentum=st.sampled_from([0.0, 0.9]), least_work=st.sampled_from([0, math.inf]),
)  # fmt: skip
def test_a_shadow_does_not_depend_on_the_others(
    d: int, hidden: list[int], classes: int, batch: int, sizes: list[int], private: bool, momentum: float,
    least_work: float,
) -> None:  # fmt: skip
    """Whatever the shapes: alignment must not reach the result."""
    with mock.patch.object(paths, "LEAST_WORK", least_work):
        _check_alone(d, hidden, classes, batch, sizes, private, momentum)


def _check_alone(
    d: int, hidden: list[int], classes: int, batch: int, sizes: list[int], private: bool, momentum: float
) -> None:
    plan = small_plan(
        sizes, (0,) if private else (), {"batch": batch, "momentum": momentum}, hidden, classes,
        input_shape=(d,), rounds=1,
    )  # fmt: skip
    pool = some_pool(plan, 160)
    membership = members_of(plan, 5, pool)
    whole = simulate(plan, w_0(plan), pool, membership, pool, rounds=[1], seed=3, weight_rounds=[1])
    alone = simulate(
        plan, w_0(plan), pool, membership, pool, rounds=[1], seed=3, weight_rounds=[1], max_bytes=1
    )
    np.testing.assert_array_equal(alone.weights, whole.weights)
    np.testing.assert_array_equal(alone.phi, whole.phi)


def test_memory_bounds_the_block() -> None:
    plan = small_plan((50,) * 5, hidden=(30, 30))
    one = bytes_per_shadow(plan, _stack(plan), 500)  # type: ignore[arg-type]
    sizes = [block_size(plan, 500, 1000, 1, limit) for limit in (1, 3 * one, 11 * one, 2**40)]
    assert sizes[:3] == [1, 3, 11] and sizes[3] > 11
    assert sizes[3] <= BLOCK_MODELS // 5
    assert block_size(plan, 500, 1000, 4, 12 * one) == 3
    assert block_size(plan, 500, 12, 1, 11 * one) == 6  # not 11 and 1
    assert block_size(plan, 500, 8, 4, 2**40) == 2  # all workers have something to do


def test_progress_is_told() -> None:
    plan = small_plan()
    pool = some_pool(plan)
    reports: list[tuple[int, int]] = []
    simulate(
        plan, w_0(plan), pool, members_of(plan, 3, pool), pool, rounds=[3], seed=3, max_bytes=1,
        progress=lambda done, total: reports.append((done, total)),
    )  # fmt: skip
    assert sorted(set(reports)) == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert reports == sorted(reports)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_block_tells_how_far_it_is(workers: int) -> None:
    """Hundreds of shadows are trained together: a bar that waited for the whole block would stand still."""
    plan = small_plan(rounds=9)
    pool = some_pool(plan)
    reports: list[tuple[int, int]] = []
    simulate(
        plan, w_0(plan), pool, members_of(plan, 40, pool), pool, rounds=[9], seed=3, workers=workers,
        progress=lambda done, total: reports.append((done, total)),
    )  # fmt: skip
    assert reports == sorted(reports) and reports[-1] == (40, 40)
    assert {4 * t for t in range(10)} <= {done for done, _ in reports} if workers == 1 else len(reports) > 20
    assert reports.count((40, 40)) == 1, "only what is done is said to be done"
