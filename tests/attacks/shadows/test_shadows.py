"""Shadow federations: the fast path against the plain one, that one against the clients' own training."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.shadows import simulate

from attacks.shadows import aggregation, block, cohort, plain
from attacks.shadows import cache as shadows_cache
from attacks.shadows import defences as shadow_defences
from attacks.shadows import schedule as shadows_schedule
from attacks.shadows import simulate as shadows_simulate
from attacks.shadows.cache import Block, cache_folder
from attacks.shadows.defences import draw_heldout
from attacks.shadows.members import MOST, Membership, draw_members
from attacks.shadows.plan import STRATEGIES, Ascent, FederationPlan, PartyTraining
from attacks.shadows.schedule import Streams, draw_schedule, permutations
from attacks.shadows.simulate import (
    BLOCK_MODELS,
    ShadowRequest,
    _stack,
    block_size,
    bytes_per_shadow,
    flat_weights,
)
from attacks.signals import outputs as signals
from fedsim.core import parallel
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError
from fedsim.core.models import zoo
from fedsim.core.models.weights import load_weights, weights_of
from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training import dp as clients_dp
from fedsim.core.training import sgd as clients_training
from fedsim.core.training import updates as clients_defences
from fedsim.core.training.stacked import layers, noise


def dp_plan(
    n: int, batch: int, epochs: int = 2, noise_multiplier: float = 0.8, clipping_norm: float = 0.7,
    clipping: Literal["flat", "adaptive"] = "flat",
) -> Plan:  # fmt: skip
    return Plan(
        sample_rate=min(1.0, batch / n), expected_batch=float(min(batch, n)),
        steps_per_round=epochs * -(-n // batch), noise_multiplier=noise_multiplier, rounds=3, delta=1e-5,
        clipping_norm=clipping_norm, accountant="rdp", epsilon=1.0, budget=float("inf"), clipping=clipping,
        clipping_quantile=0.4, clipping_rate=0.3,
    )  # fmt: skip


def small_plan(
    sizes: Sequence[int] = (9, 14, 5),
    private: Sequence[int] = (),
    training: dict | None = None,
    hidden: Sequence[int] = (6,),
    classes: int = 2,
    defences: Mapping[int, dict] | None = None,
    adaptive: Sequence[int] = (),
    **changes: object,
) -> FederationPlan:
    made = TrainingSettings(**{"batch": 4, "epochs": 2, **(training or {})})
    own = {k: DefenceSettings(**settings) for k, settings in (defences or {}).items()}

    def party(k: int, n: int) -> PartyTraining:
        defence = own.get(k, DefenceSettings())
        epochs = defence.applied_to(made).epochs
        dp = dp_plan(n, made.batch, epochs, clipping="adaptive" if k in adaptive else "flat")
        return PartyTraining(n, dp if k in private else None, defence)

    parties = tuple(party(k, n) for k, n in enumerate(sizes))
    values = {
        "model": ModelSettings(name="mlp", hidden=list(hidden)), "input_shape": (5,), "classes": classes,
        "rounds": 3, "training": made, "parties": parties, "participants": len(sizes),
    }  # fmt: skip
    return FederationPlan(**{**values, **changes})  # type: ignore[arg-type]


def some_pool(plan: FederationPlan, n: int = 60) -> Records:
    stream = np.random.default_rng(0)
    features = stream.normal(size=(n, *plan.input_shape)).astype(np.float32)
    return Records(features, stream.integers(0, plan.classes, n))


def w_0(plan: FederationPlan) -> dict[str, np.ndarray]:
    return weights_of(zoo.build(plan.model, plan.input_shape, plan.classes, seed=1))


def members_of(plan: FederationPlan, shadows: int, pool: Records) -> Membership:
    return draw_members(shadows, plan.sizes.tolist(), np.full(len(pool), -1), seed=4)


def one_by_one(
    plan: FederationPlan,
    pool: Records,
    membership: Membership,
    rounds: Sequence[int],
    raised: Records | None = None,
) -> tuple:
    """φ (S, rounds, n) and w_T (S, p) by the reference."""
    phi = np.empty((len(membership), len(rounds), len(pool)))
    weights = []
    for s, members in enumerate(membership.members):

        def observe(t: int, answers: torch.Tensor, weights: Mapping[str, torch.Tensor], s: int = s) -> None:
            logits = answers[0].numpy().astype(np.float64)
            phi[s, list(rounds).index(t)] = signals.scaled_logit(logits, pool.labels)

        streams = Streams(11, 0, s)
        state = plain.train_one(plan, w_0(plan), pool, members, pool, rounds, streams, observe, raised)
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
    "adaptive": {"private": (0, 2), "adaptive": (0,)},
    "adaptive, two take part": {
        "private": (0, 1, 2), "adaptive": (0, 1), "participants": 2, "hidden": (6, 7),
    },
    "private, with defences": {
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


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_stacked_equals_one_by_one(changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(**changes)
    pool = some_pool(plan)
    membership = members_of(plan, 3, pool)
    raised = pool.take(np.arange(7)) if plan.ascent else None
    monkeypatch.setattr(block, "RAISED_TOGETHER", 4)
    found = simulate(
        plan, w_0(plan), pool, membership, pool, rounds=[0, 2, 3], seed=11, weight_rounds=[3], raised=raised
    )
    phi, weights = one_by_one(plan, pool, membership, [0, 2, 3], raised)
    assert found.weights is not None
    assert np.abs(weights - flat_weights(w_0(plan))).max() > 0.01  # something was learnt
    np.testing.assert_allclose(found.weights[:, 0], weights, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(found.phi, phi, rtol=1e-3, atol=2e-4)


def one_party(choice: dict, n: int, noise: float | None = None) -> tuple[FederationPlan, Records, dict]:
    """One party, one round, all records in every batch: then the order of the records does not matter."""
    plan = small_plan((n,), training={"batch": 64, "epochs": 4, **choice}, rounds=1, classes=3)
    if noise is not None:
        dp = dp_plan(n, 64, 4, noise_multiplier=noise, clipping_norm=0.3)
        plan = small_plan((n,), training={"batch": 64, "epochs": 4, **choice}, rounds=1, classes=3,
                          parties=(PartyTraining(n, dp),))  # fmt: skip
    pool = some_pool(plan, n)
    kept = Membership(np.arange(n, dtype=np.int32)[None, None], n)
    found = simulate(plan, w_0(plan), pool, kept, pool, rounds=[1], seed=0, weight_rounds=[1])
    return plan, pool, {"weights": found.weights[:, 0]}


@pytest.mark.parametrize(
    "choice",
    [{}, {"momentum": 0.9, "l2": 0.1}, {"optimizer": "adam", "lr": 0.01}, {"lr": 0.5, "steps": 7}],
    ids=str,
)
def test_a_party_trains_as_the_clients_do(choice: dict) -> None:
    plan, pool, found = one_party(choice, 20)
    module = zoo.build(plan.model, plan.input_shape, plan.classes, seed=1)
    clients_training.train(module, pool, plan.training, torch.Generator().manual_seed(0))
    expected = flat_weights(weights_of(module))
    np.testing.assert_allclose(found["weights"][0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("reference", [False, True], ids=["written out", "Opacus"])
def test_a_private_party_trains_as_the_clients_do(reference: bool) -> None:
    """With q = 1 and next to no noise both are clipped gradient descent."""
    plan, pool, found = one_party({"momentum": 0.5}, 20, noise=1e-9)
    module = zoo.build(plan.model, plan.input_shape, plan.classes, seed=1)
    clients_dp.train_private(
        module, pool, plan.training, plan.dp(0), gradients="per-sample" if reference else "auto",
        sampling=torch.Generator().manual_seed(0), noise=torch.Generator().manual_seed(1),
    )  # fmt: skip
    expected = flat_weights(weights_of(module))
    np.testing.assert_allclose(found["weights"][0], expected, rtol=1e-3, atol=1e-5)


DEFENCES: dict[str, dict] = {
    "l1": {"l1": 0.1}, "l2": {"l2": 0.2}, "label smoothing": {"label_smoothing": 0.3},
    "epochs": {"epochs": 7},
    "early stopping": {"patience": 2, "epochs": 12},
    "update": {"clip_update": 0.2, "sparsify": 0.4},
    "everything": {
        "l1": 0.1, "l2": 0.2, "label_smoothing": 0.3, "patience": 2, "clip_update": 0.4, "sparsify": 0.4,
    },
}  # fmt: skip


@pytest.mark.parametrize("private", [False, True], ids=["open", "private"])
@pytest.mark.parametrize("settings", DEFENCES.values(), ids=DEFENCES)
def test_a_party_defends_itself_as_the_clients_do(
    settings: dict, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One party, one round, all records in every batch, next to no noise, which still adapts the norm."""
    monkeypatch.setattr(Plan, "count_noise", 1e-9)
    n, defence = 20, DefenceSettings(**settings)
    made = TrainingSettings(batch=64, epochs=6, lr=0.7)
    own = defence.applied_to(made)
    dp, dp_bare = (
        dp_plan(n, 64, epochs, noise_multiplier=1e-9, clipping_norm=0.3, clipping="adaptive")
        for epochs in (own.epochs, made.epochs)
    )
    party = PartyTraining(n, dp if private else None, defence)
    plan = small_plan((n,), training=made.model_dump(), rounds=1, classes=3, parties=(party,))
    pool = some_pool(plan, 2 * n)
    kept = Membership(np.arange(n, dtype=np.int32)[None, None], len(pool))
    found = simulate(plan, w_0(plan), pool, kept, pool, rounds=[1], seed=0, weight_rounds=[1])
    module = zoo.build(plan.model, plan.input_shape, plan.classes, seed=1)
    records, stop_on = pool.take(np.arange(n)), pool.take(np.arange(n, 2 * n))
    streams = [torch.Generator().manual_seed(i) for i in range(2)]
    if private:
        clients_dp.train_private(
            module, records, own, dp, sampling=streams[0], noise=streams[1], defence=defence, stop_on=stop_on
        )
    else:
        clients_training.train(module, records, own, streams[0], defence=defence, stop_on=stop_on)
    update = {name: w - w_0(plan)[name] for name, w in weights_of(module).items()}
    shaped = clients_defences.shaped(update, defence, np.random.default_rng(0))
    expected = flat_weights({name: w_0(plan)[name] + step for name, step in shaped.items()})
    assert found.weights is not None
    np.testing.assert_allclose(found.weights[0, 0], expected, rtol=1e-3, atol=1e-5)
    bare = small_plan((n,), training=made.model_dump(), rounds=1, classes=3,
                      parties=(PartyTraining(n, dp_bare if private else None),))  # fmt: skip
    undefended = simulate(bare, w_0(plan), pool, kept, pool, rounds=[1], seed=0, weight_rounds=[1]).weights
    assert undefended is not None and np.abs(undefended - found.weights).max() > 1e-3


class Given:
    """A stream that gives these numbers."""

    def __init__(self, numbers: np.ndarray) -> None:
        self._numbers = numbers

    def random(self, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        numbers, self._numbers = self._numbers[:size], self._numbers[size:]
        return numbers.reshape(shape)


@settings(max_examples=30, deadline=None)
@given(
    clip_update=st.sampled_from([None, 0.5, 100.0]),
    sparsify=st.sampled_from([None, 0.3, 1.0]),
    quantise=st.sampled_from([None, 1, 2, 7]),
    seed=st.integers(0, 1000),
)
def test_updates_are_shaped_as_the_clients_do(
    clip_update: float | None, sparsify: float | None, quantise: int | None, seed: int
) -> None:
    stream = np.random.default_rng(seed)
    defence = DefenceSettings(clip_update=clip_update, sparsify=sparsify, quantise=quantise)
    updates = [torch.tensor(stream.normal(size=(2, size))) for size in (7, 3, 1)]
    updates[1][0] = 0  # a parameter that did not move
    rounding = stream.bit_generator.random_raw(2)
    found = shadow_defences.shape(updates, defence, rounding, (0, 0))
    for m in range(2):
        given = Given(noise.uniform((0, 0), rounding[m : m + 1], 11)[0].double().numpy())
        update = {str(i): part[m].numpy() for i, part in enumerate(updates)}
        expected = clients_defences.shaped(update, defence, given)  # type: ignore[arg-type]
        for i, part in enumerate(found):
            np.testing.assert_allclose(part[m].numpy(), expected[str(i)], rtol=1e-5, atol=1e-7)


def test_mixup_and_dropout_have_their_laws() -> None:
    plan = small_plan(
        (22,), training={"batch": 8, "epochs": 40}, defences={0: {"mixup": 0.4, "dropout": 0.3}}
    )
    streams = [Streams(0, 0, s) for s in range(20)]
    schedule = draw_schedule(plan, streams)
    mixing, batches = schedule.mixing[0], schedule.batches[0]
    assert stats.kstest(mixing.share.ravel(), stats.beta(0.4, 0.4).cdf).pvalue > 0.001
    np.testing.assert_array_equal(np.sort(mixing.partner), np.sort(batches))  # a permutation of each batch
    full = batches[:, :, -1] >= 0
    assert ((mixing.partner < 0) == (batches < 0)).all()
    stays = (mixing.partner == batches)[full].mean()
    assert abs(stays - 1 / 8) < 5 * np.sqrt(7 / 64 / full.sum() / 8)  # each stays where it is as often as not
    numbers = noise.uniform((0, 0), schedule.dropout.ravel(), 50).numpy()
    assert stats.kstest(numbers[:, 7], "uniform").pvalue > 0.001
    assert abs(np.corrcoef(numbers.T)[np.triu_indices(50, 1)].mean()) < 5 / np.sqrt(numbers.size)


def test_records_to_stop_on_are_in_no_party() -> None:
    plan = small_plan((9, 14, 5), defences={0: {"patience": 1}, 2: {"patience": 3}})
    pool = some_pool(plan, 60)
    members = members_of(plan, 6, pool).members
    heldout = draw_heldout(plan, members, 60, [Streams(3, 0, s) for s in range(6)])
    assert {k: rows.shape for k, rows in heldout.items()} == {0: (6, 9), 2: (6, 5)}
    for s in range(6):
        dealt = np.concatenate([heldout[0][s], heldout[2][s]])
        assert len(set(dealt)) == 14 and not set(dealt) & set(members[s].ravel())
    with pytest.raises(InputError, match="stop early"):
        draw_heldout(plan, np.arange(60)[None, None], 60, [Streams(3, 0, 0)])


def test_a_private_party_does_not_mix() -> None:
    with pytest.raises(ValueError, match="mixup"):
        small_plan(private=(1,), defences={1: {"mixup": 0.2}})


def test_noise_has_its_deviation() -> None:
    """With lr = 1 and one step, w_1 − w_0 is next to nothing but noise: N(0, (σC / qn)²)."""
    dp = Plan(0.5, 10.0, 1, 300.0, 1, 1e-5, 0.5, "rdp", 1.0, 1.0)
    training = {"lr": 1.0, "steps": 1, "batch": 10}
    plan = small_plan((20,), training=training, rounds=1, hidden=(40, 40), parties=(PartyTraining(20, dp),))
    pool = some_pool(plan, 20)
    membership = Membership(np.broadcast_to(np.arange(20, dtype=np.int32), (2, 1, 20)), 20)
    found = simulate(plan, w_0(plan), pool, membership, pool, rounds=[1], seed=0, weight_rounds=[1])
    assert found.weights is not None
    noise = (found.weights[:, 0] - flat_weights(w_0(plan))) / (300.0 * 0.5 / 10.0)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 0.001
    assert abs(np.corrcoef(noise)[0, 1]) < 0.1  # each shadow has a stream of its own


def test_noise_of_a_table_spreads_the_shadows_as_fresh_noise_does(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan((12, 12), private=(0, 1), hidden=(8,), training={"lr": 0.3})
    pool = some_pool(plan, 48)
    same = Membership(np.repeat(members_of(plan, 1, pool).members, 400, axis=0), len(pool))
    spread = []
    for largest in (0, 2**16):
        monkeypatch.setattr(noise, "LARGEST", largest)
        phi = simulate(plan, w_0(plan), pool, same, pool, rounds=[3], seed=5).phi[:, 0]
        spread.append((phi.mean(0), phi.std(0)))
    (mean, deviation), (mean_table, deviation_table) = spread
    # Of 400 shadows, a mean is known to deviation/20 and a deviation to 1/28 of itself.
    assert np.abs((mean_table - mean) / deviation).max() < 5 * np.sqrt(2) / 20
    assert np.abs(np.log(deviation_table / deviation)).max() < 5 * np.sqrt(2) / 28


def test_an_ascent_lifts_the_loss_of_what_it_raises_and_is_no_longer_than_its_limit() -> None:
    """One party, no learning to speak of in its second round: what moves the model is the ascent."""
    plan = small_plan((12,), training={"lr": 1e-9}, rounds=2, classes=3)
    pool, kept = some_pool(plan, 24), Membership(np.arange(12, dtype=np.int32)[None, None], 24)
    raised = pool.take(np.arange(12, 18))

    def ended(rate: float, limit: float) -> tuple[np.ndarray, np.ndarray]:
        rising = dataclasses.replace(plan, ascent=Ascent(0, (2,), rate, limit))
        found = simulate(rising, w_0(plan), pool, kept, pool, rounds=[1, 2], seed=0, raised=raised,
                         weight_rounds=[1, 2])  # fmt: skip
        assert found.weights is not None
        return found.phi[0, 1] - found.phi[0, 0], found.weights[0, 1] - found.weights[0, 0]

    lifted, step = ended(1e-2, np.inf)
    assert lifted[12:18].sum() < 0 and np.linalg.norm(step) > 1e-3
    _, bounded = ended(1e-2, 0.5)
    assert np.linalg.norm(bounded) < 1e-6


def test_an_ascent_and_what_it_raises_belong_together(tmp_path: Path) -> None:
    plan = small_plan()
    rising = dataclasses.replace(plan, ascent=Ascent(0, (2,), 0.1, 1.0))
    pool = some_pool(plan)
    membership = members_of(plan, 2, pool)
    for wrong, raised in ((plan, pool), (rising, None)):
        with pytest.raises(ValueError, match="needs records"):
            simulate(wrong, w_0(plan), pool, membership, pool, rounds=[3], seed=0, raised=raised)
    for n in (3, 4, 4):
        raised = pool.take(np.arange(n))
        simulate(rising, w_0(plan), pool, membership, pool, rounds=[3], seed=0, raised=raised, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, "kept apart by what is raised"


# What chance decides.


def keys(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).bit_generator.random_raw(shape)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 70), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_permutations_are_permutations(sizes: list[int], seed: int) -> None:
    orders = permutations(keys((2, len(sizes), 3, max(sizes)), seed), np.array(sizes))
    for k, n in enumerate(sizes):
        assert (np.sort(orders[:, k, :, :n]) == np.arange(n)).all()


def test_every_permutation_is_as_likely() -> None:
    orders = permutations(keys((24000, 1, 1, 4)), np.array([4]))
    counts = Counter(map(tuple, orders[:, 0, 0].tolist()))
    assert len(counts) == 24
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


def test_an_epoch_has_every_record_once_and_its_last_batch_is_smaller() -> None:
    plan = small_plan((9, 14), training={"batch": 4, "epochs": 3})
    schedule = draw_schedule(plan, [Streams(0, 0, s) for s in range(5)])
    assert [b.shape for b in schedule.batches] == [(5, 9, 4), (5, 12, 4)]
    for n, batches in zip((9, 14), schedule.batches, strict=True):
        epochs = batches.reshape(5, 3, -1)
        assert (np.sort(epochs)[..., -n:] == np.arange(n)).all()
        assert ((batches >= 0).sum(2) == ([4] * (n // 4) + [n % 4]) * 3).all()
    first, second = schedule.batches[0][0, :3].ravel(), schedule.batches[0][0, 3:6].ravel()
    assert (first != second).any()


def test_poisson_batches_have_their_rate_and_drop_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan((40,), private=(0,), training={"batch": 10, "epochs": 500})
    streams = [Streams(0, 0, s) for s in range(4)]
    batches = draw_schedule(plan, streams).batches[0]
    counts = np.stack([(batches == i).sum(2) for i in range(40)])  # (records, shadows, steps)
    assert counts.max() == 1
    sizes = counts.sum(0).ravel()
    observed = np.bincount(sizes, minlength=41)
    expected = stats.binom.pmf(np.arange(41), 40, 0.25) * len(sizes)
    common = expected > 5
    assert (
        stats.chisquare(
            [*observed[common], observed[~common].sum()], [*expected[common], expected[~common].sum()]
        ).pvalue
        > 0.001
    )
    # A batch beyond the width that was prepared for widens it.
    monkeypatch.setattr(shadows_schedule, "poisson_width", lambda n, rate: 4)
    again = draw_schedule(plan, [Streams(0, 0, s) for s in range(4)]).batches[0]
    assert ((again >= 0).sum(2).ravel() == sizes).all()
    assert sizes.max() == again.shape[2] > 4


def test_participants_are_drawn_uniformly() -> None:
    plan = small_plan((4, 4, 4, 4), participants=2)
    streams = [Streams(0, 0, s) for s in range(600)]
    active = draw_schedule(plan, streams).active
    assert (active.sum(1) == 2).all()
    pairs = Counter(map(tuple, active.tolist()))
    assert len(pairs) == 6
    assert stats.chisquare(list(pairs.values())).pvalue > 0.001


# Members.


@settings(max_examples=40, deadline=None)
@given(
    own=st.lists(st.integers(4, 12), min_size=1, max_size=4),
    anyones=st.integers(0, 20),
    sizes=st.data(),
    fixed=st.integers(0, 3),
)
def test_members_are_where_they_may_be(
    own: list[int], anyones: int, sizes: st.DataObject, fixed: int
) -> None:
    party_of = np.concatenate([np.repeat(np.arange(len(own)), own), np.full(anyones, -1)])
    wanted = [sizes.draw(st.integers(1, 12)) for _ in own]
    known = np.arange(fixed)  # of party 0
    drawn = draw_members(6, wanted, party_of, fixed={0: known}, seed=1)
    inside = drawn.inside
    assert inside.shape == (6, len(party_of))
    assert (inside[:, known] == 0).all()
    assert ((inside == -1) | (party_of == -1) | (inside == party_of)).all()
    for k, size in enumerate(drawn.sizes):
        assert ((inside == k).sum(1) == size).all()  # every record once
        assert 1 <= size <= max(wanted[k], fixed)
        if wanted[k] <= MOST * (own[k] - fixed * (k == 0)):
            assert size == max(wanted[k], fixed * (k == 0))
    np.testing.assert_array_equal(
        draw_members(3, wanted, party_of, fixed={0: known}, seed=1).inside, inside[:3]
    )


def test_pairs_are_complementary() -> None:
    party_of = np.repeat([0, 1], [20, 30])
    inside = draw_members(8, [10, 15], party_of, seed=2).inside >= 0
    assert (inside[::2] != inside[1::2]).all()
    anywhere = draw_members(8, [10, 15], np.full(50, -1), seed=2).inside
    assert ((anywhere[::2] >= 0) != (anywhere[1::2] >= 0)).all()


def test_a_record_of_no_party_is_in_a_random_one() -> None:
    inside = draw_members(400, [10, 20], np.full(60, -1), seed=2).inside
    in_first = (inside == 0).sum(0)
    assert stats.chisquare(in_first).pvalue > 0.001
    assert abs((inside == 0).mean() - 10 / 60) < 1e-9


def test_half_of_the_shadows_hold_a_record_and_none_holds_all() -> None:
    inside = draw_members(200, [44, 44], np.repeat([0, 1], [88, 45]), seed=0).inside
    share = (inside >= 0).mean(0)
    np.testing.assert_array_equal(share[:88], 0.5)
    assert share[88:].min() > 0.6 and share[88:].max() < 0.9  # 44 of 45 would leave nobody out


def test_a_party_that_no_record_can_be_in() -> None:
    with pytest.raises(ValueError, match="party 1"):
        draw_members(2, [3, 3], np.zeros(10, int), seed=0)


# How the work is divided.


DEFENDED = {
    0: {"l1": 0.01, "dropout": 0.3, "label_smoothing": 0.2, "mixup": 0.5, "patience": 1, "quantise": 5},
    1: {"l2": 0.1, "dropout": 0.1, "patience": 1, "clip_update": 0.5, "sparsify": 0.5},
}


@pytest.mark.parametrize("defences", [{}, DEFENDED], ids=["open", "defended"])
def test_blocks_and_threads_change_no_bit(defences: dict) -> None:
    plan = small_plan(
        (9, 14, 5), private=(1,), participants=2, hidden=(7, 5), classes=3, defences=defences, adaptive=(1,)
    )
    pool = some_pool(plan)
    membership = members_of(plan, 7, pool)
    asked = {"rounds": [1, 3], "seed": 3, "logit_rounds": [1, 3], "weight_rounds": [1, 3]}
    whole = simulate(plan, w_0(plan), pool, membership, pool, **asked)  # type: ignore[arg-type]
    for how in ({"max_bytes": 1}, {"max_bytes": 100_000}, {"workers": 2}):
        parts = simulate(plan, w_0(plan), pool, membership, pool, **asked, **how)  # type: ignore[arg-type]
        for name in ("phi", "logits", "weights"):
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    few = simulate(plan, w_0(plan), pool, membership.first(3), pool, **asked)  # type: ignore[arg-type]
    np.testing.assert_array_equal(few.phi, whole.phi[:3])


def test_trainers_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds on to memory; where parties take turns, nearly every round has another number of models."""
    plan = small_plan(private=(1,), participants=1, rounds=20)
    pool = some_pool(plan)
    trainer, made, alive = layers.StackedLayers.trainer, [], []

    def spy(self: layers.StackedLayers, *of: object) -> layers.LayerTrainer:
        found = trainer(self, *of)  # type: ignore[arg-type]
        made.append(weakref.ref(found))
        alive.append(sum(each() is not None for each in made))
        return found

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
    batch=st.integers(1, 20), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    private=st.booleans(), momentum=st.sampled_from([0.0, 0.9]),
)  # fmt: skip
def test_a_shadow_does_not_depend_on_the_others(
    d: int, hidden: list[int], classes: int, batch: int, sizes: list[int], private: bool, momentum: float
) -> None:
    """Whatever the shapes: alignment must not reach the result."""
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
    told: list[tuple[int, int]] = []
    simulate(
        plan, w_0(plan), pool, members_of(plan, 3, pool), pool, rounds=[3], seed=3, max_bytes=1,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]


# What is kept.


def test_what_is_observed() -> None:
    plan = small_plan(classes=3)
    pool = some_pool(plan)
    asked = pool.take(np.array([3, 1, 4]))
    membership = members_of(plan, 4, pool)
    found = simulate(
        plan,
        w_0(plan),
        pool,
        membership,
        asked,
        rounds=[0, 3],
        seed=3,
        logit_rounds=[0, 3],
        weight_rounds=[0, 3],
    )
    for one in ("logit_rounds", "weight_rounds"):
        last = simulate(plan, w_0(plan), pool, membership, asked, rounds=[0, 3], seed=3, **{one: [3]})  # type: ignore[arg-type]
        kept = last.logits if one == "logit_rounds" else last.weights
        all_of_them = found.logits if one == "logit_rounds" else found.weights
        assert kept is not None and all_of_them is not None
        np.testing.assert_array_equal(kept[:, 0], all_of_them[:, 1])
        with pytest.raises(ValueError, match=f"{one} .* are not increasing in"):
            simulate(plan, w_0(plan), pool, membership, asked, rounds=[0, 3], seed=3, **{one: [2]})  # type: ignore[arg-type]
    assert found.logits is not None and found.weights is not None
    assert (found.phi.shape, found.logits.shape) == ((4, 2, 3), (4, 2, 3, 3))
    assert found.phi.dtype == found.logits.dtype == found.weights.dtype == np.float32
    module = zoo.build(plan.model, plan.input_shape, plan.classes, seed=1)
    np.testing.assert_allclose(found.logits[:, 0], [signals.logits(module, asked.features)] * 4, atol=1e-5)
    names = list(module.state_dict())
    pieces = np.split(found.weights[2, 1], np.cumsum([w.numel() for w in module.state_dict().values()])[:-1])
    shaped = {name: piece.reshape(w_0(plan)[name].shape) for name, piece in zip(names, pieces, strict=True)}
    load_weights(module, shaped)
    logits = signals.logits(module, asked.features)
    np.testing.assert_array_equal(found.weights[:, 0], [flat_weights(w_0(plan))] * 4)
    np.testing.assert_allclose(found.logits[2, 1], logits, atol=1e-5)
    np.testing.assert_allclose(found.phi[2, 1], signals.scaled_logit(logits, asked.labels), atol=1e-4)


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


MODULES = """
from torch import nn

def noisy(shape, classes):
    return nn.Sequential(nn.Linear(*shape, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, classes))

def smooth(shape, classes):
    return nn.Sequential(nn.Linear(*shape, 8), nn.Tanh(), nn.Linear(8, classes))
"""


@pytest.mark.parametrize("name", ["noisy", "smooth"])
def test_modules_of_ones_own(name: str, tmp_path: Path) -> None:
    """What cannot be stacked is trained one by one: same interface, repeatable, no global stream touched."""
    (tmp_path / "shadow_modules.py").write_text(MODULES)
    model = ModelSettings(name=f"shadow_modules:{name}", folder=str(tmp_path))
    plan = small_plan((10, 14), model=model)  # no last batch of one: BatchNorm cannot train on it
    pool = some_pool(plan)
    membership = members_of(plan, 3, pool)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    found = simulate(plan, w_0(plan), pool, membership, pool, rounds=[3], seed=11, weight_rounds=[3])
    assert torch.equal(torch.random.get_rng_state(), before)
    cache = tmp_path / "cache"
    simulate(plan, w_0(plan), pool, membership, pool, rounds=[3], seed=11, cache=cache)
    assert not cache.exists()  # the module's code may change
    phi, weights = one_by_one(plan, pool, membership, [3])
    np.testing.assert_allclose(found.phi, phi, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.weights[:, 0], weights, rtol=1e-3, atol=1e-5)
    assert (found.phi[0] != found.phi[1]).all()


# The server's step, from the equations.


def server_by_equation(strategy: str, w: np.ndarray, answers: list[np.ndarray]) -> np.ndarray:
    """Reddi et al. 2021, algorithm 2, and Hsu et al. 2019, number by number."""
    m = v = np.zeros_like(w)
    for t, mean in enumerate(answers, start=1):
        delta = mean - w
        if strategy == "fedavgm":
            m = 0.6 * m - delta
            w = w - 0.5 * m
            continue
        b1 = 0.0 if strategy == "fedadagrad" else 0.9
        m = b1 * m + (1 - b1) * delta
        v = {
            "fedadagrad": v + delta**2,
            "fedadam": 0.99 * v + 0.01 * delta**2,
            "fedyogi": v - 0.01 * delta**2 * np.sign(v - delta**2),
        }[strategy]
        rate = 0.1 * (np.sqrt(1 - 0.99 ** (t + 1)) / (1 - 0.9 ** (t + 1)) if strategy == "fedadam" else 1)
        w = w + rate * m / (np.sqrt(v) + 1e-3)
    return w


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_server_steps(strategy: str) -> None:
    options = {"server_momentum": 0.6, "server_learning_rate": 0.5} if strategy == "fedavgm" else {"eta": 0.1}
    step = aggregation.server(small_plan(strategy=strategy, options=options))
    stream = np.random.default_rng(0)
    start, *answers = stream.normal(size=(5, 6))
    w = [torch.tensor(start)]
    for answer in answers:
        w = step(w, [torch.tensor(answer)])
    np.testing.assert_allclose(w[0].numpy(), server_by_equation(strategy, start, answers), rtol=1e-10)


def test_defaults_of_the_strategies_are_flowers() -> None:
    import inspect

    from fedsim.server import strategy

    for name, options in STRATEGIES.items():
        parameters = inspect.signature(strategy.CLASSES[name].__init__).parameters
        theirs = {key: parameters[key].default for key in options if key in parameters}
        assert theirs == {key: options[key] for key in theirs}
        assert set(options) - set(theirs) <= {"beta_1", "beta_2"}


# The cache.


def test_the_cache_forgets_what_was_not_used_for_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan()
    pool = some_pool(plan)
    membership, counting = members_of(plan, 2, pool), Counting(monkeypatch)

    def ask(seed: int) -> int:
        before = counting.trained
        simulate(plan, w_0(plan), pool, membership, pool, rounds=[3], seed=seed, cache=tmp_path)
        return counting.trained - before

    assert ask(1) == 2
    [first] = tmp_path.iterdir()
    monkeypatch.setattr(shadows_cache, "CACHE_BYTES", 2.5 * first.stat().st_size)
    assert [ask(2), ask(1), ask(3)] == [2, 0, 2]  # 2 is the one not used for longest
    assert len(list(tmp_path.iterdir())) == 2
    assert [ask(1), ask(3), ask(2)] == [0, 0, 2]
    monkeypatch.setattr(shadows_cache, "CACHE_BYTES", 1)
    assert ask(4) == 2 and ask(4) == 0, "what was simulated last is kept, however large"


class Counting:
    """Counts the shadows that are really trained."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained = 0
        run = shadows_simulate._run_block

        def counted(job: ShadowRequest, start: int, members: np.ndarray, *more: object) -> Block:
            self.trained += len(members)
            return run(job, start, members, *more)  # type: ignore[arg-type]

        monkeypatch.setattr(shadows_simulate, "_run_block", counted)


def test_cache_is_used_for_the_same_or_fewer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan()
    pool = some_pool(plan)
    membership = members_of(plan, 6, pool)
    counting = Counting(monkeypatch)

    def ask(shadows: int, seed: int = 3, rounds: Sequence[int] = (3,), w: dict | None = None) -> np.ndarray:
        counting.trained = 0
        start = w or w_0(plan)
        return simulate(
            plan, start, pool, membership.first(shadows), pool, rounds=rounds, seed=seed, cache=tmp_path
        ).phi  # fmt: skip

    first = ask(4)
    assert counting.trained == 4
    np.testing.assert_array_equal(ask(4), first)
    assert counting.trained == 0
    np.testing.assert_array_equal(ask(3), first[:3])
    assert counting.trained == 0
    more = ask(6)
    assert counting.trained == 2
    np.testing.assert_array_equal(more[:4], first)
    np.testing.assert_array_equal(ask(6), more)
    assert counting.trained == 0
    for other in ({"seed": 4}, {"rounds": (2, 3)}, {"w": {k: v + 1 for k, v in w_0(plan).items()}}):
        ask(2, **other)  # type: ignore[arg-type]
        assert counting.trained == 2
    other_members = draw_members(6, plan.sizes.tolist(), np.full(len(pool), -1), seed=5)
    mixed = Membership(np.concatenate([membership.members[:2], other_members.members[2:]]), len(pool))
    counting.trained = 0
    simulate(plan, w_0(plan), pool, mixed, pool, rounds=[3], seed=3, cache=tmp_path)
    assert counting.trained == 4  # only the shadows that are the same are taken


def damaged(data: bytes, how: str) -> bytes:
    return {
        "cut": data[: len(data) // 2],
        "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "empty": b"",
    }[how]


@pytest.mark.filterwarnings("ignore:.*damaged")
@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_cache_is_trained_again(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan()
    pool = some_pool(plan)
    membership = members_of(plan, 2, pool)
    asked = {"rounds": [3], "seed": 3, "cache": tmp_path}
    first = simulate(plan, w_0(plan), pool, membership, pool, **asked)  # type: ignore[arg-type]
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damaged(whole, how))
    counting = Counting(monkeypatch)
    again = simulate(plan, w_0(plan), pool, membership, pool, **asked)  # type: ignore[arg-type]
    assert counting.trained == 2
    np.testing.assert_array_equal(again.phi, first.phi)
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path: Path) -> None:
    plan = small_plan()
    pool = some_pool(plan)
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(RuntimeWarning, match="not kept"):
        found = simulate(
            plan,
            w_0(plan),
            pool,
            members_of(plan, 2, pool),
            pool,
            rounds=[3],
            seed=3,
            cache=tmp_path / "file" / "x",
        )
    assert np.isfinite(found.phi).all()


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere/shadows")
    monkeypatch.delenv("FEDSIM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/of/caches")
    assert cache_folder() == Path("/home/of/caches/fedsim/shadows")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/fedsim/shadows"


# Bad input.


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


def test_a_batch_wider_than_foreseen_is_trained_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan((40, 30), private=(0, 1), training={"batch": 12})
    pool = some_pool(plan, 140)
    membership = members_of(plan, 3, pool)
    foreseen = simulate(plan, w_0(plan), pool, membership, pool, rounds=[3], seed=11).phi
    for module in (shadows_schedule, cohort, shadows_simulate):
        monkeypatch.setattr(module, "poisson_width", lambda n, rate: 4)
    widened = simulate(plan, w_0(plan), pool, membership, pool, rounds=[3], seed=11).phi
    np.testing.assert_allclose(widened, foreseen, rtol=1e-4, atol=1e-5)
