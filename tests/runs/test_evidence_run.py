"""`fedsim evidence`: what is said of single records of a file, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from support.runs import finished_run

from fedsim.cli.main import main
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation.results import judged
from fedsim.runs import evidence


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Hospitals whose labels are coins, learnt by heart."""
    folder, stream = tmp_path_factory.mktemp("evidence"), np.random.default_rng(0)
    frame = pd.DataFrame(stream.uniform(0, 1, (180, 12)), columns=[f"x{k}" for k in range(12)])
    frame.assign(ill=stream.choice(["no", "yes"], 180)).to_csv(folder / "coins.csv", index=False)
    bounds = {name: [0, 1] for name in frame}
    return finished_run(
        folder,
        data={"path": str(folder / "coins.csv"), "label": "ill", "bounds": bounds},
        model={"name": "mlp", "hidden": [64]},
        training={"epochs": 40, "batch": 8, "lr": 0.3},
        adversary={"attacks": ["loss", "loss-series"]},
    )


def test_each_record_has_its_statement(run: RunDirectory) -> None:
    """The table itself is asked about: candidates by their score, the adversary's own records anew."""
    file = run.path.parent / "coins.csv"
    found = evidence.about(run, file, 0.5)
    assert len(found) == len(pd.read_csv(file)) and (found["candidate"] >= 0).sum() >= 100
    known = found[found["candidate"] >= 0]
    truth = judged(run).drop_duplicates("candidate").set_index("candidate")["member"]
    member = truth.loc[known["candidate"]].to_numpy()
    assert np.median(known["ratio"][member]) > 1 > np.median(known["ratio"][~member])
    expected = known["ratio"] / (1 + known["ratio"])
    assert known["probability"].to_numpy() == pytest.approx(expected.to_numpy())
    assert evidence.about(run, file, 0.5).equals(found)
    words = found["words"].iloc[0]
    assert words.startswith("Record 1: ") and "It is no proof of membership" in words and "50 %" in words


def test_it_refuses_where_the_attack_tells_nothing(tmp_path: Path) -> None:
    private = {"dp": {"all": {"noise_multiplier": 20.0}}, "adversary": {"attacks": ["gap"]}}
    run = finished_run(tmp_path, n=180, **private)
    result = CliRunner().invoke(
        main, ["evidence", str(run.path), "--records", str(tmp_path / "patients.csv")]
    )
    assert result.exit_code == 2, result.output
    assert "no evidence can be given by 'gap': the attack is not shown to tell members" in result.output


def test_the_command(run: RunDirectory, tmp_path: Path) -> None:
    people = pd.read_csv(run.path.parent / "coins.csv").head(3)
    people.to_csv(tmp_path / "people.csv", index=False)
    asked = ["evidence", str(run.path), "--records", str(tmp_path / "people.csv")]
    result = CliRunner().invoke(main, [*asked, "--json"])
    assert [row["record"] for row in json.loads(result.stdout)] == [1, 2, 3]
    result = CliRunner().invoke(main, [*asked, "--out", str(tmp_path / "said.csv")])
    assert result.exit_code == 0 and "prior of 10 %" in result.output
    assert len(pd.read_csv(tmp_path / "said.csv")) == 3
    people.drop(columns="x3").to_csv(tmp_path / "people.csv", index=False)
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2 and "column 'x3' is missing" in result.output
    assert CliRunner().invoke(main, [*asked, "--game", "3"]).exit_code == 2
