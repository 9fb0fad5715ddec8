"""What is observed of a shadow, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from support.shadow_plans import members_of, small_plan, some_pool, w_0
from support.shadows import simulate

from attacks.shadows.simulate import flat_weights
from attacks.signals import outputs
from fedsim.core.errors import InputError
from fedsim.core.models import zoo
from fedsim.core.models.weights import load_weights


def test_what_is_observed() -> None:
    plan = small_plan(classes=3)
    pool = some_pool(plan)
    observed = pool.take(np.array([3, 1, 4]))
    membership = members_of(plan, 4, pool)
    actual = simulate(
        plan,
        w_0(plan),
        pool,
        membership,
        observed,
        rounds=[0, 3],
        seed=3,
        logit_rounds=[0, 3],
        weight_rounds=[0, 3],
    )
    for one in ("logit_rounds", "weight_rounds"):
        last = simulate(plan, w_0(plan), pool, membership, observed, rounds=[0, 3], seed=3, **{one: [3]})  # type: ignore[arg-type]
        of_last = last.logits if one == "logit_rounds" else last.weights
        all_of_them = actual.logits if one == "logit_rounds" else actual.weights
        assert of_last is not None and all_of_them is not None
        np.testing.assert_array_equal(of_last[:, 0], all_of_them[:, 1])
        with pytest.raises(ValueError, match=f"{one} .* are not increasing in"):
            simulate(plan, w_0(plan), pool, membership, observed, rounds=[0, 3], seed=3, **{one: [2]})  # type: ignore[arg-type]
    assert actual.logits is not None and actual.weights is not None
    assert (actual.phi.shape, actual.logits.shape) == ((4, 2, 3), (4, 2, 3, 3))
    assert actual.phi.dtype == actual.logits.dtype == actual.weights.dtype == np.float32
    module = zoo.build(plan.model, plan.input_shape, plan.classes, seed=1)
    np.testing.assert_allclose(
        actual.logits[:, 0], [outputs.logits(module, observed.features)] * 4, atol=1e-5
    )
    names = list(module.state_dict())
    pieces = np.split(actual.weights[2, 1], np.cumsum([w.numel() for w in module.state_dict().values()])[:-1])
    shaped = {name: piece.reshape(w_0(plan)[name].shape) for name, piece in zip(names, pieces, strict=True)}
    load_weights(module, shaped)
    logits = outputs.logits(module, observed.features)
    np.testing.assert_array_equal(actual.weights[:, 0], [flat_weights(w_0(plan))] * 4)
    np.testing.assert_allclose(actual.logits[2, 1], logits, atol=1e-5)
    np.testing.assert_allclose(actual.phi[2, 1], outputs.scaled_logit(logits, observed.labels), atol=1e-4)


def test_members_look_like_members() -> None:
    """Random labels are learnt by heart, so that φ is larger where a record is in."""
    plan = small_plan((20, 20), training={"epochs": 20, "lr": 0.3}, hidden=(32,), rounds=4)
    pool = some_pool(plan, 80)
    membership = members_of(plan, 16, pool)
    phi = simulate(plan, w_0(plan), pool, membership, pool, rounds=[0, 4], seed=3).phi
    inside = membership.inside >= 0
    assert (phi[:, 0] == phi[0, 0]).all()  # w_0 is everyone's
    gap = phi[:, 1][inside].mean() - phi[:, 1][~inside].mean()
    assert gap > 5 * phi[:, 1].std() / np.sqrt(phi[:, 1].size)


def test_a_strategy_that_shadows_cannot_follow() -> None:
    with pytest.raises(InputError, match=r"federation.strategy = 'krum'.*fedavg"):
        small_plan(strategy="krum")


def test_bugs_of_the_caller() -> None:
    plan = small_plan((9, 14))
    pool = some_pool(plan)
    membership = members_of(plan, 2, pool)
    with pytest.raises(ValueError, match=r"\[9, 14\].*\[9, 13\]"):
        simulate(plan.resized([9, 13]), w_0(plan), pool, membership, pool, rounds=[3], seed=0)
    for rounds in ([], [4], [-1, 2], [2, 1], [2, 2]):
        with pytest.raises(ValueError, match="rounds"):
            simulate(plan, w_0(plan), pool, membership, pool, rounds=rounds, seed=0)
    with pytest.raises(ValueError, match="3 participants of 2"):
        small_plan((9, 14), participants=3)


def test_importing_shadows_is_cheap(run_python) -> None:  # type: ignore[no-untyped-def]
    assert (
        run_python("import sys, attacks.shadows; print('torch' in sys.modules, 'scipy' in sys.modules)")
        == "False False\n"
    )
