"""Shadow attacks end to end: what the adversary is assumed to own decides what it can run and find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.attacks import PARTICIPANTS
from support.runs import finished_run, prepared_run

from attacks.shadows import cache, simulate, suite
from attacks.shadows.suite import Laboratory
from attacks.views import observations
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.runs.attack import attack_again

SHADOWS = [name for name, attack in PARTICIPANTS.items() if attack.shadows]
PASSIVE = [name for name, attack in PARTICIPANTS.items() if not attack.active and attack.reads != "text"]
NAMED = {"attacks": ["all", *(name for name in PASSIVE if PARTICIPANTS[name].variant)]}
"""Every attack: 'all' leaves out what has to be named."""
FEW = {"shadows": 32}


def matrix_of(run: RunDirectory, **options: object):  # type: ignore[no-untyped-def]
    folder = run.observations(0)
    view, candidates = observations.load_view(folder), observations.load_candidates(folder)
    lab = Laboratory(**options)  # type: ignore[arg-type]
    return suite.simulate(view, candidates, run.scenario.seed, 0, lab), view


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dp": {"all": {"noise_multiplier": 1.0}}},
        {"dp": {"hospital-2": {"noise_multiplier": 1.0}}, "model": {"name": "logistic"}},
        {"federation": {"rounds": 3, "strategy": "fedprox", "options": {"proximal_mu": 0.1}}},
        {"federation": {"rounds": 4, "fraction": 0.67}, "training": {"steps": 3, "momentum": 0.9}},
    ],
    ids=["open", "dp", "mixed", "fedprox", "partial"],
)
def test_every_attack_runs_on_every_kind_of_federation(tmp_path: Path, settings: dict) -> None:
    run = finished_run(tmp_path, adversary=FEW | NAMED, **settings)
    scores = run.table("scores")
    assert list(dict.fromkeys(scores["attack"])) == PASSIVE
    assert np.isfinite(scores["score"]).all() and np.isfinite(scores["threshold"]).all()


def test_shadows_differ_from_the_target_in_records_and_chance_alone(tmp_path: Path) -> None:
    """The target's own signals look like one more shadow's: nothing of its setting was forgotten."""
    run = finished_run(tmp_path, n=150, adversary={"shadows": 128}, federation={"rounds": 6})
    matrix, _ = matrix_of(run)
    target, shadows = matrix.target[-1], matrix.shadows[:, -1]
    spread = shadows.std(axis=0)
    deviation = (target - shadows.mean(axis=0)) / spread
    assert np.abs(deviation).mean() < 1.3  # .8 for a Gaussian; a wrong setting shifts all of them
    assert np.abs(target.mean() - shadows.mean(axis=1).mean()) < 4 * shadows.mean(axis=1).std()
    assert matrix.target_weights is not None and matrix.shadow_weights is not None
    centre = matrix.shadow_weights[:, 0].mean(axis=0)
    distances = np.linalg.norm(matrix.shadow_weights[:, 0] - centre, axis=1)
    own = np.linalg.norm(matrix.target_weights[0] - centre)
    assert own < 1.5 * distances.max(), "the target's weights lie among the shadows', in the same order"


def test_candidates_are_in_half_of_the_shadows_and_own_records_in_none_of_the_columns(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary={"attacks": ["lira"], **FEW})
    matrix, view = matrix_of(run)
    share = matrix.member.mean(axis=0)
    assert ((share > 0.3) & (share < 0.7)).all() and abs(share.mean() - 0.5) < 0.02
    assert matrix.target.shape[1] == len(run.read_candidates(0))
    assert matrix.rounds[-1] == view.final_round
    assert set(np.unique(matrix.inside)) == {-1, 1, 2}, (
        "no candidate is a member of the adversary's own party"
    )


def test_less_memory_trains_fewer_at_a_time_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, block_size = [], simulate.block_size

    def spy(*settings: object) -> int:
        asked.append(block_size(*settings))  # type: ignore[arg-type]
        return asked[-1]

    monkeypatch.setattr(simulate, "block_size", spy)
    run = finished_run(tmp_path, adversary={"attacks": ["lira"], **FEW})
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "nothing simulated before"))
    tight = finished_run(tmp_path, out="tight", adversary={"attacks": ["lira"], "memory": 1e-6, **FEW})
    assert asked == [32, 1]
    pd.testing.assert_frame_equal(run.table("scores"), tight.table("scores"))


def test_workers_and_cache_change_nothing(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary={"attacks": ["lira"], **FEW})
    alone, _ = matrix_of(run)
    spread, _ = matrix_of(run, workers=2, cache=tmp_path / "cache")
    cached, _ = matrix_of(run, cache=tmp_path / "cache")
    for other in (spread, cached):
        np.testing.assert_array_equal(other.shadows, alone.shadows)
        np.testing.assert_array_equal(other.inside, alone.inside)
    assert list((tmp_path / "cache").glob("*.safetensors"))


@pytest.mark.parametrize("auxiliary", ["disjoint", "own"])
def test_without_the_candidates_only_attacks_that_can_do_without_them_run(
    tmp_path: Path, auxiliary: str
) -> None:
    run = finished_run(tmp_path, n=120, adversary={"auxiliary": auxiliary, **FEW})
    found = set(run.table("scores")["attack"])
    usual = [name for name in PASSIVE if not PARTICIPANTS[name].variant]
    alone = {name for name in usual if not (PARTICIPANTS[name].inside or PARTICIPANTS[name].together)}
    assert found == alone
    assert {"lira-offline", "rmia-offline"} <= found
    matrix, _ = matrix_of(run)
    n = len(run.read_candidates(0))
    assert not matrix.member[:, :n].any()
    assert matrix.member[:, n:].any(), "thresholds are set on records that are in some shadows"
    named = {"auxiliary": auxiliary, "attacks": ["lira"]}
    with pytest.raises(InputError, match=r"'lira' trains shadows on candidates, which .* none of its worlds"):
        prepared_run(tmp_path, n=120, out="b", adversary=named)


def test_open_world_columns_are_the_candidates_alone(tmp_path: Path) -> None:
    run = finished_run(
        tmp_path, adversary={"candidates": 20, "auxiliary_size": 0, "attacks": ["lira"], **FEW}
    )
    matrix, _ = matrix_of(run)
    assert matrix.target.shape[1] == 20
    assert (matrix.member.sum(axis=1) <= 15).all() and matrix.member.any(axis=1).all()


def test_a_strategy_that_cannot_be_simulated_leaves_the_other_attacks(tmp_path: Path) -> None:
    run = finished_run(tmp_path, federation={"rounds": 2, "strategy": "krum"})
    assert set(run.table("scores")["attack"]) == set(PASSIVE) - set(SHADOWS) - {"round-decoding"}
    krum = {"federation": {"strategy": "krum"}, "adversary": {"attacks": ["lira"]}}
    with pytest.raises(InputError, match=r"'lira' simulates the federation, .* 'krum'"):
        prepared_run(tmp_path, out="b", **krum)


def test_attacking_again_offline_gives_the_same_scores(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary=FEW)
    before = run.table("scores")
    noted: list[tuple[int, int]] = []
    attack_again(run, progress=lambda done, total: noted.append((done, total)))
    pd.testing.assert_frame_equal(run.table("scores"), before)
    done, total = noted[-1]
    assert done == total >= 32
    assert cache.cache_folder().exists()


def test_natural_parties_are_known_and_kept_apart(tmp_path: Path) -> None:
    from support.runs import document, write_table

    write_table(tmp_path / "x.csv", 120)
    table = pd.read_csv(tmp_path / "x.csv")
    table["clinic"] = np.repeat(["a", "b", "c"], 40)
    table.to_csv(tmp_path / "x.csv", index=False)
    data = {**document(tmp_path)["data"], "path": str(tmp_path / "x.csv"), "party": "clinic"}  # type: ignore[dict-item]
    run = finished_run(tmp_path, data=data, parties={}, adversary={"attacks": ["lira"], **FEW})
    matrix, _ = matrix_of(run)
    assert set(matrix.party) == {1, 2}
    for k in (1, 2):
        assert set(np.unique(matrix.inside[:, matrix.party == k])) == {-1, k}


def test_the_first_update_gives_members_away_and_dp_noise_hides_them(tmp_path: Path) -> None:
    """Shadows of the first rounds, many for the price of a few: w_2 is nearly a sum over members."""
    only = {"attacks": ["first-update"], "shadows": 256}
    settings = {"n": 90, "adversary": only, "federation": {"rounds": 8}}
    run = finished_run(tmp_path, out="open", **settings)  # type: ignore[arg-type]
    assert auc_of(run) > 0.8
    hidden = finished_run(tmp_path, out="dp", dp={"all": {"epsilon": 1.0}}, **settings)  # type: ignore[arg-type]
    assert auc_of(hidden) < 0.75
    folder = run.observations(0)
    view, candidates = observations.load_view(folder), observations.load_candidates(folder)
    matrix = suite.simulate(view, candidates, run.scenario.seed, early=True)
    assert len(matrix) == 2048 and matrix.rounds.tolist() == [1, 2]


def test_shadows_of_the_first_rounds_are_those_of_whole_ones(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary={"attacks": ["loss"], **FEW}, federation={"rounds": 4})
    folder = run.observations(0)
    view, candidates = observations.load_view(folder), observations.load_candidates(folder)
    first = suite.simulate(view, candidates, run.scenario.seed, early=True)
    whole = suite.simulate(view, candidates, run.scenario.seed)
    assert whole.rounds.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(first.shadows[:32], whole.shadows[:, :2])
    np.testing.assert_array_equal(first.inside[:32], whole.inside)
    np.testing.assert_array_equal(first.target, whole.target[:2])


def test_rounds_to_look_at_are_all_that_attacks_see(tmp_path: Path) -> None:
    """Attacks on w_T alone are those that look at round T; shadows start from w_0 all the same."""
    few = {"attacks": ["loss", "loss-series", "update-cosine", "lira", "joint"], **FEW}
    run = finished_run(tmp_path, adversary=few, federation={"rounds": 4})
    before = run.table("scores").set_index(["attack", "candidate"])["score"]
    attack_again(run, rounds="last")
    after = run.table("scores").set_index(["attack", "candidate"])["score"]
    for same in ("loss", "lira"):
        np.testing.assert_allclose(after[same], before[same], atol=1e-5)
    np.testing.assert_allclose(after["loss-series"], after["loss"])
    assert not after["update-cosine"].any() and before["update-cosine"].any()
    assert np.abs(after["joint"] - before["joint"]).max() > 1e-3
    other = finished_run(tmp_path, out="chosen", adversary={**few, "rounds": [4]}, federation={"rounds": 4})
    chosen = other.table("scores").set_index(["attack", "candidate"])["score"]
    np.testing.assert_array_equal(chosen, after)


def test_a_round_that_there_is_not_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model of round 5; valid: 0 … 4"):
        finished_run(tmp_path, adversary={"rounds": [5]}, federation={"rounds": 4})


def auc_of(run: RunDirectory) -> float:
    leakage = run.table("leakage")
    chosen = (leakage["metric"] == "auc") & (leakage["party"] == "all") & (leakage["game"] == "all")
    return float(leakage[chosen]["value"].iloc[0])
