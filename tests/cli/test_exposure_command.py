"""`fedsim exposure`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from click.testing import CliRunner

from fedsim.cli.main import main
from fedsim.evaluation.guarantees import auc_bound, tpr_bound

CLINICS = str(Path(__file__).parents[2] / "docs" / "examples" / "clinics.toml")


def test_the_most_exposed_come_first_beside_what_dp_allows(tmp_path: Path) -> None:
    place = tmp_path / "all.parquet"
    words = [
        "exposure",
        CLINICS,
        "--dp",
        "all=2",
        "--set",
        "data.decimal=,",
        "--json",
        "--top",
        "4",
        "--out",
        str(place),
    ]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    found, whole = json.loads(done.stdout), pd.read_parquet(place)
    assert len(found["records"]) == 4 < len(whole)
    assert whole["separation"].is_monotonic_decreasing and whole["record"].is_unique
    assert [row["record"] for row in found["records"]] == whole["record"].head(4).tolist()
    assert found["epsilon"] <= 2.0 and found["allowed_auc"] == auc_bound(found["epsilon"], found["delta"])
    assert found["allowed_tpr"] == tpr_bound(0.01, found["epsilon"], found["delta"])
    assert whole["auc"].max() < found["allowed_auc"]


def test_a_party_that_is_none_is_one_sentence() -> None:
    done = CliRunner().invoke(main, ["exposure", CLINICS, "--party", "clinc-1"])
    assert done.exit_code == 2 and "--party 'clinc-1': no such party" in done.stderr
