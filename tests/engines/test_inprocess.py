from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from support.runs import BRIEF, final_sha, finished_run, prepared_run

from clients import party
from fedsim.core.run_directory import RunDirectory
from fedsim.runs import play


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    first, second = (
        finished_run(tmp_path, out="a", adversary=BRIEF),
        finished_run(tmp_path, out="b", adversary=BRIEF),
    )
    assert final_sha(first) == final_sha(second)
    pd.testing.assert_frame_equal(first.table("scores"), second.table("scores"))
    pd.testing.assert_frame_equal(first.table("leakage"), second.table("leakage"))


def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    assert final_sha(finished_run(tmp_path, out="a", adversary=BRIEF)) != final_sha(
        finished_run(tmp_path, out="b", seed=4, adversary=BRIEF)
    )


DP = {"all": {"noise_multiplier": 1.0}, "hospital-2": "off"}


@pytest.mark.parametrize("dp", [{}, DP], ids=["open", "dp"])
def test_workers_do_not_change_a_bit(tmp_path: Path, dp: dict) -> None:
    alone = finished_run(tmp_path, out="a", dp=dp, adversary=BRIEF)
    run = prepared_run(tmp_path, out="b", dp=dp, adversary=BRIEF)
    play.federate(run, workers=3)
    assert final_sha(run) == final_sha(alone)
    columns = ["round", "party", "epsilon", "loss", "auc"]
    pd.testing.assert_frame_equal(run.table("rounds")[columns], alone.table("rounds")[columns])


@pytest.mark.parametrize("dp", [{}, DP], ids=["open", "dp"])
def test_parties_that_train_one_module_in_turn_are_those_that_have_one_each(
    tmp_path: Path, dp: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = finished_run(tmp_path, out="a", dp=dp, adversary=BRIEF)
    monkeypatch.setattr(party, "_shared_module", party._shared_module.__wrapped__)
    apart = finished_run(tmp_path, out="b", dp=dp, adversary=BRIEF)
    assert final_sha(shared) == final_sha(apart)
    columns = ["round", "party", "epsilon", "loss", "auc", "update_norm", "update_cosine"]
    pd.testing.assert_frame_equal(shared.table("rounds")[columns], apart.table("rounds")[columns])
    pd.testing.assert_frame_equal(shared.table("scores"), apart.table("scores"))


RUN_IT = """
import sys
from pathlib import Path
from fedsim.core.run_directory import RunDirectory
from fedsim.runs import play
from fedsim.server import bookkeeping
bookkeeping.WRITE_EVERY, bookkeeping.WRITING_SHARE = 0.0, float("inf")  # after every round
play.federate(RunDirectory.open(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam"])
def test_killed_run_resumes_to_the_same_bits(tmp_path: Path, strategy: str) -> None:
    federation = {"rounds": 100, "strategy": strategy, "fraction": 0.7}
    dp = {"hospital-1": {"noise_multiplier": 1.0, "accountant": "rdp"}}
    settings = {"federation": federation, "dp": dp}
    whole = finished_run(tmp_path, out="whole", **settings, adversary=BRIEF)
    run = prepared_run(tmp_path, out="killed", **settings, adversary=BRIEF)
    process = subprocess.Popen([sys.executable, "-c", RUN_IT, str(run.path)])
    deadline = time.monotonic() + 60
    while run.last_round(0) < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    stopped_at = run.last_round(0)
    assert 20 <= stopped_at < 100, "it was killed in the middle"
    again = RunDirectory.open(run.path)
    checkpoint = again.read_checkpoint(0)
    assert checkpoint is not None and stopped_at - 1 <= checkpoint.round
    play.federate(again)
    assert final_sha(again) == final_sha(whole)
    columns = ["round", "party", "status", "epsilon", "loss"]
    pd.testing.assert_frame_equal(again.table("rounds")[columns], whole.table("rounds")[columns])
    pd.testing.assert_frame_equal(again.table("scores"), whole.table("scores"))


def test_a_client_keeps_its_ledger_in_the_context_alone(tmp_path: Path) -> None:
    """Every message in a new process, as on Flower's deployment: ε still composes over rounds."""
    run = finished_run(
        tmp_path, dp={"all": {"noise_multiplier": 1.0}}, federation={"rounds": 4}, adversary=BRIEF
    )
    rounds = run.table("rounds")
    spent = rounds[rounds["party"] == "hospital-2"].set_index("round")["epsilon"]
    assert spent[0] == 0 and (spent.diff().dropna() > 0).all()
    from fedsim.core.privacy.ledger import Ledger

    plan = run.manifest["dp"]["hospital-2"]
    per_round = plan["steps_per_round"]
    for round in range(1, 5):
        ledger = Ledger().add(1.0, plan["sample_rate"], per_round * round)
        assert spent[round] == pytest.approx(ledger.epsilon(plan["delta"], "prv"), rel=1e-9)
