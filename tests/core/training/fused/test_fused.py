"""Models trained one after the other against the same models stacked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.core.data.records import Records
from fedsim.core.models import weights, zoo
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training.fused import blocks, kernel
from fedsim.core.training.fused.rounds import Drawn, FusedLayers
from fedsim.core.training.stacked.batches import Batches, Parameters, PoolTensors
from fedsim.core.training.stacked.clipping import Clipping, StackedPlans
from fedsim.core.training.stacked.layers import StackedLayers, Workspace
from fedsim.core.training.stacked.noise import NoiseSource
from fedsim.core.training.stacked.optimizers import Penalties, optimizer
from fedsim.core.training.stacked.regularisation import Regularisation

STEPS, KEY = 3, (5, 0)


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 20), columns=st.integers(1, 20), depth=st.integers(0, 9), adds=st.booleans(),
    transposed=st.booleans(),
)  # fmt: skip
def test_products(rows: int, columns: int, depth: int, adds: bool, transposed: bool) -> None:
    rows, columns, stream = 4 * rows, 4 * columns, np.random.default_rng(0)
    a, b, c = (
        stream.normal(size=shape).astype(np.float32)
        for shape in ((rows, depth + 1), (depth + 1, columns), (rows, columns))
    )
    out, before = c.ravel().copy(), c.astype(np.float64)
    product = kernel._multiply_add if adds else kernel._multiply
    flat, a_row, a_step = (a.T.ravel(), 1, rows) if transposed else (a.ravel(), depth + 1, 1)
    two, half = np.float32(2), np.float32(0.5)
    product(
        flat, 0, a_row, a_step, b.ravel(), 0, columns, out, 0, columns, rows, columns, depth, two, half
    )  # fmt: skip
    whole = a[:, :depth].astype(np.float64) @ b[:depth]
    expected = 2 * whole + before / 2 if adds else whole
    np.testing.assert_allclose(out.reshape(rows, columns), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    d=st.integers(1, 20), hidden=st.lists(st.integers(1, 70), max_size=3), classes=st.integers(2, 40),
    width=st.integers(1, 40), private=st.booleans(), changes=st.sampled_from(
        [{}, {"momentum": 0.9}, {"optimizer": "adam", "lr": 0.01}]
    ),
)  # fmt: skip
def test_a_round_is_that_of_stacked_models(
    d: int, hidden: list[int], classes: int, width: int, private: bool, changes: dict
) -> None:
    module = zoo.build(ModelSettings(name="mlp", hidden=hidden), (d,), classes)
    stream, stack = np.random.default_rng(1), StackedLayers(module)
    records = Records(stream.normal(size=(50, d)).astype(np.float32), stream.integers(0, classes, 50))
    pool, drawn = stack.pool(records), some_batches(stream, 50, width, private)
    first = [p.expand(3, *p.shape[1:]) for p in stack.load(weights.weights_of(module))]
    scenario = TrainingSettings(**{"lr": 0.2, "momentum": 0.0, **changes})
    penalties = Penalties(0.1, 0.001, torch.tensor([0.0, 0.1, 0.2]))
    regularisation = Regularisation(pool, classes, torch.tensor([0.0, 0.3, 0.1]), torch.zeros(3))
    plans = some_plans() if private else None
    fused = FusedLayers(stack)
    flat, local = fused.buffers(Workspace(), 3)
    expected = [p.clone() for p in first]
    for p, start in zip(local, first, strict=True):
        p.copy_(start)
    norm, source = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), NoiseSource(KEY, stack.parameters + 1)
    moved = norm.clone()
    fused.train(
        flat, pool, drawn, scenario, penalties, regularisation, (plans, moved, source) if plans else None
    )  # fmt: skip
    clipping = Clipping(plans, norm, stack, source, torch.empty(3, source.size)) if plans else None
    stacked_round(stack, expected, pool, drawn, scenario, penalties, regularisation, clipping)
    for actual, wanted in zip(local, expected, strict=True):
        if "optimizer" in changes:  # Adam divides by the size of a slope, be it as small as its rounding
            assert (actual - wanted).abs().mean() < 1e-5
        else:
            torch.testing.assert_close(actual, wanted, rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(moved, norm, rtol=1e-5, atol=1e-5)


def some_batches(stream: np.random.Generator, n: int, width: int, private: bool) -> Drawn:
    """Batches of any size up to ``width`` for three models, of which the last makes a step less."""
    rows = np.full((STEPS, 3, -(-width // 4) * 4), n, np.int32)
    for t, m in np.ndindex(STEPS, 3):
        size = int(stream.integers(0 if private else 1, width + 1))
        rows[t, m, :size] = stream.integers(0, n, size)
    numbers = stream.integers(0, 2**63, (STEPS, 3)).astype(np.uint64)
    steps = np.array([STEPS, STEPS, STEPS - 1])
    rows[STEPS - 1, 2] = n
    return Drawn(torch.from_numpy(rows), steps, None, None, numbers, numbers, KEY)


def some_plans() -> StackedPlans:
    three = torch.ones(3)
    return StackedPlans(
        12 * three, 0.01 * three.double(), torch.tensor([True, False, True]), three, 0.5 * three, 0.2 * three
    )  # fmt: skip


def stacked_round(
    stack: StackedLayers, local: Parameters, pool: PoolTensors, drawn: Drawn, scenario: TrainingSettings,
    penalties: Penalties, regularisation: Regularisation, clipping: Clipping | None,
) -> None:  # fmt: skip
    """Train ``local`` in place, all models a step at a time."""
    update, trainer = optimizer(local, scenario, penalties), stack.trainer(local, pool)
    for t, rows in enumerate(drawn.rows):
        n = int((drawn.steps > t).sum())
        rows = rows[:n].contiguous()
        present = rows != len(pool)
        size = present.sum(1, keepdim=True).clamp(min=1) if clipping is None else 12
        batches = regularisation.softened(Batches(rows, pool.labels[rows], present / size), None)
        if clipping is not None:
            batches = clipping.applied_to(batches, drawn.noise[t, :n])
        gradient = trainer.gradient(batches)
        update(gradient, n)
        if clipping is not None:
            clipping.follow(gradient, batches.weight, torch.zeros(3, dtype=torch.bool))


def test_a_change_of_the_blocks_is_compiled() -> None:
    """The compiler's cache looks at the kernel's own file alone."""
    assert blocks.__file__ is not None
    digest = hashlib.sha256(Path(blocks.__file__).read_bytes()).hexdigest()
    assert digest.startswith(kernel.BLOCKS), f"write {digest[:12]!r} into kernel.BLOCKS"


def test_a_model_that_diverges_leaves_the_next_one_alone() -> None:
    module = zoo.build(ModelSettings(name="mlp", hidden=[9]), (4,), 3)
    stack, stream = StackedLayers(module), np.random.default_rng(2)
    records = Records(stream.normal(size=(20, 4)).astype(np.float32), stream.integers(0, 3, 20))
    drawn = some_batches(stream, 20, 8, private=False)
    fused, zeros = FusedLayers(stack), torch.zeros(3)
    found = []
    for factor in (1.0, np.nan):
        flat, local = fused.buffers(Workspace(), 3)
        for p, start in zip(local, stack.load(weights.weights_of(module)), strict=True):
            p.copy_(start.expand_as(p))
        flat[0] *= factor
        fused.train(
            flat, stack.pool(records), drawn, TrainingSettings(momentum=0.9), Penalties(),
            Regularisation(stack.pool(records), 3, zeros, zeros), None,
        )  # fmt: skip
        found.append(flat.clone())
    assert found[1][0].isnan().any()
    assert torch.equal(found[0][1:], found[1][1:])


def test_quick_commands_do_without_a_compiler(run_python) -> None:  # type: ignore[no-untyped-def]
    script = "import sys, attacks.shadows.block, attacks.shadows.simulate; print('numba' in sys.modules)"
    assert run_python(script) == "False\n"


@pytest.mark.parametrize("hidden", [[], [5]])
def test_buffers_are_views(hidden: list[int]) -> None:
    stack = StackedLayers(zoo.build(ModelSettings(name="mlp", hidden=hidden), (3,), 2))
    flat, local = FusedLayers(stack).buffers(Workspace(), 4)
    flat.zero_()
    for p in local:
        p += 1
    assert flat.eq(1).all() and [tuple(p.shape[1:]) for p in local] == stack.shapes
