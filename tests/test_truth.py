"""The adversary cannot reach the truth, and what it finds depends on nothing but what it saw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from support import finished_run, prepared_run

from fedsim import files, runner
from fedsim.results import RunDirectory


def flip(run: RunDirectory) -> None:
    path = run.path / "truth.parquet"
    truth = files.read_table(path)
    files.write_table(path, truth.assign(member=~truth["member"]))


def test_flipped_truth_gives_the_same_scores_and_the_mirrored_leakage(tmp_path: Path) -> None:
    run = finished_run(tmp_path, games=2)
    scores, leakage = run.table("scores"), run.table("leakage")
    flip(run)
    runner.attack(run)
    pd.testing.assert_frame_equal(run.table("scores"), scores)
    flipped = run.table("leakage")
    assert set(flipped["attack"]) == set(leakage["attack"])
    before, after = (table[table["metric"] == "auc"]["value"].to_numpy() for table in (leakage, flipped))
    np.testing.assert_allclose(after, 1 - before, rtol=0, atol=1e-12)


WATCH = """
import json, sys
from pathlib import Path
opened = set()
sys.addaudithook(lambda event, args: opened.add(str(args[0])) if event == "open" else None)
from flwr.app import RecordDict, ConfigRecord, Message
from clients import messages
from clients.client_app import app
from fedsim.engines.inprocess import InProcessGrid
from fedsim.files import read_arrays
run = Path(sys.argv[1])
candidates = read_arrays(run / "candidates-000.safetensors")
opened.clear()
with InProcessGrid(run, 0, 3) as grid:
    adversary = min(grid.get_node_ids())
    config = ConfigRecord({"workers": 1})
    content = RecordDict({"candidates": messages.to_arrays(candidates), "config": config})
    [reply] = grid.send_and_receive([Message(content, adversary, "query.attack")])
assert reply.has_content(), reply.error
print(json.dumps(sorted(path for path in opened if path.startswith(str(run)))))
"""


def test_the_adversarys_process_opens_no_file_but_its_own(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    answer = subprocess.run(
        [sys.executable, "-c", WATCH, str(run.path)], capture_output=True, text=True, check=True
    )
    opened = {str(Path(path).relative_to(run.path)) for path in json.loads(answer.stdout)}
    own = ("observations/game-000", "parties/game-000/000-hospital-1", "scenario.toml", "manifest.json")
    assert any(path.startswith("observations") for path in opened)
    assert [path for path in opened if not path.startswith(own)] == []


def test_candidates_are_shuffled_and_carry_no_membership(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, games=2)
    arrays = files.read_arrays(run.path / "candidates-000.safetensors")
    assert set(arrays) == {"features", "labels", "party"}
    assert set(arrays["party"]) == {-1}, "which party a record is of is told only where it is known"
    truth = files.read_table(run.path / "truth.parquet")
    members = truth[truth["game"] == 0]["member"].to_numpy()
    assert 0 < np.flatnonzero(np.diff(members.astype(int))).size > 5, "members do not come in one block"
    other = truth[truth["game"] == 1].set_index("record")["member"]
    one = truth[truth["game"] == 0].set_index("record")["member"]
    assert (one != other.reindex(one.index)).any(), "every game draws the membership anew"
