"""One federation, attacked in several worlds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.runs import finished_run, prepared_run
from support.truth import flip

from attacks.shadows import suite
from attacks.views import observations
from attacks.views.participant import ParticipantView
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.runs import observers
from fedsim.runs.attack import attack_again

LADDER = ["all", "half", "none"]
ATTACKS = ["loss", "round-decoding", "lira", "lira-offline", "update-regression"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    adversary = {"worlds": LADDER, "attacks": ATTACKS, "shadows": 16}
    return finished_run(tmp_path_factory.mktemp("ladder"), n=90, adversary=adversary)


def scores_in(run: RunDirectory, world: str) -> pd.DataFrame:
    scores = run.table("scores")
    scores = scores[scores["world"] == world]
    return scores.pivot(index="candidate", columns="attack", values="score")


def test_every_world_has_scores_of_those_it_asks_about_and_of_what_it_can_run(run: RunDirectory) -> None:
    assert list(run.table("scores")["world"].unique()) == LADDER
    for name, world in run.read_worlds(0).items():
        found = scores_in(run, name)
        assert found.index.tolist() == world.asked.tolist() and np.isfinite(found.to_numpy()).all()
        for attack in ("lira", "update-regression"):
            assert (attack in found) == (name != "none"), "it owns one candidate at a time"
    assert set(run.manifest["world_seconds"]["0"]) == set(LADDER)
    assert run.manifest["shadow_path"] == "stacked"
    assert run.table("ladder")["world"].tolist() == LADDER


def test_shadows_say_what_share_of_their_members_is_owned(run: RunDirectory) -> None:
    candidates = observations.load_candidates(run.observations(0))
    for name, share in (("all", 1.0), ("half", 0.5)):
        view = observers.sight(run, 0, "participant", world=name)
        assert isinstance(view, ParticipantView)
        asked = candidates.take(run.read_worlds(0)[name].asked)
        assert suite.simulate(view, asked, 1).owned == pytest.approx(share, abs=0.1)


def test_what_needs_no_records_finds_the_same_in_every_world(run: RunDirectory) -> None:
    whole = scores_in(run, "all")["loss"]
    for name in LADDER[1:]:
        pd.testing.assert_series_equal(scores_in(run, name)["loss"], whole.loc[scores_in(run, name).index])


def test_a_world_alone_finds_what_it_finds_beside_others(run: RunDirectory, tmp_path: Path) -> None:
    adversary = {"worlds": ["half", "none"], "attacks": ATTACKS, "shadows": 16}
    other = finished_run(tmp_path, n=90, adversary=adversary)
    for name in ("half", "none"):
        world, again = run.read_worlds(0)[name], other.read_worlds(0)[name]
        np.testing.assert_array_equal(world.asked, again.asked)
        pd.testing.assert_frame_equal(scores_in(other, name), scores_in(run, name))


def test_in_a_world_the_view_holds_nothing_that_is_not_owned_there(run: RunDirectory) -> None:
    everyone = observations.load_candidates(run.observations(0))
    for name, world in run.read_worlds(0).items():
        view = observers.sight(run, 0, "participant", world=name)
        assert isinstance(view, ParticipantView) and view.auxiliary is not None
        assert len(view.auxiliary) == len(world.owned) + len(world.nobodys)
        np.testing.assert_array_equal(
            view.auxiliary.records.features[len(world.owned) :], everyone.features[world.nobodys]
        )


def test_flipped_truth_an_empty_cache_and_again_offline_give_the_same_scores(run: RunDirectory) -> None:
    before = run.table("scores")
    flip(run)  # another test's cache is not this one's: every shadow is simulated anew
    attack_again(run)
    pd.testing.assert_frame_equal(run.table("scores"), before)
    flip(run)


def test_the_judge_speaks_of_each_world_by_itself(run: RunDirectory) -> None:
    attack_again(run, ["loss"])
    leakage = run.table("leakage").query("metric == 'auc' and party == 'all' and game == 'all'")
    for name, world in run.read_worlds(0).items():
        rows = leakage[leakage["world"] == name]
        assert (rows["n_members"] + rows["n_nonmembers"] == len(world.asked)).all() and len(rows) >= 3


@pytest.mark.parametrize("less", [{"knows_sizes": False}, {"assumed_lr": 0.3}, {"prior": 0.2}])
def test_what_is_assumed_can_be_taken_away(
    run: RunDirectory, tmp_path: Path, less: dict[str, object]
) -> None:
    adversary = {"worlds": ["half"], "attacks": ["loss", "round-decoding"], **less}
    other = finished_run(tmp_path, n=90, adversary=adversary)
    with_all, without = scores_in(run, "half"), scores_in(other, "half")
    pd.testing.assert_series_equal(without["loss"], with_all["loss"])
    assert np.isfinite(without["round-decoding"]).all()
    if "knows_sizes" not in less:  # parties of one size have it whether it is known or not
        assert (without["round-decoding"] != with_all["round-decoding"]).mean() > 0.9


def test_worlds_that_contradict_are_refused(tmp_path: Path) -> None:
    for adversary, said in (
        ({"worlds": []}, "at least one"),
        ({"worlds": ["all", "all"]}, "each once"),
        ({"worlds": ["all"], "auxiliary": "disjoint"}, "leave auxiliary out"),
        ({"worlds": ["most"]}, "worlds"),
    ):
        with pytest.raises(InputError, match=said):
            prepared_run(tmp_path, adversary=adversary)
