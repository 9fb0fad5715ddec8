"""Party-rounds and signatures against trainings made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.rounds import SIZE, dp, world

from attacks.rounds import knowledge as owned
from attacks.rounds.coordinates import Sketch, scale_of
from attacks.rounds.noise import noise_in_update, silenced
from attacks.rounds.party_rounds import MemberSets, cost, simulate
from attacks.rounds.sets import Context, Fillers, design, draw_contexts, draw_sets, fillers
from attacks.rounds.signatures import fit, gradient, paired, record_gradients
from attacks.shadows.plain import train_one
from attacks.shadows.schedule import Streams
from attacks.shadows.suite import federation_plan
from fedsim.core.models import zoo
from fedsim.core.scenario.training import ModelSettings, PrivateTrainingSettings, TrainingSettings

SEED = 3


def everything(updates: np.ndarray) -> np.ndarray:
    return updates


def test_a_party_round_is_a_shadow_of_one_party_and_one_round_by_its_share() -> None:
    known = world().view
    plan, pool = federation_plan(known, 2), known.own_train
    rows = np.stack([np.arange(SIZE), np.arange(SIZE)[::-1]])
    found = simulate(plan, known.initial, pool, MemberSets(np.array([1, 2]), rows, np.array([7, 8])), SEED)
    alone = replace(plan, rounds=1, parties=plan.parties[:1], participants=1)
    for update, members, number in zip(found, rows, (7, 8), strict=True):
        nothing = pool.take(np.arange(0))
        answer = train_one(
            alone, known.initial, pool, members[None], nothing, (), Streams(SEED, 0, number), lambda *_: None
        )
        expected = [(answer[name][0].numpy() - known.initial[name]).ravel() for name in answer]
        np.testing.assert_allclose(update, np.concatenate(expected) / 3, atol=2e-6)


def test_a_party_round_does_not_depend_on_what_it_is_simulated_with() -> None:
    view = world().view
    plan, rows = federation_plan(view, 2), np.tile(np.arange(SIZE), (3, 1))
    sets = MemberSets(np.array([1, 2, 1]), rows, np.array([4, 5, 6]))
    whole = simulate(plan, view.initial, view.own_train, sets, SEED)
    single = simulate(plan, view.initial, view.own_train, MemberSets(*(a[1:2] for a in _of(sets))), SEED)
    np.testing.assert_array_equal(whole[1], single[0])


def _of(sets: MemberSets) -> tuple[np.ndarray, ...]:
    return sets.party, sets.rows, sets.number


def test_modules_that_cannot_be_stacked_are_trained_one_by_one() -> None:
    view = world().view
    plan = replace(
        federation_plan(view, 2), model=ModelSettings(name="support.rounds:with_batch_norm", folder="tests")
    )
    start = {name: t.numpy() for name, t in zoo.build(plan.model, (12,), 4, seed=2).state_dict().items()}
    sets = MemberSets(np.array([1, 1]), np.stack([np.arange(SIZE)] * 2), np.array([1, 2]))
    found = simulate(plan, start, view.own_train, sets, SEED)
    assert np.isfinite(found).all()
    assert not np.array_equal(found[0], found[1])


def test_sets_of_another_size_than_the_party_are_refused() -> None:
    view = world().view
    sets = MemberSets(np.array([1]), np.arange(SIZE - 1)[None], np.array([0]))
    with pytest.raises(ValueError, match="15"):
        simulate(federation_plan(view, 2), view.initial, view.own_train, sets, SEED)


def test_cost_of_all_parties_in_all_rounds_is_one_federation() -> None:
    plan = federation_plan(world().view, 2)
    sets = MemberSets(np.tile(np.arange(3), 2), np.tile(np.arange(SIZE), (6, 1)), np.arange(6))
    assert cost(plan, sets) == 1


# ------------------------------------------------------------------------------------------ signatures
def test_a_paired_signature_is_the_difference_of_two_trainings() -> None:
    view = world().view
    plan, pool = federation_plan(view, 2), view.own_train
    context = Context(1, np.arange(2, SIZE + 1) % SIZE, np.array([0, 1]))
    rows = paired(plan, view.initial, pool, [context], np.ones(SIZE, bool), SEED, everything)
    sets = MemberSets(
        np.array([1, 1]),
        np.stack([np.r_[0, context.rest], np.r_[1, context.rest]]),
        np.zeros(2, int),
    )
    first, second = simulate(plan, view.initial, pool, sets, SEED)
    np.testing.assert_allclose(rows[0] - rows[1], first - second, atol=1e-7)
    np.testing.assert_allclose(rows[0] + rows[1], 0, atol=1e-7)
    assert (rows[2:] == 0).all()


def test_a_paired_signature_does_not_depend_on_who_else_is_asked_about() -> None:
    view = world().view
    plan, pool = federation_plan(view, 2), view.own_train
    rest, drawable = np.arange(1, SIZE), np.isin(np.arange(SIZE), (0, 1))
    few, more = (
        paired(plan, view.initial, pool, [Context(1, rest, np.array(asked))], drawable, SEED, everything)
        for asked in ([0, 1, 2], [0, 1, 2, 3, 4])
    )
    np.testing.assert_array_equal(few[:3], more[:3])


def test_gradients_of_records_are_torchs_own() -> None:
    view = world().view
    module, some = view.module(view.initial), view.own_train.take(np.arange(3))
    found = record_gradients(module, some)
    for row, x, y in zip(found, some.features, some.labels, strict=True):
        module.zero_grad()
        torch.nn.functional.cross_entropy(module(torch.tensor(x[None])), torch.tensor([y])).backward()
        expected = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        np.testing.assert_allclose(row, expected.numpy(), atol=1e-6)


def test_gradients_of_plain_stacks_do_without_torchs_compiler(run_python) -> None:  # type: ignore[no-untyped-def]
    script = """
import sys, numpy as np
from attacks.rounds.signatures import record_gradients
from fedsim.core.data.records import Records
from fedsim.core.models import zoo
from fedsim.core.scenario.training import ModelSettings
module = zoo.build(ModelSettings(name="mlp", hidden=[4]), (3,), 2)
found = record_gradients(module, Records(np.ones((5, 3), np.float32), np.zeros(5, int)))
print(found.shape, "torch._dynamo" in sys.modules)
"""
    assert run_python(script) == "(5, 26) False\n"


def test_gradient_and_paired_signatures_agree_where_a_round_is_one_small_step() -> None:
    small = TrainingSettings(lr=1e-2, batch=SIZE, epochs=1)
    given = world(training=small)
    view, known = given.view, owned.of_view(given.view, given.candidates)
    plan, between = federation_plan(view, 2), fillers(known, SEED)
    sets = draw_sets(known, between, 40, SEED)
    contexts = list(draw_contexts(known, between, 2, SEED))
    measured = paired(plan, view.initial, known.records, contexts, known.drawable, SEED, everything)
    slopes = gradient(plan, view.initial, known.records, known, sets, SEED, everything)
    updates = simulate(plan, view.initial, known.records, sets, SEED)
    presence = design(known, between, sets)
    alpha = fit(slopes, presence - presence.mean(axis=0), updates - updates.mean(axis=0))
    assert alpha == pytest.approx(1e-2 / SIZE / 3, rel=0.02)
    assert np.corrcoef(measured.ravel(), (alpha * slopes).ravel())[0, 1] > 0.99


# ------------------------------------------------------------------------------------------------ sets
def test_parties_have_their_true_size_and_design_counts_what_is_in_them() -> None:
    given = world(told=True)
    known = owned.of_view(given.view, given.candidates)
    between = fillers(known, SEED)
    sets = draw_sets(known, between, 6, SEED)
    assert known.by_party
    assert ((sets.rows >= 0).sum(axis=1) == SIZE).all()
    presence = design(known, between, sets)
    np.testing.assert_allclose(presence.sum(axis=1), SIZE, rtol=1e-5)
    for party, row in zip(sets.party, presence, strict=True):
        assert (known.party[row > 0] == party).all()
    inside = sets.rows[0][sets.rows[0] < len(known)]
    assert (presence[0, inside] >= 1).all()


def test_contexts_hold_no_record_that_they_ask_about() -> None:
    given = world()
    known = owned.of_view(given.view, given.candidates)
    contexts = list(draw_contexts(known, fillers(known, SEED), 2, SEED))
    assert all(len(np.intersect1d(c.rest, c.open)) == 0 and len(c.rest) == SIZE - 1 for c in contexts)
    asked = np.concatenate([context.open for context in contexts])
    assert (np.bincount(asked, minlength=len(known)) == 2).all()


def test_interpolated_records_lie_between_two_of_their_label() -> None:
    given = world(told=True)
    known = owned.of_view(given.view, given.candidates)
    between: Fillers = fillers(known, SEED)
    assert len(between.records)
    first, second = (known.records.take(between.parents[:, i]) for i in (0, 1))
    assert (first.labels == second.labels).all() and (first.labels == between.records.labels).all()
    low, high = np.minimum(first.features, second.features), np.maximum(first.features, second.features)
    assert ((between.records.features >= low - 1e-6) & (between.records.features <= high + 1e-6)).all()


# -------------------------------------------------------------------------------- noise and coordinates
def test_noise_of_dp_is_what_rounds_that_differ_in_it_alone_show() -> None:
    private = world(privacy=dp(2.0))
    view = private.view
    plan = federation_plan(view, 2)
    rows = np.tile(np.arange(SIZE), (300, 1))
    sets = MemberSets(np.ones(300, int), rows, np.arange(300))
    loud = simulate(plan, view.initial, view.own_train, sets, SEED)
    quiet = simulate(silenced(plan), view.initial, view.own_train, sets, SEED)
    assert np.var(loud - quiet) == pytest.approx(noise_in_update(plan, [1]), rel=0.1)
    assert noise_in_update(plan, [1, 2]) == pytest.approx(2 * noise_in_update(plan, [1]))


def test_momentum_adds_noise_up() -> None:
    quick = TrainingSettings(lr=0.05, batch=4, epochs=4, momentum=0.8)
    view = world(privacy=dp(3.0), training=quick).view
    plan = federation_plan(view, 2)
    sets = MemberSets(np.ones(300, int), np.tile(np.arange(SIZE), (300, 1)), np.arange(300))
    loud = simulate(plan, view.initial, view.own_train, sets, SEED)
    quiet = simulate(silenced(plan), view.initial, view.own_train, sets, SEED)
    assert np.var(loud - quiet) == pytest.approx(noise_in_update(plan, [1]), rel=0.15)


def test_noise_of_another_form_stays_in_the_simulation() -> None:
    private = PrivateTrainingSettings(optimizer="adam", batch=4, epochs=1)
    adam = world(privacy=dp(2.0), training=TrainingSettings(batch=4, epochs=1, private=private)).view
    plan = federation_plan(adam, 2)
    assert noise_in_update(plan, [1, 2]) == 0
    assert silenced(plan) == plan


def test_a_sketch_keeps_inner_products_on_average() -> None:
    stream = np.random.default_rng(0)
    a, b = stream.normal(size=(2, 500)).astype(np.float32)
    scale = stream.uniform(0.5, 2, 500).astype(np.float32)
    products = []
    for seed in range(200):
        left, right = Sketch.draw(scale, 128, seed)(np.stack([a, a + b]))
        products.append(left @ right)
    error = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - (scale * a) @ (scale * (a + b))) < 4 * error


def test_coordinates_that_never_move_have_a_finite_scale() -> None:
    rows = np.array([[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0]])
    scale = scale_of(rows)
    assert np.isfinite(scale).all() and scale[0] > scale[1]
    assert np.isfinite(scale_of(np.zeros((2, 3)))).all()
