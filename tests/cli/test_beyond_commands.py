"""The commands that ask a run for more than membership."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner
from support.runs import finished_run

from fedsim.cli.main import main


def test_the_commands_print_tables_and_say_what_is_wrong(tmp_path: Path) -> None:
    run = finished_run(tmp_path, n=120, adversary={"attacks": ["loss"]})
    shell = CliRunner()
    done = shell.invoke(main, ["attribute", str(run.path), "--column", "ward"])
    assert done.exit_code == 0 and "update-regression" in done.output
    chosen = ["--batch", "1", "--steps", "1", "--protection", "none", "--repeats", "2"]
    done = shell.invoke(main, ["reconstruct", str(run.path), *chosen])
    assert done.exit_code == 0 and "analytic" in done.output
    for command in ("invert", "count"):
        done = shell.invoke(main, [command, str(run.path)])
        assert done.exit_code == 0, done.output
    done = shell.invoke(main, ["reconstruct", str(run.path), "--protection", "clip"])
    assert done.exit_code == 2 and "did you mean 'clipped'" in done.output


def test_no_cell_is_cut_off_at_eighty_columns(tmp_path: Path) -> None:
    run = finished_run(tmp_path, n=120, adversary={"attacks": ["loss"]})
    shell = CliRunner(env={"COLUMNS": "80"})
    for command in (
        ["count", str(run.path), "--column", "ward"],
        ["attribute", str(run.path), "--column", "ward"],
    ):
        done = shell.invoke(main, command)
        table = done.stdout
        assert done.exit_code == 0 and "…" not in table and max(map(len, table.splitlines())) <= 80
