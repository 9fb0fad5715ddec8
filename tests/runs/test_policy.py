"""The gate: each threshold against the row of the table that it is about, exit codes, and what is
recommended."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import tomli_w
from click.testing import CliRunner, Result
from support.runs import document, finished_run

from fedsim.cli.main import main
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.policy import PolicySettings
from fedsim.evaluation.estimates import clopper_pearson
from fedsim.report import gate

ATTACKS = {"attacks": ["loss", "gap"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    dp = {"all": {"epsilon": 4.0}}
    return finished_run(tmp_path_factory.mktemp("policy"), n=450, dp=dp, adversary=ATTACKS)


def fedsim(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_each_figure_is_a_row_of_a_table(run: RunDirectory) -> None:
    policy = PolicySettings(max_auc=0.9, max_tpr=0.9, max_epsilon=5, max_shown_epsilon=4, min_accuracy=0.01)
    found = {check.name: check.figure for check in gate.judge(run, policy)}
    strongest = pd.read_parquet(run.path / "strongest.parquet").set_index("party")
    assert found["max_auc"] == strongest["high"]["all"]
    leakage = pd.read_parquet(run.path / "leakage.parquet").query("party == 'all' and game == 'all'")
    rates = leakage[(leakage["metric"] == "tpr_at_fpr_0.01") & (leakage["observer"] == "participant")]
    assert found["max_tpr"] == rates["high"].max()
    rounds = pd.read_parquet(run.path / "rounds.parquet")
    victims = rounds[~rounds["party"].isin(["all", "hospital-1"])]
    assert found["max_epsilon"] == victims["epsilon"].max() <= 4
    last = rounds[(rounds["party"] == "all") & (rounds["round"] == 3)].iloc[0]
    n = last["n_heldout"]
    assert found["min_accuracy"] == pytest.approx(clopper_pearson(last["accuracy"] * n, int(n))[0])
    assert found["max_shown_epsilon"] is not None and found["max_shown_epsilon"] <= 4


@pytest.mark.parametrize(
    ("name", "margin"), [("max_auc", 1e-6), ("min_accuracy", -1e-6), ("max_epsilon", 1e-6)]
)
def test_a_threshold_is_passed_at_the_border_and_not_beyond(
    run: RunDirectory, name: str, margin: float
) -> None:
    figure = gate.judge(run, PolicySettings.model_validate({name: 0.5}))[0].figure
    assert figure is not None
    for threshold, passes in ((figure, True), (figure + margin, True), (figure - margin, False)):
        (check,) = gate.judge(run, PolicySettings.model_validate({name: threshold}))
        assert check.passes == passes and check.source == "the user's own choice"


def test_what_cannot_be_told_does_not_pass(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary=ATTACKS)
    policy = PolicySettings(max_tpr=0.9, max_epsilon=100, sources={"max_tpr": "our review of 2026"})
    tpr, epsilon = gate.judge(run, policy)
    assert tpr.figure is None and not tpr.passes and "cannot resolve 1 % FPR" in tpr.why
    assert tpr.source == "our review of 2026"
    assert epsilon.figure is None and not epsilon.passes and "DP-SGD is off at" in epsilon.why


def test_the_commands_end_with_the_gates_code(run: RunDirectory, tmp_path: Path) -> None:
    passed = fedsim("policy", str(run.path), "--set", "policy.max_auc=0.99", "--json")
    assert passed.exit_code == 0, passed.output
    assert (
        json.loads(passed.stdout)["passes"] and json.loads((run.path / "policy.json").read_text())["passes"]
    )
    failed = fedsim("policy", str(run.path), "--set", "policy.max_auc=0.5", "--set", "policy.max_epsilon=9")
    assert failed.exit_code == 4 and "NOT passed" in failed.output
    checks = json.loads((run.path / "policy.json").read_text())["checks"]
    assert [check["passes"] for check in checks] == [False, True]
    none = fedsim("policy", str(run.path))
    assert none.exit_code == 2 and "there is no [policy]" in none.output
    wrong = fedsim("policy", str(run.path), "--set", "policy.max_auk=0.5")
    assert wrong.exit_code == 2 and "did you mean 'max_auc'" in wrong.output
    source = "policy.sources={max_tpr = 'x'}"
    wrong = fedsim("policy", str(run.path), "--set", "policy.max_auc=0.5", "--set", source)
    assert wrong.exit_code == 2 and "names 'max_tpr', which is no threshold that is set" in wrong.output


def test_a_run_with_a_policy_is_judged_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sections = {"adversary": ATTACKS, "policy": {"min_accuracy": 0.999}}
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(document(tmp_path, **sections)))
    result = fedsim("run", "tiny.toml", "-q")
    assert result.exit_code == 4 and "NOT passed" in result.output
    assert RunDirectory.open(tmp_path / "runs" / "tiny").manifest["complete"], "what was run is kept"


def test_the_cheapest_setting_that_passes_is_recommended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(document(tmp_path, adversary=ATTACKS)))
    asked = ["recommend", "tiny.toml", "-q", "--json", "--epsilon", "5", "--epsilon", "2"]
    result = fedsim(*asked, "--set", "policy.max_epsilon=5")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert [row["label"] for row in said["settings"]] == ["off", "ε = 4.99", "ε = 2"]
    passing = [row for row in said["settings"] if row["policy"][0]["passes"]]
    assert [row["label"] for row in passing] == ["ε = 4.99", "ε = 2"]
    best = max(passing, key=lambda row: row["accuracy"]["value"])
    assert said["recommended"] == best["label"]
    nothing = fedsim("recommend", "tiny.toml", "-q", "--epsilon", "9", "--set", "policy.max_epsilon=0.1")
    assert nothing.exit_code == 4 and "No setting that was tried meets the policy" in nothing.output
    assert not math.isnan(best["loss"])
