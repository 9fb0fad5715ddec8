"""The parties of a shadow train and defend themselves as the clients do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.shadow_plans import dp_plan, members_of, small_plan, some_pool, w_0
from support.shadows import simulate

from attacks.shadows.members import Membership
from attacks.shadows.plan import Ascent, FederationPlan, PartyTraining
from attacks.shadows.simulate import flat_weights
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.models.weights import weights_of
from fedsim.core.privacy.plan import Plan
from fedsim.core.scenario.protection import DefenceSettings
from fedsim.core.scenario.training import TrainingSettings
from fedsim.core.training import dp, sgd, updates
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.stacked import noise
from fedsim.core.training.stacked import updates as stacked_updates
from fedsim.core.training.steps import LocalTraining


def draws() -> PartyDraws:
    """Some: with every record in every batch, and next to no noise, they make no difference."""
    order, noise = (torch.Generator().manual_seed(i) for i in range(2))
    return PartyDraws(order, noise, np.random.default_rng(0))


def one_party(choice: dict, n: int, noise: float | None = None) -> tuple[FederationPlan, Records, dict]:
    """One party, one round, all records in every batch: then the order of the records does not matter."""
    plan = small_plan((n,), training={"batch": 64, "epochs": 4, **choice}, rounds=1, classes=3)
    if noise is not None:
        dp = dp_plan(n, 64, 4, noise_multiplier=noise, clipping_norm=0.3)
        plan = small_plan((n,), training={"batch": 64, "epochs": 4, **choice}, rounds=1, classes=3,
                          parties=(PartyTraining(n, dp),))  # fmt: skip
    pool = some_pool(plan, n)
    membership = Membership(np.arange(n, dtype=np.int32)[None, None], n)
    actual = simulate(plan, w_0(plan), pool, membership, pool, rounds=[1], seed=0, weight_rounds=[1])
    return plan, pool, {"weights": actual.weights[:, 0]}


@pytest.mark.parametrize(
    "choice",
    [{}, {"momentum": 0.9, "l2": 0.1}, {"optimizer": "adam", "lr": 0.01}, {"lr": 0.5, "steps": 7}],
    ids=str,
)
def test_a_party_trains_as_the_clients_do(choice: dict) -> None:
    plan, pool, actual = one_party(choice, 20)
    module = zoo.build(plan.model, plan.input_shape, plan.classes, seed=1)
    sgd.train(module, pool, LocalTraining(plan.training), draws())
    expected = flat_weights(weights_of(module))
    np.testing.assert_allclose(actual["weights"][0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("reference", [False, True], ids=["written out", "Opacus"])
def test_a_private_party_trains_as_the_clients_do(reference: bool) -> None:
    """With q = 1 and next to no noise both are clipped gradient descent."""
    plan, pool, actual = one_party({"momentum": 0.5}, 20, noise=1e-9)
    module = zoo.build(plan.model, plan.input_shape, plan.classes, seed=1)
    local = LocalTraining(plan.training, gradients="per-sample" if reference else "auto")
    dp.train_private(module, pool, local, plan.dp(0), draws())
    expected = flat_weights(weights_of(module))
    np.testing.assert_allclose(actual["weights"][0], expected, rtol=1e-3, atol=1e-5)


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
    private_plan, bare_plan = (
        dp_plan(n, 64, epochs, noise_multiplier=1e-9, clipping_norm=0.3, clipping="adaptive")
        for epochs in (own.epochs, made.epochs)
    )
    party = PartyTraining(n, private_plan if private else None, defence)
    plan = small_plan((n,), training=made.model_dump(), rounds=1, classes=3, parties=(party,))
    pool = some_pool(plan, 2 * n)
    membership = Membership(np.arange(n, dtype=np.int32)[None, None], len(pool))
    actual = simulate(plan, w_0(plan), pool, membership, pool, rounds=[1], seed=0, weight_rounds=[1])
    module = zoo.build(plan.model, plan.input_shape, plan.classes, seed=1)
    records, stop_on = pool.take(np.arange(n)), pool.take(np.arange(n, 2 * n))
    local = LocalTraining(own, defence, stop_on=stop_on)
    if private:
        dp.train_private(module, records, local, private_plan, draws())
    else:
        sgd.train(module, records, local, draws())
    updates.shape_answer(module, w_0(plan), defence, draws())
    expected = flat_weights(weights_of(module))
    assert actual.weights is not None
    np.testing.assert_allclose(actual.weights[0, 0], expected, rtol=1e-3, atol=1e-5)
    bare = small_plan((n,), training=made.model_dump(), rounds=1, classes=3,
                      parties=(PartyTraining(n, bare_plan if private else None),))  # fmt: skip
    undefended = simulate(
        bare, w_0(plan), pool, membership, pool, rounds=[1], seed=0, weight_rounds=[1]
    ).weights
    assert undefended is not None and np.abs(undefended - actual.weights).max() > 1e-3


class Given(PartyDraws):
    """Draws that round by these numbers."""

    def __init__(self, numbers: np.ndarray) -> None:
        super().__init__(None, None)
        self._numbers = numbers

    def rounding(self, sizes: Sequence[int]) -> list[np.ndarray]:
        return np.split(self._numbers, np.cumsum(sizes)[:-1])


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
    moved = [torch.tensor(stream.normal(size=(2, size))) for size in (7, 3, 1)]
    moved[1][0] = 0  # a parameter that did not move
    rounding = stream.bit_generator.random_raw(2)
    numbers = noise.uniform((0, 0), rounding, 11)
    actual = stacked_updates.shaped(moved, defence, numbers)
    for m in range(2):
        given = Given(numbers[m].double().numpy())
        update = {str(i): part[m].numpy() for i, part in enumerate(moved)}
        expected = updates.shaped(update, defence, given)
        for i, part in enumerate(actual):
            np.testing.assert_allclose(part[m].numpy(), expected[str(i)], rtol=1e-5, atol=1e-7)


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
    actual = simulate(plan, w_0(plan), pool, membership, pool, rounds=[1], seed=0, weight_rounds=[1])
    assert actual.weights is not None
    noise = (actual.weights[:, 0] - flat_weights(w_0(plan))) / (300.0 * 0.5 / 10.0)
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
    pool, membership = some_pool(plan, 24), Membership(np.arange(12, dtype=np.int32)[None, None], 24)
    raised = pool.take(np.arange(12, 18))

    def ended(rate: float, limit: float) -> tuple[np.ndarray, np.ndarray]:
        rising = dataclasses.replace(plan, ascent=Ascent(0, (2,), rate, limit))
        actual = simulate(rising, w_0(plan), pool, membership, pool, rounds=[1, 2], seed=0, raised=raised,
                         weight_rounds=[1, 2])  # fmt: skip
        assert actual.weights is not None
        return actual.phi[0, 1] - actual.phi[0, 0], actual.weights[0, 1] - actual.weights[0, 0]

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
