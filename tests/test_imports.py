"""What a command imports, counted in a fresh interpreter: seconds depend on the machine, modules do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import document, finished_run, write_table

from fedsim.core.scenario.reading import save
from fedsim.core.scenario.settings import Scenario

HEAVY = {
    "torch", "flwr", "opacus", "scipy", "sklearn", "dp_accounting", "datasets", "flwr_datasets", "ray",
    "jinja2", "pandas", "numpy", "rich", "pydantic",
}  # fmt: skip
# What a table is made of, and read and shown with.
TABLES = {"pandas", "numpy", "rich", "pydantic"}

PROGRAM = """
import json, sys
sys.argv = ["fedsim", *sys.argv[1:]]
from fedsim.cli.main import main
try:
    main()
except SystemExit as end:
    code = end.code
print("@", json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def imported(*arguments: str) -> set[str]:
    """Which of `HEAVY` a command that succeeds has imported."""
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    code, modules = json.loads(done.stdout.splitlines()[-1].removeprefix("@ "))
    assert not code, done.stderr
    return HEAVY & set(modules)


@pytest.mark.parametrize("command", ["--version", "--help", "run --help", "audit --help", "data --help"])
def test_help_needs_nothing(command: str) -> None:
    assert imported(*command.split()) == set()


def test_the_list_of_commands_imports_none_of_them(run_python: object) -> None:
    program = (
        "import sys; from fedsim.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print('@', sorted(name for name in sys.modules if name.startswith('fedsim.cli.')))"
    )
    assert callable(run_python)
    assert run_python(program).splitlines()[-1] == "@ ['fedsim.cli.main', 'fedsim.cli.streams']"


@pytest.mark.parametrize("command", ["attacks list", "data list", "data show heart-disease"])
def test_lists_need_no_engine(command: str) -> None:
    assert imported(*command.split()) <= TABLES


def test_a_schema_needs_pydantic_alone() -> None:
    assert imported("scenario", "schema") <= {"pydantic", "rich"}


def test_finished_runs_are_shown_without_an_engine(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary={"attacks": ["loss"]})
    assert imported("show", str(run.path)) <= TABLES
    assert imported("runs", str(tmp_path)) <= TABLES


def _saved(folder: Path, **sections: object) -> str:
    save(Scenario.model_validate(document(folder, **sections)), folder / "tiny.toml")
    return str(folder / "tiny.toml")


@pytest.mark.parametrize("model", ["mlp", "logistic"])
def test_a_scenario_is_checked_without_torch_and_flower(tmp_path: Path, model: str) -> None:
    path = _saved(tmp_path, model={"name": model}, defences={"all": {"label_smoothing": 0.1}})
    assert imported("scenario", "check", path) <= TABLES


def test_natural_parties_are_dealt_without_the_partitioners(tmp_path: Path) -> None:
    own = write_table(tmp_path / "x.csv")
    data = {
        "path": str(own),
        "label": "ill",
        "party": "ward",
        "bounds": {"age": [0, 100], "pressure": [80, 180]},
    }
    assert imported("scenario", "check", _saved(tmp_path, data=data, parties={})) <= TABLES


def test_an_embedded_set_needs_scikit_learn_and_nothing_else(tmp_path: Path) -> None:
    path = _saved(tmp_path, data={"name": "digits"}, model={"name": "cnn", "hidden": [4]})
    modules = imported("scenario", "check", path)
    assert "sklearn" in modules, "the records are its"
    assert modules <= TABLES | {"sklearn", "scipy"}


def test_dp_is_checked_with_what_trains_it(tmp_path: Path) -> None:
    """The twin of the tests above: where torch and Opacus are needed, they are there."""
    private = {"all": {"epsilon": 8.0}}
    path = _saved(tmp_path, dp=private, data={"name": "digits"}, model={"name": "cnn", "hidden": [4]})
    assert {"torch", "opacus"} <= imported("scenario", "check", path)
    found = imported("scenario", "check", _saved(tmp_path, dp=private))
    assert "torch" in found and "opacus" not in found, "its accountants alone, without its optimizers"
