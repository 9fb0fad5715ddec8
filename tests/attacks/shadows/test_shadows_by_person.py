"""Shadows of parties whose DP-SGD clips what a person contributes: a slow twin, and persons drawn whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support import shadow_oracle
from support.runs import scenario
from support.shadow_plans import small_plan, some_pool, w_0
from support.shadows import simulate

from attacks.shadows import suite
from attacks.shadows.members import draw_members
from attacks.shadows.plan import FederationPlan
from attacks.shadows.schedule import Streams
from attacks.shadows.simulate import flat_weights
from attacks.views import observations
from fedsim.core.run_directory import RunDirectory
from fedsim.runs import play, prepare


def by_person(plan: FederationPlan, party: int, most: int = 0) -> FederationPlan:
    parties = list(plan.parties)
    dp = replace(plan.dp(party), unit="person", records_per_person=most)
    parties[party] = replace(parties[party], dp=dp)
    return replace(plan, parties=tuple(parties))


PLANS = {
    "one party": by_person(small_plan(private=(1,)), 1),
    "beside records, at most two of each": by_person(
        by_person(small_plan(private=(0, 1, 2), hidden=(6, 7), classes=3), 1, 2), 2, 1
    ),
    "adaptive clipping": by_person(small_plan(private=(0, 1), adaptive=(1,)), 1),
    "momentum, one takes part": by_person(
        small_plan(private=(0, 1), training={"momentum": 0.5, "l2": 0.01}, participants=2), 0, 3
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_shadow_is_the_party_s_own_training_person_by_person(plan: FederationPlan) -> None:
    pool = some_pool(plan)
    person = np.random.default_rng(2).integers(0, 22, len(pool))
    membership = draw_members(3, plan.sizes.tolist(), np.full(len(pool), -1), seed=4, person=person)
    actual = simulate(
        plan, w_0(plan), pool, membership, pool, rounds=[3], seed=11, weight_rounds=[3], person=person
    )
    assert actual.weights is not None
    assert np.abs(actual.weights - flat_weights(w_0(plan))).max() > 0.01
    for s, members in enumerate(membership.members):

        def ignore(t: int, answers: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> None: ...

        streams = Streams(11, 0, s)
        slow = shadow_oracle.train_one(
            plan, w_0(plan), pool, members, pool, [3], streams, ignore, person=person
        )
        expected = np.concatenate([w.numpy().ravel() for w in slow.values()])
        np.testing.assert_allclose(actual.weights[s, 0], expected, rtol=1e-3, atol=2e-5)


def test_whose_the_records_are_decides_the_result_and_must_be_said() -> None:
    plan = by_person(small_plan(private=(1,)), 1)
    pool = some_pool(plan)
    membership = draw_members(1, plan.sizes.tolist(), np.full(len(pool), -1), seed=4)

    def phi(person: np.ndarray | None) -> np.ndarray:
        return simulate(plan, w_0(plan), pool, membership, pool, rounds=[3], seed=11, person=person).phi

    alone = phi(np.arange(len(pool)))
    assert (phi(np.arange(len(pool)) // 3) != alone).any()
    with pytest.raises(ValueError, match="whose the records are"):
        phi(None)


def test_of_a_person_all_records_are_drawn_or_none() -> None:
    """But for the last one of a party, of whom as many are as there is room for."""
    stream = np.random.default_rng(0)
    party_of, person = np.repeat([0, 1, -1], [60, 50, 40]), stream.integers(0, 50, 150)
    drawn = draw_members(200, [31, 40], party_of, seed=3, person=person)
    assert drawn.sizes == [31, 40]
    cut = []
    for inside in drawn.inside:
        for k in range(2):
            for rows in (party_of == k, party_of == -1):
                hers = [set((inside[rows & (person == one)] == k).tolist()) for one in np.unique(person)]
                cut.append(sum(len(sides) == 2 for sides in hers))
    assert max(cut) <= 2  # records that anyone may hold are dealt: one at each end of a party's part
    share = (drawn.inside == 0).mean(axis=0)[party_of == 0]
    many = np.bincount(person[party_of == 0], minlength=50)[person[party_of == 0]]
    assert abs(share[many >= 2].mean() - share[many == 1].mean()) < 0.08  # no more often for having more


def test_pairs_are_complementary_for_persons_too() -> None:
    person = np.repeat(np.arange(20), 2)
    inside = draw_members(8, [20], np.zeros(40, int), seed=2, person=person).inside >= 0
    assert (inside[::2] != inside[1::2]).all()
    assert (inside[:, ::2] == inside[:, 1::2]).all()


def run_by_person(folder: Path) -> RunDirectory:
    everyone = {"noise_multiplier": 0.6, "unit": "person", "records_per_person": 3}
    asked = scenario(
        folder, 160, dp={"all": everyone}, adversary={"attacks": ["lira", "loss"], "shadows": 64},
        federation={"rounds": 4},
    )  # fmt: skip
    file = folder / "patients.csv"
    frame = pd.read_csv(file)
    frame["patient"] = np.random.default_rng(5).integers(0, 60, len(frame))
    frame.to_csv(file, index=False)
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"person": "patient"})})
    return prepare.prepare(prepare.check(asked, None), folder / "run")


def test_attacks_on_shadows_follow_a_run_whose_unit_is_a_person(tmp_path: Path) -> None:
    run = run_by_person(tmp_path)
    play.federate(run)
    assert set(run.table("scores")["attack"]) >= {"lira", "loss"}
    view = observations.load_view(run.observations(0))
    candidates = observations.load_candidates(run.observations(0))
    matrix = suite.simulate(view, candidates, run.scenario.seed)
    pool = view.auxiliary
    assert pool is not None and pool.person is not None and view.candidate_person is not None
    person = np.concatenate([view.candidate_person, pool.person])
    together = [
        np.mean(matrix.inside[:, a] == matrix.inside[:, b])
        for a in range(len(candidates))
        for b in np.flatnonzero(person == person[a])
        if a != b
    ]
    assert len(together) > 20 and np.mean(together) > 0.85  # a candidate and her other records
    # The target looks like one more shadow: nothing of its setting was forgotten.
    target, shadows = matrix.target[-1], matrix.shadows[:, -1]
    deviation = (target - shadows.mean(axis=0)) / shadows.std(axis=0)
    assert np.abs(deviation).mean() < 1.4
