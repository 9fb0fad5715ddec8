from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from support.attacks import findings
from support.federation import Federation, initial, noise, train

from attacks import deviation, registry
from attacks.declaration import Attack
from attacks.deviation import FEW
from attacks.membership import active
from attacks.signals import outputs
from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError
from fedsim.core.models import weights, zoo
from fedsim.core.scenario.adversary import AdversarySettings
from fedsim.core.scenario.settings import FederationSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings

SEEDS = st.integers(0, 2**32 - 1)


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Poison.


@given(st.integers(1, 9), st.integers(1, 5), st.integers(2, 6), SEEDS)
def test_poison_is_copies_of_the_targets_with_one_wrong_label_each(
    n: int, copies: int, classes: int, seed: int
) -> None:
    targets = noise(stream(seed), n, 4, classes)
    poison = deviation.poison(targets, copies, classes, stream(seed))
    assert len(poison) == n * copies
    for i in range(n):
        mine = slice(i * copies, (i + 1) * copies)
        assert (poison.features[mine] == targets.features[i]).all()
        assert len(set(poison.labels[mine])) == 1 and poison.labels[mine][0] != targets.labels[i]
    assert poison.labels.min() >= 0 and poison.labels.max() < classes
    assert poison.labels.dtype == targets.labels.dtype


def test_every_wrong_label_is_as_likely() -> None:
    targets = Records(np.zeros((6000, 1), np.float32), np.full(6000, 2))
    counts = np.bincount(deviation.poison(targets, 1, 4, stream()).labels, minlength=4)
    assert counts[2] == 0 and np.abs(counts[[0, 1, 3]] - 2000).max() < 5 * np.sqrt(6000 * 2 / 9)


def test_one_class_cannot_be_mislabelled() -> None:
    with pytest.raises(ValueError, match="1 classes"):
        deviation.poison(noise(stream(), 3, 4, 1), 1, 1, stream())


# The ascent.


class Small(torch.nn.Module):
    """A frozen layer, a dropout and a BatchNorm: what a step must leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 5)
        self.first.requires_grad_(False)
        self.norm = torch.nn.BatchNorm1d(5)
        self.drop = torch.nn.Dropout(0.5)
        self.last = torch.nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


@pytest.mark.parametrize("name", ["mlp", "small"])
def test_the_step_is_the_rate_times_the_sum_of_the_records_own_gradients(name: str) -> None:
    torch.manual_seed(0)
    built = zoo.build(ModelSettings(name="mlp", hidden=[6]), (4,), 3, seed=1)
    module = built if name == "mlp" else Small()
    records = noise(stream(), 7, 4, 3)
    step = deviation.ascent(module, records, 0.25)
    oracle = module.double().eval()
    trained = {key: p for key, p in oracle.named_parameters() if p.requires_grad}
    assert set(step) == set(trained)
    total = {key: np.zeros(p.shape) for key, p in trained.items()}
    for i in range(len(records)):
        oracle.zero_grad()
        log_p = torch.log_softmax(oracle(torch.tensor(records.features[i : i + 1]).double()), 1)
        (-log_p[0, records.labels[i]]).backward()
        for key, p in trained.items():
            assert p.grad is not None
            total[key] += 0.25 * p.grad.numpy()
    for key, expected in total.items():
        assert step[key].dtype == np.float32
        np.testing.assert_allclose(step[key], expected, rtol=1e-4, atol=1e-6)


def test_a_step_raises_the_targets_loss_and_leaves_the_model_alone() -> None:
    module = zoo.build(ModelSettings(name="mlp", hidden=[6]), (4,), 3, seed=1)
    records, before = noise(stream(), 7, 4, 3), weights.weights_of(module)
    step = deviation.ascent(module, records, 0.01)
    after = weights.weights_of(module)
    assert all((after[key] == before[key]).all() for key in before)

    def mean_loss() -> float:
        return outputs.loss(outputs.logits(module, records.features), records.labels).mean()

    low = mean_loss()
    weights.load_weights(module, {key: before[key] + step[key] for key in before})
    assert mean_loss() > low


@given(SEEDS, st.floats(0, 10))
def test_a_step_is_shortened_along_its_own_direction_and_never_lengthened(seed: int, longest: float) -> None:
    rng = stream(seed)
    step = {"a": rng.normal(size=(3, 2)).astype(np.float32), "b": rng.normal(size=4).astype(np.float32)}
    short = deviation.shortened(step, longest)
    flat = [np.concatenate([s["a"].ravel(), s["b"]]).astype(float) for s in (step, short)]
    whole, cut = (np.linalg.norm(f) for f in flat)
    assert deviation.length(step) == pytest.approx(whole, rel=1e-6)
    assert cut == pytest.approx(min(whole, longest), rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(flat[1] * whole, flat[0] * cut, rtol=1e-4, atol=1e-5)


@given(st.integers(2, 9), st.integers(1, 60))
def test_every_ascent_is_followed_by_rounds_of_watching(every: int, rounds: int) -> None:
    settings = AdversarySettings(active="gradient-ascent", ascent_every=every)
    ascents = list(deviation.ascent_rounds(settings, rounds))
    assert all(1 <= t < rounds for t in ascents)
    assert all(later - t == every for t, later in itertools.pairwise(ascents))
    if ascents:
        deviation.check(settings, rounds)
    else:
        with pytest.raises(InputError, match=f"ascent_every = {every}: federation.rounds = {rounds} leaves"):
            deviation.check(settings, rounds)


def test_only_an_ascending_adversary_needs_rounds_to_ascend_in() -> None:
    for kind in (None, "poisoning"):
        deviation.check(AdversarySettings(active=kind), 1)


def test_an_active_adversary_acts_on_few_unless_told_otherwise() -> None:
    assert deviation.candidates(AdversarySettings()) is None
    assert deviation.candidates(AdversarySettings(active="poisoning")) == FEW
    assert deviation.candidates(AdversarySettings(active="poisoning", candidates=7)) == 7


# The score.


def attacked(seed: int, ascends: bool = True, epochs: int = 5) -> Federation:
    """Three parties of full-batch descent for 12 rounds; party 0 ascends in rounds 4 and 8.

    It pushes its own records up as well, as the malicious client does. Where it does not ascend its view
    has ascents of 0 in the same rounds, so that both are scored alike.
    """
    rng = stream(seed)
    model, shape = ModelSettings(name="mlp", hidden=[64, 64]), (40,)
    public = PublicSettings(model, shape, 10, 12, 3, 3, TrainingSettings(), "fedavg")
    assumed = AdversarySettings(active="gradient-ascent", ascent_every=4)
    trains, heldouts = ([noise(rng, 20, 40, 10) for _ in range(3)] for _ in range(2))
    candidates = Records.concatenate([*trains[1:], *heldouts[1:]])
    pushed = Records.concatenate([candidates, trains[0], heldouts[0]])
    module = zoo.build(model, shape, 10)
    seen, ascents = {0: initial(public)}, {}
    for t in range(1, 13):
        answers = [train(public, seen[t - 1], records, epochs, 0.1) for records in trains]
        seen[t] = {name: np.mean([answer[name] for answer in answers], axis=0) for name in answers[0]}
        if t in deviation.ascent_rounds(assumed, 12):
            weights.load_weights(module, answers[0])
            ascents[t] = deviation.shortened(deviation.ascent(module, pushed, 1.0), 1.0 if ascends else 0.0)
            seen[t] = {name: array + ascents[t][name] / 3 for name, array in seen[t].items()}
    view = ParticipantView(public, seen, {}, trains[0], heldouts[0], assumed, ascents=ascents)
    member = np.arange(len(candidates)) < len(candidates) // 2
    return Federation(view, candidates, member, np.zeros(len(candidates)))


@pytest.fixture(scope="module")
def ascended() -> Federation:
    return attacked(0)


def test_members_come_back_from_where_the_ascents_pushed_them(ascended: Federation) -> None:
    view, candidates, member = ascended.view, ascended.candidates, ascended.member
    found = findings(view, candidates, ["gradient-ascent", "loss"], seed=0)
    by_ascent, by_loss = (roc_auc_score(member, found[name].scores) for name in ("gradient-ascent", "loss"))
    assert by_ascent > 0.85 and by_ascent > by_loss + 0.02
    ours = found["gradient-ascent"]
    assert np.mean((ours.scores >= ours.threshold) == member) > 0.7, "its own records set the threshold"


def test_who_ascends_finds_more_than_who_only_watches() -> None:
    def mean_auc(ascends: bool) -> float:
        each = [attacked(seed, ascends, epochs=1) for seed in range(6)]
        return float(
            np.mean([roc_auc_score(f.member, active.recovery(f.view, f.candidates, stream())) for f in each])
        )

    watching = mean_auc(False)
    assert watching > 0.6
    assert mean_auc(True) > watching + 0.02


def test_the_score_is_the_last_log_odds_above_the_mean_of_those_after_ascents(ascended: Federation) -> None:
    view, candidates = ascended.view, ascended.candidates
    score = active.recovery(view, candidates, stream())

    def phi(t: int, i: int) -> float:
        module = view.module(view.models[t])
        with torch.no_grad():
            p = torch.softmax(module(torch.tensor(candidates.features[i : i + 1])).double(), 1)[0]
        y = candidates.labels[i]
        return float(torch.log(p[y]) - torch.log(1 - p[y]))

    for i in (0, 37, 79):
        expected = phi(12, i) - np.mean([phi(4, i), phi(8, i)])
        assert score[i] == pytest.approx(expected, rel=1e-3, abs=1e-3)


# The separating step.


def slopes(module: Any, records: Records) -> np.ndarray:
    """Each record's gradient, (n, p), by a backward pass of its own."""
    rows = []
    for z in range(len(records)):
        module.zero_grad()
        answer = module(torch.tensor(records.features[z : z + 1]))
        torch.nn.functional.cross_entropy(answer, torch.tensor(records.labels[z : z + 1])).backward()
        rows.append(torch.cat([p.grad.flatten() for p in module.parameters()]).numpy().astype(float))
    return np.array(rows)


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.floats(0.05, 1.0), st.floats(0.1, 2.0))
def test_a_separating_step_raises_what_the_next_round_shows_of_the_targets(
    seed: int, share: float, longest: float
) -> None:
    rng = stream(seed)
    module = zoo.build(ModelSettings(name="mlp", hidden=[8]), (5,), 3)
    targets, own = noise(rng, 4, 5, 3), noise(rng, 30, 5, 3)
    among = (slopes(module, own) ** 2).mean(axis=0)
    told = [np.log((slopes(module, targets) ** 2 / among.clip(1e-3 * among.mean())).sum(axis=1)).sum()]
    step = deviation.separation(module, targets, own, share, longest)
    assert 0 < deviation.length(step) <= longest * (1 + 1e-5)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value += share * torch.tensor(step[name])
    told += [np.log((slopes(module, targets) ** 2 / among.clip(1e-3 * among.mean())).sum(axis=1)).sum()]
    assert told[1] > told[0]


@given(SEEDS, st.floats(-1, 0.99))
def test_a_step_keeps_its_budget_or_is_none(seed: int, least: float) -> None:
    rng = stream(seed)
    learnt, step = ({"a": rng.normal(size=6).astype(np.float32)} for _ in range(2))
    found = deviation.within_budget(step, learnt, least, lambda step: deviation.length(step) < 1.5)
    answer = {"a": learnt["a"] + found["a"]}
    assert deviation.cosine(answer, learnt) >= least - 1e-6 and deviation.length(found) < 1.5
    assert any(np.allclose(found["a"], step["a"] / 2**k) for k in range(8)) or not found["a"].any()
    nothing = deviation.within_budget(step, learnt, least, lambda step: False)
    assert not nothing["a"].any()


def test_without_an_ascent_that_could_be_followed_nothing_is_said(ascended: Federation) -> None:
    view, candidates = ascended.view, ascended.candidates
    for ascents in ({}, {12: view.ascents[4]}, {99: view.ascents[4]}):
        assert not active.recovery(replace(view, ascents=ascents), candidates, stream()).any()


# The suite.


def offered_to(names: list[str], active: Any) -> list[Attack]:
    return registry.applicable(names, AdversarySettings(active=active), FederationSettings())


def test_the_attack_is_offered_only_where_the_adversary_ascended() -> None:
    offered = [
        [attack.name for attack in offered_to(["all"], kind) if attack.infers == "membership"]
        for kind in (None, "poisoning", "gradient-ascent")
    ]
    assert offered[0] == offered[1] == [name for name in offered[2] if name != "gradient-ascent"]
    assert "gradient-ascent" in offered[2]
    with pytest.raises(InputError, match=r"set adversary\.active = 'gradient-ascent'"):
        offered_to(["gradient-ascent"], "poisoning")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"active": "gradient-ascent", "ascent_every": 7}, "all candidates .* loss every 7 rounds"),
        ({"active": "poisoning", "targets": 9, "poison_copies": 3}, "first 9 candidates .* 3 mislabelled"),
        ({}, "^$"),
    ],
)
def test_what_it_is_assumed_to_hold_and_do_is_said(settings: dict[str, Any], words: str) -> None:
    assert re.search(words, deviation.assumption(AdversarySettings(**settings)))
