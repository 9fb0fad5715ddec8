"""The adversary cannot reach the truth, and what it finds depends on nothing but what it saw."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from support.runs import finished_run, prepared_run
from support.truth import WATCH, flip

from fedsim.core import files
from fedsim.runs import attack


def test_flipped_truth_gives_the_same_scores_and_the_mirrored_leakage(tmp_path: Path) -> None:
    run = finished_run(tmp_path, games=2)
    scores, leakage = run.table("scores"), run.table("leakage")
    flip(run)
    attack.attack_again(run)
    pd.testing.assert_frame_equal(run.table("scores"), scores)
    flipped = run.table("leakage")
    assert set(flipped["attack"]) == set(leakage["attack"])
    before, after = (table[table["metric"] == "auc"]["value"].to_numpy() for table in (leakage, flipped))
    np.testing.assert_allclose(after, 1 - before, rtol=0, atol=1e-12)


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
