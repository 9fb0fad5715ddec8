"""`runs`, `tag`, `compare`, `export`: what was found beside each other, against the tables and independent
ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from scipy.stats import beta, rankdata
from support.runs import finished_run, prepared_run

from fedsim.cli.main import main
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation.truth import read_truth
from fedsim.report import compared, export

ATTACKS = {"attacks": ["loss", "gap"]}


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one seed, off and under DP; one of another seed; one that is not finished."""
    folder = tmp_path_factory.mktemp("runs")
    finished_run(folder, out="off", adversary=ATTACKS)
    finished_run(folder, out="dp", adversary=ATTACKS, dp={"all": {"epsilon": 2.0}})
    finished_run(folder, out="other", adversary=ATTACKS, seed=4)
    prepared_run(folder, out="begun", adversary=ATTACKS)
    return folder


def fedsim(*arguments: str, given: str = "") -> Result:
    return CliRunner().invoke(main, list(arguments), input=given)


def opened(parent: Path, *names: str) -> list[RunDirectory]:
    return [RunDirectory.open(parent / name) for name in names]


def test_runs_are_listed_with_what_was_found(parent: Path) -> None:
    rows = {row["run"]: row for row in json.loads(fedsim("runs", str(parent), "--json").stdout)}
    assert set(rows) == {"off", "dp", "other", "begun"}
    strongest = pd.read_parquet(parent / "off" / "strongest.parquet").set_index("party").loc["all"]
    assert (rows["off"]["auc"], rows["off"]["auc_low"]) == (strongest["value"], strongest["low"])
    rounds = pd.read_parquet(parent / "off" / "rounds.parquet").query("party == 'all' and round == 3")
    assert rows["off"]["accuracy"] == rounds["accuracy"].iloc[0]
    assert rows["dp"]["epsilon"] == pytest.approx(2, abs=0.05) and rows["off"]["epsilon"] is None
    assert rows["begun"]["state"] == "0 of 1 games" and rows["begun"]["auc"] is None
    ordered = [
        row["run"] for row in json.loads(fedsim("runs", str(parent), "--json", "--sort", "auc").stdout)
    ]
    aucs = [rows[name]["auc"] for name in ordered if rows[name]["auc"] is not None]
    assert aucs == sorted(aucs, reverse=True) and ordered[-1] == "begun"
    wrong = fedsim("runs", str(parent), "--sort", "acuracy")
    assert wrong.exit_code == 2 and "did you mean 'accuracy'" in wrong.output


def test_tags_find_runs(parent: Path) -> None:
    assert fedsim("tag", str(parent / "off"), "paper", "baseline").output == "off: paper, baseline\n"
    found = json.loads(fedsim("runs", str(parent), "--tag", "paper", "--json").stdout)
    assert [row["run"] for row in found] == ["off"]
    assert [row["run"] for row in json.loads(fedsim("runs", str(parent), "--where", "BASE", "--json").stdout)]
    assert fedsim("tag", str(parent / "off"), "paper", "--remove").output == "off: baseline\n"
    assert fedsim("tag", str(parent / "off"), "a,b").exit_code == 2
    assert fedsim("show", str(parent / "off")).exit_code == 0, "a tag changes no digest"


def test_a_run_is_deleted_after_a_question(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, out="doomed")
    wrong = fedsim("runs", str(tmp_path), "--delete", "domed")
    assert wrong.exit_code == 2 and "did you mean 'doomed'" in wrong.output
    assert fedsim("runs", str(tmp_path), "--delete", "doomed", given="n\n").exit_code == 0
    assert run.path.exists()
    assert fedsim("runs", str(tmp_path), "--delete", "doomed", given="y\n").exit_code == 0
    assert not run.path.exists()


def test_the_same_candidates_are_compared_in_pairs(parent: Path) -> None:
    """DeLong's variance of a paired difference, from placements written out."""
    first, second = opened(parent, "off", "dp")
    row = compared.differences([first, second]).query("of == 'AUC of the strongest attack'").iloc[0]
    assert row["how"] == compared.PAIRED
    member = read_truth(first.path).sort_values("candidate")["member"].to_numpy(bool)
    placements = []
    for run in (second, first):
        best = pd.read_parquet(run.path / "strongest.parquet").set_index("party")["attack"]["all"]
        scores = pd.read_parquet(run.path / "scores.parquet")
        scores = scores[scores["attack"] == best]
        score = scores.sort_values("candidate")["score"].to_numpy()
        ranks, n, m = rankdata(score), int(member.sum()), int((~member).sum())
        wins = (ranks[member] - rankdata(score[member])) / m
        losses = 1 - (ranks[~member] - rankdata(score[~member])) / n
        placements.append((wins, losses))
    value = placements[0][0].mean() - placements[1][0].mean()
    gaps = [placements[0][side] - placements[1][side] for side in (0, 1)]
    error = math.sqrt(sum(gap.var(ddof=1) / len(gap) for gap in gaps))
    assert row["value"] == pytest.approx(value)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(error * 2.0930, rel=1e-3), "t of 19"


def test_other_candidates_are_compared_apart(parent: Path) -> None:
    first, other = opened(parent, "off", "other")
    rows = compared.differences([first, other]).set_index("of")
    assert set(rows["how"]) == {compared.APART}
    accuracy = [pd.read_parquet(run.path / "rounds.parquet").query("party == 'all' and round == 3").iloc[0]
                for run in (other, first)]  # fmt: skip
    ends = []
    for one in accuracy:
        hits, n = one["accuracy"] * one["n_heldout"], one["n_heldout"]
        ends.append((hits / n, beta.ppf(0.025, hits, n - hits + 1), beta.ppf(0.975, hits + 1, n - hits)))
    (a, a_low, _), (b, _, b_high) = ends
    assert rows["value"]["accuracy"] == pytest.approx(a - b)
    assert rows["low"]["accuracy"] == pytest.approx(a - b - math.hypot(a - a_low, b_high - b))


def test_what_differs_in_the_scenarios_is_named(parent: Path) -> None:
    table = compared.settings(opened(parent, "off", "dp")).set_index("key")
    assert "dp.all.epsilon" in table.index and "seed" not in table.index
    assert table.loc["dp.all.epsilon", "dp"] == "2.0"
    assert list(compared.settings(opened(parent, "off", "other"))["key"]) == ["seed"]


def test_the_command_compares(parent: Path, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    result = fedsim("compare", str(parent / "off"), str(parent / "dp"), "--html", str(page))
    assert result.exit_code == 0 and "dp.all.epsilon" in result.output, result.output
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text and "dp.all.epsilon" in text and "paired, the same candidates" in text
    said = json.loads(fedsim("compare", str(parent / "off"), str(parent / "dp"), "--json").stdout)
    assert [row["run"] for row in said["runs"]] == ["off", "dp"]
    assert {row["intervals of"] for row in said["runs"]} == {"this one federation"}
    assert result.output.count("this one") >= 4, "one game's interval says of what it is, wherever it is"
    for wrong, why in (
        ([str(parent / "off")], "two runs or more"),
        ([str(parent / "off"), str(parent / "begun")], "has no leakage yet"),
        ([str(parent / "off")] * 2, "the same name"),
    ):
        result = fedsim("compare", *wrong)
        assert result.exit_code == 2 and why in result.output


def test_results_are_exported(parent: Path, tmp_path: Path) -> None:
    result = fedsim("export", str(parent / "dp"), "--csv", "--latex", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    written = pd.read_csv(tmp_path / "leakage.csv")
    leakage = pd.read_parquet(parent / "dp" / "leakage.parquet")
    assert len(written) == len(leakage) and np.allclose(written["value"], leakage["value"], equal_nan=True)
    tex = (tmp_path / "attacks.tex").read_text(encoding="utf-8")
    assert "95\\,\\% intervals, for this one federation." in tex and "\\toprule" in tex
    assert "balanced\\_accuracy" in tex
    auc = leakage.query("metric == 'auc' and party == 'all' and game == 'all'")
    assert all(f"{value:.3f}" in tex for value in auc["value"])
    assert set(written["intervals_of"]) == {"this one federation"}
    assert "$\\infty$" in export._booktabs(export.parties(RunDirectory.open(parent / "off")), "")
    assert fedsim("export", str(parent / "dp")).exit_code == 2


@pytest.mark.parametrize("command", ["attacks list", "data list"])
def test_lists_are_also_data(command: str) -> None:
    rows = json.loads(fedsim(*command.split(), "--json").stdout)
    assert rows and all(row["name"] for row in rows)


def test_tables_are_also_data(parent: Path) -> None:
    checked = json.loads(fedsim("scenario", "check", str(parent / "off" / "scenario.toml"), "--json").stdout)
    assert checked["parties"] == {f"hospital-{k}": 20 for k in (1, 2, 3)}
    assert {column["name"] for column in checked["columns"]} == {"age", "pressure", "ward"}
    counts = json.loads(fedsim("count", str(parent / "off"), "--json").stdout)
    assert {"metric", "value", "low", "high"} <= set(counts[0])
