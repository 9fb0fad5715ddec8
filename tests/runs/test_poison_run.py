"""A poisoned replay of a small run."""

from __future__ import annotations

import numpy as np
import pytest
from support.runs import finished_run

from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.runs import beyond, poison
from fedsim.runs.poison import Attempt, Budget

LONGER = {"federation": {"rounds": 5}, "training": {"epochs": 6, "batch": 8, "lr": 0.2}}
DP = {"hospital-2": {"noise_multiplier": 1.0}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("poison")
    return finished_run(folder, n=120, adversary={"attacks": ["loss"]}, dp=DP, **LONGER)


def test_an_honest_replay_is_the_run_bit_for_bit(run: RunDirectory) -> None:
    poison.flower_internals.assume_identity(1)
    game = poison._Game.of(run, beyond.games_of(run)[0], Budget(targets=4, rounds=3))
    replayed, final = game.replay("fedavg").model, run.read_model(0, 5)
    for name, array in final.items():
        np.testing.assert_array_equal(replayed[name], array)


def test_much_poison_does_damage_and_none_does_none(run: RunDirectory) -> None:
    table = poison.poison(run, Budget(targets=4, copies=20, rounds=3), ["fedavg", "krum"])
    assert run.table("poisoning").equals(table)
    damage = table[table["metric"] == "damage"].set_index(["defence", "kind", "aim", "update"])["value"]
    assert damage["fedavg", "mislabelled", "called members", "open"] > 0.1
    assert damage["fedavg", "mislabelled", "random", "open"] > 0.1
    stealthy = damage.xs("stealthy", level="update")["fedavg", "mislabelled", "called members"]
    assert stealthy <= damage["fedavg", "mislabelled", "called members", "open"] + 0.05
    gain = table[table["metric"] == "gain"]
    assert ((gain["low"] <= gain["value"]) & (gain["value"] <= gain["high"])).all()
    norms = table[table["metric"] == "norm"].set_index(["defence", "kind", "aim", "update"])["value"]
    assert (
        norms["fedavg", "mislabelled", "random", "stealthy"]
        < norms["fedavg", "mislabelled", "random", "open"]
    )


def test_targets_are_chosen_by_what_was_seen_before_the_poison(run: RunDirectory) -> None:
    played = beyond.games_of(run)[0]
    before = poison._aimed(run, played, 2, 6)
    for t in (3, 4, 5):  # what comes later may be anything
        played.view.models[t] = played.view.models[0]
    after = poison._aimed(run, played, 2, 6)
    for aim in poison.AIMS:
        np.testing.assert_array_equal(before[aim], after[aim])
    assert len(set(poison.ATTEMPTS)) == 8
    assert Attempt("boundary", "random", True) in poison.ATTEMPTS


def test_what_cannot_be_replayed_is_refused(run: RunDirectory, tmp_path) -> None:
    with pytest.raises(InputError, match="--rounds 5: the run has 5"):
        poison.poison(run, Budget(rounds=5))
    robust = {"rounds": 3, "strategy": "fedmedian"}
    other = finished_run(tmp_path, adversary={"attacks": ["loss"]}, federation=robust)
    with pytest.raises(InputError, match="fedmedian"):
        poison.poison(other, Budget(rounds=2))
