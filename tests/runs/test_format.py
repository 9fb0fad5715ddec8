"""A run folder of another format is refused in one sentence that names both, and listed all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from support.runs import prepared_run

from fedsim.cli.main import main
from fedsim.core import files
from fedsim.core.run_directory import FORMAT, RunDirectory, runs_in
from fedsim.terminal import runs_table


@pytest.fixture
def old(tmp_path: Path) -> RunDirectory:
    run = prepared_run(tmp_path)
    files.write_json(run.path / "manifest.json", {**run.manifest, "format": 1})
    return run


@pytest.mark.parametrize("command", [["show"], ["report"], ["attack"], ["run", "--resume"]])
def test_every_command_refuses_it_in_one_sentence(old: RunDirectory, command: list[str]) -> None:
    done = CliRunner().invoke(main, [*command, str(old.path)])
    assert done.exit_code == 2 and done.stdout == ""
    [line] = done.stderr.strip().splitlines()
    assert f"format = 1; this fedsim reads format {FORMAT}" in line and "manifest.json" in line


def test_resuming_by_the_scenario_names_it_too(
    old: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    old.path.rename(tmp_path / "runs" / "tiny")
    scenario = tmp_path / "runs" / "tiny" / "scenario.toml"
    done = CliRunner().invoke(main, ["run", str(scenario), "--resume"])
    assert done.exit_code == 2 and f"format = 1; this fedsim reads format {FORMAT}" in done.stderr


def test_the_list_of_runs_shows_it_beside_the_others(old: RunDirectory, tmp_path: Path) -> None:
    prepared_run(tmp_path, out="new")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    console = Console(width=150, record=True)
    console.print(runs_table.runs(runs_table.listed(runs_in(tmp_path))))
    text = console.export_text()
    assert f"format 1; this fedsim reads {FORMAT}" in text
    assert "0 of 1 games" in text and "unreadable" in text
