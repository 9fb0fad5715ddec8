from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score
from support.attacks import PARTICIPANTS, VIEW_ATTACKS, attacks_of, findings
from support.runs import scenario

from attacks import registry
from attacks.calibration import calibrate
from attacks.declaration import Attack
from attacks.membership import threshold, trajectory
from attacks.views import observations
from attacks.views.participant import ParticipantView
from fedsim.core.data.records import Records
from fedsim.core.data.store import PartyRecords
from fedsim.core.errors import InputError

# Those that simulate rounds are tested in rounds/, those that compare with shadows on signal matrices, all
# of them end to end in runs/test_shadow_run.py.


def stream() -> np.random.Generator:
    return np.random.default_rng(0)


def losses(view: ParticipantView, t: int, records: Records) -> np.ndarray:
    with torch.no_grad():
        logits = view.module(view.models[t])(torch.tensor(records.features)).numpy().astype(float)
    return -log_softmax(logits, axis=1)[np.arange(len(records)), records.labels]


# What each attack computes, from its definition.


def test_loss_scores_are_the_final_models(overfitted: Any) -> None:
    expected = -losses(overfitted.view, 12, overfitted.candidates)
    scores = threshold.loss(overfitted.view, overfitted.candidates, stream())
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-9)


def test_the_other_threshold_attacks_are_the_final_models(overfitted: Any) -> None:
    view, candidates = overfitted.view, overfitted.candidates
    with torch.no_grad():
        p = view.module(view.final_model)(torch.tensor(candidates.features)).double().softmax(1).numpy()
    label = np.arange(10) == candidates.labels[:, None]
    entropy = np.sum(p * np.log(p), axis=1)
    modified = np.sum(np.where(label, (1 - p) * np.log(p), p * np.log1p(-np.where(label, 0, p))), axis=1)
    for attack, expected in [
        (threshold.confidence, np.log(p.max(axis=1))),
        (threshold.entropy, entropy),
        (threshold.modified_entropy, modified),
    ]:
        np.testing.assert_allclose(attack(view, candidates, stream()), expected, rtol=1e-4, atol=1e-9)


def test_loss_series_is_the_mean_over_rounds(overfitted: Any) -> None:
    expected = -np.mean([losses(overfitted.view, t, overfitted.candidates) for t in range(1, 13)], axis=0)
    scores = trajectory.loss_series(overfitted.view, overfitted.candidates, stream())
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-8)


def test_update_cosine_is_the_mean_over_rounds_by_autograd(early: Any) -> None:
    few = early.candidates.take(np.array([0, 30, 60]))
    view = early.view
    expected = np.zeros(3)
    for t in view.trained_rounds:
        module, update = view.module(view.models[t - 1]), view.others_update(t)
        flat = np.concatenate([update[name].ravel() for name, _ in module.named_parameters()])
        for i in range(3):
            module.zero_grad()
            output = module(torch.tensor(few.features[i : i + 1]))
            torch.nn.functional.cross_entropy(output, torch.tensor(few.labels[i : i + 1])).backward()
            gradient = np.concatenate([value.grad.numpy().ravel() for value in module.parameters()])
            expected[i] -= gradient @ flat / np.linalg.norm(gradient) / np.linalg.norm(flat)
    scores = trajectory.update_cosine(view, few, stream())
    np.testing.assert_allclose(scores, expected / len(view.trained_rounds), atol=1e-5)


def test_nothing_seen_of_the_rounds_is_no_information(overfitted: Any) -> None:
    first = replace(overfitted.view, models={0: overfitted.view.models[0]})
    last = replace(overfitted.view, models={12: overfitted.view.final_model})
    assert not trajectory.loss_series(first, overfitted.candidates, stream()).any()
    assert not trajectory.update_cosine(last, overfitted.candidates, stream()).any()


# What the attacks find.


@pytest.mark.parametrize("name", ["loss", "modified-entropy", "loss-series"])
def test_records_learnt_by_heart_are_found(overfitted: Any, name: str) -> None:
    finding = findings(overfitted.view, overfitted.candidates, [name], seed=0)[name]
    assert roc_auc_score(overfitted.member, finding.scores) > 0.95
    assert np.mean((finding.scores >= finding.threshold) == overfitted.member) > 0.85


def test_the_update_tells_members_before_the_loss_does(early: Any) -> None:
    found = findings(early.view, early.candidates, VIEW_ATTACKS, seed=0)
    by_update = roc_auc_score(early.member, found["update-cosine"].scores)
    assert by_update > 0.75
    assert by_update > roc_auc_score(early.member, found["loss"].scores) + 0.05


def test_the_truth_and_the_order_of_candidates_change_no_score(overfitted: Any) -> None:
    order = stream().permutation(len(overfitted.candidates))
    found = findings(overfitted.view, overfitted.candidates, VIEW_ATTACKS, seed=0)
    moved = findings(overfitted.view, overfitted.candidates.take(order), VIEW_ATTACKS, seed=0)
    for name in VIEW_ATTACKS:
        np.testing.assert_allclose(moved[name].scores, found[name].scores[order], rtol=1e-6, atol=1e-12)


def test_the_view_read_from_disk_gives_the_same_findings(tmp_path: Path, overfitted: Any) -> None:
    view = overfitted.view
    observations.record_settings(
        tmp_path, view.settings, PartyRecords("own", view.own_train, view.own_heldout)
    )
    for t in view.models:
        observations.record_model(tmp_path, t, view.models[t])
        if t:
            observations.record_reply(tmp_path, t, view.own_replies[t])
    found = findings(view, overfitted.candidates, VIEW_ATTACKS, seed=0)
    again = findings(observations.load_view(tmp_path), overfitted.candidates, VIEW_ATTACKS, seed=0)
    for name in VIEW_ATTACKS:
        np.testing.assert_array_equal(again[name].scores, found[name].scores)
        assert again[name].threshold == found[name].threshold


# The suite.


def test_the_suite_holds_every_family() -> None:
    assert VIEW_ATTACKS == [
        "gap", "loss", "confidence", "entropy", "modified-entropy", "per-class-entropy",
        "scaled-logit", "gradient-norm", "representation", "white-box-network", "noise-robustness",
        "boundary-distance", "loss-series", "update-cosine", "update-difference", "confidence-series",
        "update-regression", "glir", "covariance",
    ]  # fmt: skip
    assert PARTICIPANTS["round-decoding"].simulates
    compared = {"shokri", "quantile", "quantile-regression", "lira", "lira-offline", "lira-rounds"}
    compared |= {"lira-per-record"}
    compared |= {"rmia", "rmia-offline", "combined", "joint", "first-update"}
    compared |= {
        "informia",
        "informia-offline",
        "bavaria",
        "bavaria-offline",
        "pmia",
        "cmia",
        "lira-projected",
    }
    assert compared <= set(PARTICIPANTS) - set(VIEW_ATTACKS)
    assert list(attacks_of("coalition")) == list(PARTICIPANTS)
    of_letters = [name for name, attack in PARTICIPANTS.items() if attack.reads != "table"]
    by_shadows = {name for name in of_letters if PARTICIPANTS[name].shadows}
    alike = {"lira", "lira-fixed", "lira-offline", "lira-per-record"}
    assert by_shadows == alike | {"rmia", "rmia-offline"}
    assert [name for name in of_letters if name not in by_shadows] == [
        "loss", "loss-series", "zlib", "reference", "min-k", "min-k++", "neighbourhood",
    ]  # fmt: skip
    assert list(attacks_of("outsider")) == [
        "gap", "loss", "confidence", "entropy", "modified-entropy", "noise-robustness",
    ]  # fmt: skip
    assert list(attacks_of("server")) == [
        "loss", "loss-series", "update-cosine", "update-regression", "fedmia", "fedmia-loss",
    ]  # fmt: skip
    assert list(attacks_of("coalition", "source")) == ["source-shadows"]
    assert len(attacks_of("server", "source")) == 4
    for attack in registry.built_in():
        assert attack.needs and attack.sees and attack.source and attack.assumes


def test_select_keeps_the_suites_order_and_drops_repetitions() -> None:
    everything = [attack for attack in registry.built_in() if "participant" in attack.observers]
    assert registry.select(["all", "loss"]) == everything
    chosen = registry.select(["update-cosine", "loss", "loss"])
    assert [attack.name for attack in chosen] == ["loss", "update-cosine"]


def test_an_unknown_attack_is_named_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"adversary\.attacks.*'los-series'.*did you mean 'loss-series'"):
        registry.select(["loss", "los-series"])
    with pytest.raises(InputError, match="valid: all, bavaria, bavaria-offline, boundary-distance"):
        registry.select(["zzz"])


def test_an_attacks_stream_depends_on_seed_game_name_and_purpose_only(overfitted: Any) -> None:
    def draw(view: ParticipantView, records: Records, rng: np.random.Generator) -> np.ndarray:
        return rng.random(len(records))

    def scores(name: str, seed: int = 0, game: int = 0, names: tuple[str, ...] = ()) -> np.ndarray:
        attacks = [Attack(other, draw) for other in names or (name,)]
        return findings(overfitted.view, overfitted.candidates, attacks, seed, game)[name].scores

    base = scores("first")
    np.testing.assert_array_equal(scores("first", names=("second", "first")), base)
    for other in (scores("second"), scores("first", seed=1), scores("first", game=1)):
        assert not np.array_equal(other, base)


def test_calibration_sees_the_own_records_and_takes_nothing_out(overfitted: Any) -> None:
    seen: list[tuple[ParticipantView, Records]] = []

    def spy(view: ParticipantView, records: Records, rng: np.random.Generator) -> np.ndarray:
        seen.append((view, records))
        return np.arange(len(records))[::-1].astype(float)

    finding = findings(overfitted.view, overfitted.candidates, [Attack("spy", spy)], seed=0)["spy"]
    (view, records), (calibration, own) = seen
    assert view is overfitted.view and records is overfitted.candidates
    assert not calibration.own_replies and view.own_replies
    assert len(own) == 40 and np.array_equal(own.features[:20], view.own_train.features)
    assert finding.threshold == 19.5, "own members score 20 and more, own held-out records less"


@pytest.mark.filterwarnings("ignore:attack 'half'. 20 of 40")  # the same on the own records
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_count_as_the_lowest(overfitted: Any, broken: float) -> None:
    def half(view: ParticipantView, records: Records, rng: np.random.Generator) -> np.ndarray:
        scores = np.arange(len(records), dtype=float)
        scores[::2] = broken
        return scores

    with pytest.warns(RuntimeWarning, match="attack 'half': 40 of 80 scores are not finite"):
        scores = findings(overfitted.view, overfitted.candidates, [Attack("half", half)], seed=0)[
            "half"
        ].scores
    np.testing.assert_array_equal(scores[::2], 1.0)
    np.testing.assert_array_equal(scores[1::2], np.arange(1, 80, 2))


def test_a_diverged_federation_is_scored_all_the_same(overfitted: Any) -> None:
    broken = {name: np.full_like(array, np.nan) for name, array in overfitted.view.final_model.items()}
    view = replace(overfitted.view, models={**overfitted.view.models, 12: broken}, _kept={})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = findings(view, overfitted.candidates, VIEW_ATTACKS, seed=0)
    of_early_rounds = {"glir", "covariance"}  # which look at no model that diverged
    assert {str(warning.message).split("'")[1] for warning in caught} == set(VIEW_ATTACKS) - of_early_rounds
    for finding in (found[name] for name in VIEW_ATTACKS if name not in of_early_rounds):
        assert not finding.scores.any() and np.isfinite(finding.threshold)
        assert not (finding.scores >= finding.threshold).any()


def test_no_candidates_no_scores(overfitted: Any) -> None:
    none = overfitted.candidates.take(np.zeros(80, dtype=bool))
    for finding in findings(overfitted.view, none, VIEW_ATTACKS, seed=0).values():
        assert finding.scores.shape == (0,)


# The threshold.


def accuracy(members: np.ndarray, nonmembers: np.ndarray, cut: float) -> float:
    return (np.mean(members >= cut) + np.mean(nonmembers < cut)) / 2


SCORES = st.lists(st.floats(-1e6, 1e6) | st.integers(-3, 3).map(float), min_size=1, max_size=12).map(np.array)


@given(SCORES, SCORES)
def test_no_threshold_is_better_than_the_calibrated_one(members: np.ndarray, nonmembers: np.ndarray) -> None:
    scores = np.concatenate([members, nonmembers])
    best = max(accuracy(members, nonmembers, cut) for cut in [*scores, np.inf])
    assert accuracy(members, nonmembers, calibrate(members, nonmembers)) == pytest.approx(best)


@given(SCORES, SCORES, st.randoms())
def test_the_threshold_does_not_depend_on_the_order(
    members: np.ndarray, nonmembers: np.ndarray, random: Any
) -> None:
    shuffled = np.array(random.sample(list(members), len(members)))
    assert calibrate(shuffled, nonmembers[::-1]) == calibrate(members, nonmembers)


@pytest.mark.parametrize(
    ("members", "nonmembers", "cut"),
    [
        ([3, 4], [1, 2], 2.5),
        ([2, 10], [1, 3], 6.5),  # 1.5 would do as well, with less room
        ([1, 2, 4], [0, 3], 0.5),
        ([0, 0], [1, 1], np.nextafter(1, np.inf)),  # the wrong way round: call nobody a member
        ([5, 5], [5], np.nextafter(5, np.inf)),
        ([np.nextafter(1, 2)], [1], np.nextafter(1, 2)),  # no float lies between
    ],
)
def test_the_threshold_by_hand(members: list[float], nonmembers: list[float], cut: float) -> None:
    assert calibrate(np.array(members, float), np.array(nonmembers, float)) == cut


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
def test_a_threshold_needs_both_kinds(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        calibrate(*(np.zeros(size) for size in sizes))


@pytest.mark.parametrize(
    "program", ["import attacks.execution", "from attacks import registry; registry.known()"]
)
def test_importing_and_listing_the_attacks_stays_cheap(
    run_python: Callable[[str], str], program: str
) -> None:
    heavy = "{'torch', 'flwr', 'sklearn', 'scipy', 'opacus'}"
    assert run_python(f"import sys; {program}; print({heavy} & set(sys.modules))").strip() == "set()"


def test_every_attack_beyond_membership_says_what_it_has_to_beat() -> None:
    attacks = registry.beyond_membership()
    assert {a.command.split()[0] for a in attacks} >= {"attribute", "invert", "reconstruct", "count"}
    assert len({(a.command, a.name) for a in attacks}) == len(attacks)
    for attack in attacks:
        assert attack.baseline and attack.sees and attack.assumes and attack.source, attack.name


def test_other_readings_of_the_same_shadows_are_mounted_where_they_are_named(tmp_path: Path) -> None:
    rivals = {name for name, attack in PARTICIPANTS.items() if attack.variant}
    assert rivals == {"bavaria", "bavaria-offline", "informia", "informia-offline", "pmia", "cmia"}
    settings = scenario(tmp_path)
    everything = {attack.name for attack in registry.attacks_of(settings, names=["all"])}
    assert not rivals & everything and {"lira", "glir"} <= everything
    assert [attack.name for attack in registry.attacks_of(settings, names=["loss", "cmia"])] == [
        "loss",
        "cmia",
    ]
