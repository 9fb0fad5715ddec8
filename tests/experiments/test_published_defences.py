"""The study `experiments/studies/published_defences.py`: a page from runs, and sentences that follow it."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from support import runs, studies

from fedsim.core.run_directory import RunDirectory


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return studies.study("published_defences")


def test_a_page_is_made_of_the_runs(study: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    chosen = {name: study.DEFENCES[name] for name in ("none", "RelaxLoss α = 0.8", "HAMP γ = 0.4, α = 0.01")}
    chosen["SELENA, small"] = {"distil": "selena", "teachers": 3, "left_out": 1}

    def finished(name: str, out: Path, data_dir: Path | None) -> RunDirectory:
        adversary = {"observers": ["participant", "outsider"], "attacks": study.ATTACKS}
        (out / name).mkdir(parents=True)
        return runs.finished_run(out / name, defences={"all": chosen[name]}, adversary=adversary)

    monkeypatch.setattr(study, "DEFENCES", chosen)
    monkeypatch.setattr(study, "finished", finished)
    options = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path)]
    assert CliRunner().invoke(study.main, options, catch_exceptions=False).exit_code == 0
    page = (tmp_path / "published_defences.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if " to " in line]
    assert rows[: len(chosen)] == list(chosen)
    assert page.count("\n- ") == 5


def found(accuracy: float, auc: float, gap: float) -> dict[str, Any]:
    rows = pd.DataFrame({"metric": ["auc"], "value": [auc]})
    return {
        "accuracy": accuracy,
        "outsider": ("loss", rows),
        "gap": pd.DataFrame({"metric": ["auc"], "value": [gap]}),
    }


def test_a_direction_that_is_not_seen_is_said(study: ModuleType) -> None:
    seen = {
        "none": found(0.7, 0.75, 0.6),
        "SELENA": found(0.68, 0.55, 0.54),
        "RelaxLoss α": found(0.69, 0.65, 0.6),
        "HAMP": found(0.69, 0.6, 0.6),
    }
    assert not any("not reproduced" in line for line in study.directions(seen))
    unseen = seen | {"SELENA": found(0.5, 0.7, 0.54), "RelaxLoss α": found(0.69, 0.59, 0.6)}
    flagged = ["not reproduced" in line for line in study.directions(unseen)]
    assert flagged == [True, True, False, False, True]
