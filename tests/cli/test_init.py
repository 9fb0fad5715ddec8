"""`fedsim init`, `doctor`, `completion`: from a messy table to a scenario that checks, and what a machine
lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from fedsim.cli.main import main
from fedsim.core.data import draft
from fedsim.core.scenario.reading import load
from fedsim.terminal import doctor


def fedsim(*arguments: str, given: str = "") -> Result:
    return CliRunner().invoke(main, list(arguments), input=given)


def messy(folder: Path, n: int = 400) -> Path:
    """A table as hospitals export it: semicolons, decimal commas, codes for missing, persons who return."""
    stream = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "PatientID": stream.integers(1, 250, n) + 10_000,
            "Weight (kg)": [f"{x:.1f}".replace(".", ",") for x in stream.normal(80, 15, n)],
            "HbA1c": np.where(stream.random(n) < 0.1, -9, stream.integers(4, 10, n)),
            "Clinic": stream.choice(["North", "South", "St. Mary\n[data]"], n),
            "Readmitted": stream.choice(["yes", "no"], n),
        }
    )
    path = folder / "messy.csv"
    frame.to_csv(path, sep=";", index=False)
    return path


def test_a_messy_table_becomes_a_scenario_that_checks(tmp_path: Path) -> None:
    table = messy(tmp_path)
    result = fedsim("init", str(table))
    assert result.exit_code == 0, result.output
    place = tmp_path / "messy.toml"
    assert result.stdout.strip() == str(place)
    data = load(place).data
    assert (data.label, data.party, data.person) == ("Readmitted", "Clinic", "PatientID")
    text = place.read_text(encoding="utf-8")
    assert '# missing = ["-9"]  # stand apart in HbA1c: codes?' in text
    assert '# "Weight (kg)" = […, …]' in text
    assert set(tomllib.loads(text)) == {"name", "data", "parties"}, "no cell of the table became a section"
    checked = fedsim("scenario", "check", str(place))
    assert checked.exit_code == 0, checked.output
    again = fedsim("init", str(table))
    assert again.exit_code == 2 and "is there already" in again.output


def test_bounds_that_are_shown_are_no_records_own() -> None:
    assert draft._rounded("18.3 to 89.7") == [10, 90]
    assert draft._rounded("-0.013 to 0.027") == pytest.approx([-0.02, 0.03])
    assert draft._rounded("3 to 3") == [3, 3] and draft._rounded("") == []


def test_what_is_given_is_taken_and_checked(tmp_path: Path) -> None:
    table, place = messy(tmp_path), tmp_path / "own.toml"
    given = ["--label", "Clinic", "--party", "none", "--person", "none"]
    assert fedsim("init", str(table), *given, "--out", str(place)).exit_code == 0
    scenario = load(place)
    assert (scenario.data.label, scenario.data.party, scenario.parties.count) == ("Clinic", None, 5)
    wrong = fedsim("init", str(table), "--label", "Readmited", "--out", str(tmp_path / "x.toml"))
    assert wrong.exit_code == 2 and "did you mean 'Readmitted'" in wrong.output
    pd.DataFrame({"a": range(50), "b": range(50)}).to_csv(tmp_path / "none.csv", index=False)
    nothing = fedsim("init", str(tmp_path / "none.csv"))
    assert nothing.exit_code == 2 and "--label" in nothing.output
    assert not (tmp_path / "none.toml").exists()


def test_guesses_go_by_names_and_by_what_columns_hold() -> None:
    n = 200
    frame = pd.DataFrame(
        {
            "outcome": ["a", "b"] * (n // 2),
            "bank": ["x", "y", "z", "w"] * (n // 4),
            "customer": [k // 2 for k in range(n)],
            "customer_id": range(n),
            "site": ["only"] * n,
        }
    ).astype(str)
    assert draft.label(frame).column == "outcome"
    assert draft.party(frame).column == "bank", "'site' holds one value"
    assert draft.person(frame).column == "customer", "a number of its own for each record is no person"
    assert draft.party(frame, ["bank"]).column is None


def test_the_doctor_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    checks = {row["what"]: row for row in json.loads(fedsim("doctor", "--json").stdout)}
    assert checks["Python"]["state"] == "ok" and checks["package attacks"]["state"] == "ok"
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "__init__.py").write_text("")
    real = doctor.importlib.util.find_spec

    def shadowed(name: str) -> object:
        if name != "attacks":
            return real(name)
        where = str(tmp_path / "elsewhere" / "__init__.py")
        return doctor.importlib.util.spec_from_file_location("attacks", where)

    monkeypatch.setattr(doctor.importlib.util, "find_spec", shadowed)
    found = {check.what: check for check in doctor.examine(None)}
    assert found["package attacks"].state == "bad" and "elsewhere" in found["package attacks"].said
    assert found["OMP_NUM_THREADS"].state == "note"
    result = fedsim("doctor")
    assert result.exit_code == 1 and "to be mended: package attacks" in result.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str) -> None:
    script = fedsim("completion", shell)
    assert script.exit_code == 0 and "_FEDSIM_COMPLETE" in script.output
    assert fedsim("completion", "csh").exit_code == 2


def test_completion_answers() -> None:
    program = "from fedsim.cli.main import main; main(prog_name='fedsim')"

    def ask(words: str, place: int) -> list[str]:
        asked = {"_FEDSIM_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(place)}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                              env={**os.environ, **asked})  # fmt: skip
        return [line.partition(",")[2] for line in done.stdout.split()]

    assert ask("fedsim ru", 1) == ["run", "runs"]
    assert ask("fedsim run --tw", 2) == ["--twin"]


def test_no_color_is_heeded(tmp_path: Path) -> None:
    program = "from fedsim.cli.streams import console; import io\nc = console('stdout'); print(c.no_color)"
    for value, expected in (("1", "True"), ("", "False")):
        env = {**os.environ, "NO_COLOR": value}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
        assert done.stdout.strip() == expected
