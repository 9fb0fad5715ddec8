"""Four ways to the same shadow: fused, stacked, plain, and record by record."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support import shadow_oracle
from support.shadow_plans import MODULES, members_of, small_plan, some_pool, w_0
from support.shadows import simulate

from attacks.shadows import block, cohort, paths, plain
from attacks.shadows import schedule as shadows_schedule
from attacks.shadows import simulate as shadows_simulate
from attacks.shadows.members import Membership
from attacks.shadows.plan import Ascent, FederationPlan
from attacks.shadows.schedule import Streams
from attacks.shadows.simulate import _stack, flat_weights
from attacks.signals import outputs
from fedsim.core.data.records import Records
from fedsim.core.scenario.training import ModelSettings


def one_by_one(
    train_one: Callable[..., dict[str, torch.Tensor]],
    plan: FederationPlan,
    pool: Records,
    membership: Membership,
    rounds: Sequence[int],
    raised: Records | None = None,
) -> tuple:
    """φ (S, rounds, n) and w_T (S, p), one shadow after the other."""
    phi = np.empty((len(membership), len(rounds), len(pool)))
    weights = []
    for s, members in enumerate(membership.members):

        def observe(t: int, answers: torch.Tensor, weights: Mapping[str, torch.Tensor], s: int = s) -> None:
            logits = answers[0].numpy().astype(np.float64)
            phi[s, list(rounds).index(t)] = outputs.scaled_logit(logits, pool.labels)

        streams = Streams(11, 0, s)
        state = train_one(plan, w_0(plan), pool, members, pool, rounds, streams, observe, raised)
        weights.append(np.concatenate([w.numpy().ravel() for w in state.values()]))
    return phi, np.stack(weights)


CNN = ModelSettings(name="cnn", hidden=[2])


SETTINGS = {
    "plain": {},
    "one size": {"sizes": (8, 8)},
    "logistic": {"hidden": ()},
    "three classes, two layers": {"hidden": (6, 7), "classes": 3},
    "momentum and l2": {"training": {"momentum": 0.9, "l2": 0.05}},
    "adam": {"training": {"optimizer": "adam", "lr": 0.01, "l2": 0.01}},
    "a number of steps": {"training": {"steps": 3}},
    "batch above size": {"training": {"batch": 32}},
    "fedprox": {"strategy": "fedprox", "options": {"proximal_mu": 0.5}},
    "fedavgm": {"strategy": "fedavgm", "options": {"server_momentum": 0.7, "server_learning_rate": 0.5}},
    "fedadam": {"strategy": "fedadam", "options": {"eta": 0.02}},
    "two take part": {"participants": 2},
    "private": {"private": (0, 1, 2)},
    "mixed": {"private": (1,), "classes": 3},
    "mixed, momentum, fedprox, one takes part": {
        "private": (0, 2), "participants": 1, "training": {"momentum": 0.5, "l2": 0.01},
        "strategy": "fedprox", "options": {"proximal_mu": 0.2},
    },
    "l1": {"defences": {0: {"l1": 0.05}, 1: {"l1": 0.01, "l2": 0.3}}},
    "l1 everywhere, momentum": {
        "defences": {k: {"l1": 0.02} for k in range(3)}, "training": {"momentum": 0.8},
    },
    "own l2, adam": {"defences": {1: {"l2": 0.3}}, "training": {"optimizer": "adam", "lr": 0.01, "l2": 0.05}},
    "own l2, fedprox": {"defences": {1: {"l2": 0.3}}, "strategy": "fedprox", "options": {"proximal_mu": 0.5}},
    "label smoothing": {"defences": {0: {"label_smoothing": 0.3}, 2: {"label_smoothing": 0.1}}, "classes": 3},
    "own epochs": {"defences": {0: {"epochs": 5}, 2: {"epochs": 1}}},
    "dropout": {"defences": {0: {"dropout": 0.5}, 1: {"dropout": 0.2}}, "hidden": (6, 7)},
    "mixup": {"defences": {0: {"mixup": 0.4}, 2: {"mixup": 1.0}}, "classes": 3},
    "mixup, one takes part": {"defences": {0: {"mixup": 0.4}}, "participants": 1},
    "patience": {"defences": {0: {"patience": 1}, 1: {"patience": 2, "epochs": 6}}, "training": {"lr": 0.8}},
    "patience within epochs": {"defences": {1: {"patience": 1}}, "training": {"lr": 0.8, "steps": 5}},
    "clip update": {"defences": {0: {"clip_update": 0.2}, 1: {"clip_update": 100}}},
    "sparsify": {"defences": {0: {"sparsify": 0.2}, 1: {"sparsify": 1.0}}},
    "quantise": {"defences": {0: {"quantise": 2}, 2: {"quantise": 6}}},
    "update shaped": {
        "defences": {1: {"clip_update": 0.3, "sparsify": 0.3, "quantise": 3}}, "participants": 2,
    },
    "all of them": {
        "defences": {
            0: {"l1": 0.01, "l2": 0.1, "dropout": 0.3, "label_smoothing": 0.2, "mixup": 0.5, "epochs": 3},
            1: {"patience": 1, "dropout": 0.1, "clip_update": 0.5, "sparsify": 0.5, "quantise": 8},
        },
        "hidden": (6, 7), "classes": 3, "training": {"momentum": 0.5},
    },
    "relaxloss": {
        "defences": {0: {"relaxloss": 0.8}, 2: {"relaxloss": 2.0}}, "classes": 3, "training": {"epochs": 3},
    },
    "hamp": {
        "defences": {0: {"hamp_entropy": 0.6, "hamp_weight": 0.2}, 1: {"hamp_weight": 0.5}}, "classes": 3,
    },
    "relaxloss, hamp and dropout": {
        "defences": {
            1: {"relaxloss": 1.0, "hamp_weight": 0.1, "hamp_entropy": 0.3, "dropout": 0.2, "l1": 0.01},
        },
        "private": (0,), "classes": 3,
    },
    "relaxloss of a cnn": {
        "defences": {0: {"relaxloss": 1.0}}, "model": CNN, "input_shape": (1, 6, 6), "classes": 3,
    },
    "adaptive": {"private": (0, 2), "adaptive": (0,)},
    "adaptive, two take part": {
        "private": (0, 1, 2), "adaptive": (0, 1), "participants": 2, "hidden": (6, 7),
    },
    "private, with defences, every epoch made": {
        "private": (0, 1), "adaptive": (1,), "hidden": (6, 7), "classes": 3, "training": {"momentum": 0.5},
        "defences": {
            0: {"l1": 0.01, "dropout": 0.3, "label_smoothing": 0.2, "epochs": 3, "clip_update": 0.4},
            1: {"quantise": 8, "sparsify": 0.4, "l2": 0.1, "dropout": 0.2},
            2: {"mixup": 0.3, "dropout": 0.1},
        },
    },
    "private adam": {"private": (0, 2), "training": {"optimizer": "adam", "lr": 0.01, "l2": 0.01}},
    "private, with patience and other defences": {
        "private": (0, 1), "adaptive": (1,), "hidden": (6, 7), "classes": 3,
        "defences": {
            0: {"l1": 0.01, "dropout": 0.3, "label_smoothing": 0.2, "epochs": 3, "clip_update": 0.4},
            1: {"patience": 1, "quantise": 8, "sparsify": 0.4, "l2": 0.1},
            2: {"mixup": 0.3},
        },
    },
    "cnn with defences": {
        "model": CNN, "input_shape": (1, 6, 6), "private": (2,), "adaptive": (2,), "classes": 3,
        "defences": {
            0: {"l1": 0.01, "label_smoothing": 0.2, "mixup": 0.4, "quantise": 8},
            1: {"patience": 1, "clip_update": 0.3, "sparsify": 0.4},
            2: {"label_smoothing": 0.3, "l2": 0.1},
        },
    },
    "cnn with dropout": {"model": CNN, "input_shape": (1, 6, 6), "defences": {0: {"dropout": 0.5}}},
    "ascent": {"ascent": Ascent(1, (1, 3), 0.05, 1.0), "classes": 3},
    "ascent up to the limit, two take part": {"ascent": Ascent(2, (1, 2), 1e3, 0.5), "participants": 2},
    "ascent of a private party": {"ascent": Ascent(0, (2,), 0.2, 4.0), "private": (0, 1)},
    "ascent after an update that is shaped": {
        "ascent": Ascent(0, (2, 3), 0.2, 2.0), "defences": {0: {"clip_update": 0.2, "sparsify": 0.4}},
    },
    "ascent of a cnn": {"ascent": Ascent(0, (1, 2, 3), 0.1, 0.8), "model": CNN, "input_shape": (1, 6, 6)},
    "cnn": {"model": CNN, "input_shape": (1, 6, 6)},
    "private cnn": {"model": CNN, "input_shape": (1, 6, 6), "private": (0,)},
}  # fmt: skip


NOT_FUSED = ("patience", "relaxloss", "hamp", "cnn", "all of them")
"""Parts of the names of settings that the fused path does not follow."""

WAYS = [("stacked", name) for name in SETTINGS] + [
    ("fused", name) for name in SETTINGS if not any(part in name for part in NOT_FUSED)
]


@pytest.mark.parametrize(("path", "name"), WAYS, ids=[f"{path}: {name}" for path, name in WAYS])
def test_quick_equals_plain_equals_record_by_record(
    path: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(**SETTINGS[name])  # type: ignore[arg-type]
    monkeypatch.setattr(paths, "LEAST_WORK", 0 if path == "fused" else math.inf)
    if (stack := _stack(plan)) is not None:
        assert paths.quick_path(plan, stack) == path
    pool = some_pool(plan)
    membership = members_of(plan, 3, pool)
    raised = pool.take(np.arange(7)) if plan.ascent else None
    monkeypatch.setattr(block, "RAISED_TOGETHER", 4)
    actual = simulate(
        plan, w_0(plan), pool, membership, pool, rounds=[0, 2, 3], seed=11, weight_rounds=[3], raised=raised
    )
    assert actual.weights is not None
    assert np.abs(actual.weights - flat_weights(w_0(plan))).max() > 0.01  # something was learnt
    for train_one in (plain.train_one, shadow_oracle.train_one):
        phi, weights = one_by_one(train_one, plan, pool, membership, [0, 2, 3], raised)
        np.testing.assert_allclose(actual.weights[:, 0], weights, rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(actual.phi, phi, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["noisy", "smooth", "recurrent"])
def test_modules_of_ones_own(name: str, tmp_path: Path) -> None:
    """What cannot be stacked is trained one by one: same interface, repeatable, no global stream touched."""
    (tmp_path / "shadow_modules.py").write_text(MODULES)
    model = ModelSettings(name=f"shadow_modules:{name}", folder=str(tmp_path))
    plan = small_plan((10, 14), model=model)  # no last batch of one: BatchNorm cannot train on it
    pool = some_pool(plan)
    membership = members_of(plan, 3, pool)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    actual = simulate(plan, w_0(plan), pool, membership, pool, rounds=[3], seed=11, weight_rounds=[3])
    assert torch.equal(torch.random.get_rng_state(), before)
    cache = tmp_path / "cache"
    simulate(plan, w_0(plan), pool, membership, pool, rounds=[3], seed=11, cache=cache)
    assert not cache.exists()  # the module's code may change
    for train_one in (plain.train_one, shadow_oracle.train_one):
        phi, weights = one_by_one(train_one, plan, pool, membership, [3])
        np.testing.assert_allclose(actual.phi, phi, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(actual.weights[:, 0], weights, rtol=1e-3, atol=1e-5)
    assert (actual.phi[0] != actual.phi[1]).all()


def test_a_batch_wider_than_foreseen_is_trained_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan((40, 30), private=(0, 1), training={"batch": 12})
    pool = some_pool(plan, 140)
    membership = members_of(plan, 3, pool)
    foreseen = simulate(plan, w_0(plan), pool, membership, pool, rounds=[3], seed=11).phi
    for module in (shadows_schedule, cohort, shadows_simulate):
        monkeypatch.setattr(module, "poisson_width", lambda n, rate: 4)
    widened = simulate(plan, w_0(plan), pool, membership, pool, rounds=[3], seed=11).phi
    np.testing.assert_allclose(widened, foreseen, rtol=1e-4, atol=1e-5)


def test_plain_shadows_without_dp_do_without_opacus(tmp_path: Path, run_python) -> None:  # type: ignore[no-untyped-def]
    """It cannot hook every module that torch can train."""
    (tmp_path / "shadow_modules.py").write_text(MODULES)
    script = f"""
import sys
sys.path.insert(0, "tests")
from support.shadows import simulate
from fedsim.core.scenario.training import ModelSettings
from support.shadow_plans import members_of, small_plan, some_pool, w_0
plan = small_plan((9,), model=ModelSettings(name="shadow_modules:recurrent", folder={str(tmp_path)!r}))
pool = some_pool(plan)
phi = simulate(plan, w_0(plan), pool, members_of(plan, 1, pool), pool, rounds=[3], seed=0).phi
print(phi.shape, "opacus" in sys.modules)
"""
    assert run_python(script) == "(1, 1, 60) False\n"
