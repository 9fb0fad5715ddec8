"""What a run's folder holds of persons: its owner's alone, and removed where the owner says so."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from support.cases import fedsim, refused
from support.runs import document, finished_run, prepared_run, write_table

from fedsim.core import imports, trust
from fedsim.core.errors import InputError
from fedsim.core.run_directory import PRIVATE_FOLDERS, RunDirectory
from fedsim.core.scenario.reading import parse
from fedsim.core.trust import TRUST
from fedsim.engines import own_code
from fedsim.runs import play, prepare

QUICK = {"federation": {"rounds": 2}, "adversary": {"attacks": ["loss"]}}
SEEN_BY_ALL = {**QUICK, "adversary": {"attacks": ["loss"], "observers": ["server"]}}


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("given", [False, True], ids=["a new folder", "one that was there"])
def test_private_files_are_their_owners_alone(tmp_path: Path, given: bool) -> None:
    if given:
        (tmp_path / "run").mkdir()
        (tmp_path / "run").chmod(0o755)
    run = finished_run(tmp_path, **SEEN_BY_ALL)
    private = run.private_parts()
    assert len(private) >= 10
    for path in private:
        assert path.stat().st_mode & 0o777 == 0o600, path
    for folder in PRIVATE_FOLDERS:
        assert not (run.path / folder).exists() or (run.path / folder).stat().st_mode & 0o077 == 0
    if not given:
        assert all(path.stat().st_mode & 0o077 == 0 for path in run.path.rglob("*") if path.name != ".lock")


def test_a_pruned_run_keeps_its_results_and_says_what_is_gone(tmp_path: Path) -> None:
    run = finished_run(tmp_path, **QUICK)
    shown, models = fedsim("show", run.path).stdout, sorted((run.path / "models").rglob("*"))
    size = sum(path.stat().st_size for path in run.private_parts())
    asked = fedsim("runs", "prune", run.path)  # nobody answers
    assert asked.exit_code == 1 and f"{size:,} bytes" in asked.stdout and run.private_parts()
    done = fedsim("runs", "prune", run.path, "--yes")
    assert done.exit_code == 0 and f"{size:,} bytes freed" in done.stdout
    assert not run.private_parts() and not any((run.path / name).exists() for name in PRIVATE_FOLDERS)
    assert fedsim("show", run.path).stdout == shown
    assert sorted((run.path / "models").rglob("*")) == models
    assert (run.path / "report.html").exists() and fedsim("runs", run.path.parent).exit_code == 0
    for command in (
        ["report"],
        ["attack"],
        ["count"],
        ["attribute", "--column", "ward"],
        ["reconstruct"],
        ["persons"],
    ):
        refused(
            fedsim(command[0], run.path, *command[1:]), "private records were removed on", "scenario.toml"
        )
    refused(fedsim("run", run.path, "--resume"), "private records were removed on")
    assert "0 bytes freed" in fedsim("runs", "prune", run.path, "--yes").stdout


def test_an_unfinished_run_is_not_pruned(tmp_path: Path) -> None:
    run = prepared_run(tmp_path)
    refused(fedsim("runs", "prune", run.path, "--yes"), "is not finished")
    assert run.private_parts()


def test_a_report_names_no_folder_of_the_disk(tmp_path: Path) -> None:
    run = finished_run(tmp_path, **QUICK)
    assert fedsim("report", run.path).exit_code == 0
    page = (run.path / "report.html").read_text("utf-8")
    assert str(tmp_path) not in page and "patients.csv" in page
    assert str(tmp_path) not in (run.path / "manifest.json").read_text("utf-8")


# ------------------------------------------------------------------ whose code
@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run with a model of the person's own, whose import leaves a trace."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "theirs.py").write_text(
        "import pathlib\nfrom torch import nn\npathlib.Path(__file__).with_name('imported').touch()\n"
        "def make(shape, classes): return nn.Linear(shape[0], classes)\n"
    )
    write_table(folder / "patients.csv")
    scenario = parse(document(folder, model={"name": "theirs:make"}, **QUICK), folder=folder)
    run = prepare.prepare(prepare.check(scenario, None), folder / "run")
    play.federate(run)
    assert (folder / "imported").exists()
    return run


@pytest.fixture
def own(made: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """The same, the module not yet imported in this process."""
    monkeypatch.chdir(made.path.parent)
    monkeypatch.setattr(imports, "REFUSED", {})
    monkeypatch.setenv(TRUST, "")
    forget()
    return made


def imported() -> bool:
    """Whether the module has been imported since it was last asked."""
    trace = Path("imported")
    there = trace.exists()
    trace.unlink(missing_ok=True)
    return there


def test_code_of_one_s_own_run_is_imported_unasked(own: RunDirectory) -> None:
    result = fedsim("attack", own.path)
    assert result.exit_code == 0 and imported(), result.output


@pytest.mark.parametrize("how", ["without a mark", "with a mark of another key", "with another scenario"])
def test_a_run_from_elsewhere_brings_no_code(
    own: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    there = tmp_path / "elsewhere"
    shutil.copytree(own.path, there)
    if how == "without a mark":
        (there / ".made-here").unlink()
    elif how == "with a mark of another key":
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another person"))
    else:
        with (there / "scenario.toml").open("a") as file:
            file.write("# and a word more\n")
    forget()
    for command in (["show", there], ["report", there], ["runs", tmp_path]):
        fedsim(*command)
        assert not imported(), command
    for command in (
        ["attack", there],
        ["run", there, "--resume"],
        ["run", there, "--out", tmp_path / "again"],
    ):
        result = fedsim(*command)
        assert result.exit_code == 2 and not imported(), result.output
        assert "--trust-code" in result.stderr or "has changed" in result.stderr
    if how != "with another scenario":
        assert fedsim("attack", there, "--trust-code").exit_code == 0 and imported()


def test_code_inside_a_run_s_folder_came_with_it(own: RunDirectory, tmp_path: Path) -> None:
    inside = own.scenario.model_copy(
        update={"model": own.scenario.model.model_copy(update={"folder": str(tmp_path / "run")})}
    )
    run = RunDirectory.create(tmp_path / "run", inside)
    assert (run.path / ".made-here").exists()
    with pytest.raises(InputError, match="--trust-code"):
        trust.require(run.path, run.scenario)


def test_where_no_key_can_be_kept_a_new_run_is_trusted_by_its_process_alone(
    own: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    run = RunDirectory.create(tmp_path / "run", own.scenario)
    trust.require(run.path, run.scenario)
    assert os.environ[TRUST] == str(run.path)
    monkeypatch.setenv(TRUST, "")
    with pytest.raises(InputError, match="--trust-code"):
        trust.require(run.path, run.scenario)


def test_an_engine_s_processes_with_another_home_trust_what_this_one_trusts_and_no_more(
    own: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = own_code.environment(own)
    assert variables[TRUST] == str(own.path)
    there = tmp_path / "elsewhere"
    shutil.copytree(own.path, there)
    (there / ".made-here").unlink()
    assert TRUST not in own_code.environment(RunDirectory.open(there))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another home"))
    with pytest.raises(InputError, match="--trust-code"):
        trust.require(own.path, own.scenario)
    monkeypatch.setenv(TRUST, variables[TRUST])
    trust.require(own.path, own.scenario)


def forget() -> None:
    """Have the module imported anew, as another process would."""
    sys.modules.pop("theirs", None)
    imports._origin.pop("theirs", None)
    imported()
