from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import tomli_w
from click.testing import CliRunner, Result
from support.runs import document, final_sha, finished_run, write_table

from attacks.shadows import simulate
from fedsim import __version__
from fedsim.cli.main import COMMANDS, main
from fedsim.core.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def fedsim(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def write_scenario(folder: Path, **sections: object) -> str:
    path = folder / "tiny.toml"
    path.write_text(tomli_w.dumps(document(folder, **sections)))
    return str(path)


def test_run_show_attack_runs(tmp_path: Path) -> None:
    result = fedsim("run", write_scenario(tmp_path))
    assert result.exit_code == 0, result.output
    for word in ("round 3/3", "hospital-2", "Strongest attacks", "Rough estimate", "Run folder"):
        assert word in result.output
    run = RunDirectory.open(tmp_path / "runs" / "tiny")
    assert run.manifest["complete"]
    before = run.table("scores")
    shown = fedsim("show", "runs/tiny")
    assert shown.exit_code == 0 and "The other" in shown.output
    assert "AUC per attack and victim party" in fedsim("show", "runs/tiny", "--all").output
    assert fedsim("attack", "runs/tiny", "--attacks", "loss").exit_code == 0
    assert run.table("scores").equals(before), "the same attack offline gives the same scores"
    listed = fedsim("runs")
    assert listed.exit_code == 0 and "complete" in listed.output
    again = fedsim("run", "runs/tiny")  # an earlier run's scenario repeats the run
    assert again.exit_code == 0
    assert final_sha(RunDirectory.open(tmp_path / "runs" / "tiny-2")) == final_sha(run)


def test_shadows_take_several_cores_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, taken = simulate.in_threads, []
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(
        simulate, "in_threads", lambda *how, **more: taken.append(how[2]) or threads(*how, **more)
    )
    path = write_scenario(tmp_path, adversary={"attacks": ["lira"], "shadows": 16})
    scores = []
    for cache, asked in (("a", ()), ("b", ("--workers", "1"))):
        monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / cache))
        assert fedsim("run", path, "--out", cache, *asked).exit_code == 0
        scores.append(RunDirectory.open(tmp_path / cache).table("scores"))
    assert taken == [3] and scores[0].equals(scores[1])
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "c"))
    assert fedsim("attack", "b").exit_code == 0
    assert taken == [3, 3] and RunDirectory.open(tmp_path / "b").table("scores").equals(scores[0])


def test_a_quick_run_simulates_nothing(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, adversary={"attacks": ["lira", "round-decoding", "loss"]})
    result = fedsim("run", path, "--quick", "--json", "--out", "several")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert {row["attack"] for row in shown["leakage"]} == {"loss"} and shown["verdict"]["words"]
    assert RunDirectory.open(tmp_path / "several").scenario.games == 5, "where that costs seconds"
    assert fedsim("run", path, "--quick", "--set", "games=1", "--out", "one").exit_code == 0
    assert RunDirectory.open(tmp_path / "one").scenario.games == 1
    assert_refused(fedsim("run", path, "--quick", "--set", 'adversary.attacks=["lira"]'), "--quick")


def test_quiet_says_results_alone_and_verbose_every_round(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, federation={"rounds": 20}, adversary={"attacks": ["loss"]})
    quiet, verbose = fedsim("run", path, "-q"), fedsim("run", path, "--verbose")
    assert quiet.stderr == "" and "Report: " in quiet.stdout
    assert verbose.stderr.count("round ") == 21
    assert fedsim("run", path).stderr.count("round ") == 11, "verbosity is of one call"
    assert_refused(fedsim("show", "nowhere", "--quiet"), "nowhere is not a run")


def test_stopped_attacks_leave_the_tables_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(tmp_path, adversary={"attacks": ["loss", "gap"]})
    before = {path.name: path.read_bytes() for path in run.path.glob("*.parquet")}

    def stop(*arguments: object) -> None:
        run.write_table("scores", run.table("scores").assign(score=0.0))
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.runs.attack._attack_games", stop)
    result = fedsim("attack", str(run.path))
    assert result.exit_code == 130 and "as they were before" in result.output
    assert {path.name: path.read_bytes() for path in run.path.glob("*.parquet")} == before
    assert fedsim("show", str(run.path)).exit_code == 0


def test_options_reach_the_scenario(tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    result = fedsim("run", path, "--dp", "all=8", "--dp", "hospital-2=3", "--set", "federation.rounds=2")
    assert result.exit_code == 0, result.output
    rounds = RunDirectory.open(tmp_path / "runs" / "tiny").table("rounds")
    spent = rounds[rounds["round"] == 2].set_index("party")["epsilon"]
    assert 7.9 < spent["hospital-1"] <= 8 and 2.95 < spent["hospital-2"] <= 3
    assert "ε = 3" in result.output and "δ = 1e-05" in result.output


def test_a_data_set_as_json_says_what_is_printed() -> None:
    shown = json.loads(fedsim("data", "show", "heart-disease", "--json").stdout)
    printed = fedsim("data", "show", "heart-disease").output
    assert shown["title"] in printed and shown["licence"] in printed
    assert {column["name"] for column in shown["columns"]} >= {"age", "thal"}


def test_scenario_check_and_schema(tmp_path: Path) -> None:
    result = fedsim("scenario", "check", write_scenario(tmp_path))
    assert result.exit_code == 0 and "3 parties: hospital-1 (20)" in result.output
    schema = json.loads(fedsim("scenario", "schema").output)
    assert "federation" in schema["properties"]


def test_data_commands() -> None:
    listed = fedsim("data", "list")
    assert listed.exit_code == 0 and "heart-disease" in listed.output
    shown = fedsim("data", "show", "diabetes-progression")
    assert shown.exit_code == 0 and "bmi" in shown.output
    assert "nothing to fetch" in fedsim("data", "fetch", "digits").output


def all_commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group of the command line, by the words that call it."""
    yield path
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from all_commands(command, (*path, name))
        else:
            yield (*path, name)


def test_every_command_has_help_with_an_example() -> None:
    commands = list(all_commands())
    assert len(commands) == len(set(commands)) > len(COMMANDS)
    for command in commands:
        result = fedsim(*command, "--help")
        assert result.exit_code == 0 and "Example" in result.output, command
        assert f"  fedsim {' '.join(command)}".rstrip() in result.output, command


def test_an_unknown_command_is_answered_with_the_nearest() -> None:
    for wrong, near in ((["attcks"], "attacks"), (["atacks", "list"], "attacks"), (["sho", "x"], "show")):
        result = fedsim(*wrong)
        assert_refused(result, f"'{wrong[0]}' is no command of fedsim; did you mean '{near}'?")


@pytest.mark.parametrize("module", ["fedsim", "fedsim.cli", "fedsim.cli.main"])
def test_it_is_a_module_too(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert done.stdout == f"fedsim, version {__version__}\n" and done.stderr == ""


# --------------------------------------------------------------- wrong inputs
def own_data(folder: Path, **changes: object) -> str:
    data = {**document(folder)["data"], **changes}  # type: ignore[dict-item]
    return write_scenario(folder, data=data)


def csv(folder: Path, text: str, **data: object) -> str:
    (folder / "own.csv").write_text(text)
    return write_scenario(folder, data={"path": "own.csv", "label": "ill", **data})


ROWS = "age,ill\n" + "".join(f"{20 + k},{'yes' if k % 2 else 'no'}\n" for k in range(40))

WRONG = {
    "unknown key": (lambda f: write_scenario(f, trainig={}), "'trainig'; did you mean 'training'?"),
    "wrong type": (lambda f: write_scenario(f, games="two"), "games = 'two'"),
    "no such file": (lambda f: "absent.toml", "cannot read absent.toml: there is no such file"),
    "label column missing": (lambda f: own_data(f, label="sick"), "data.label = 'sick'"),
    "party column missing": (lambda f: own_data(f, party="clinic"), "data.party = 'clinic'"),
    "data file missing": (lambda f: own_data(f, path="gone.csv"), "gone.csv: there is no such file"),
    "3 records for 5 parties": (
        lambda f: csv(f, "age,ill\n30,yes\n40,no\n50,yes\n", bounds={"age": [0, 100]}),
        "3 records",
    ),
    "all one class": (lambda f: csv(f, ROWS.replace("no", "yes")), "a label needs at least two classes"),
    "empty file": (lambda f: csv(f, ""), "own.csv"),
    "NaN in a bound": (
        lambda f: own_data(f, bounds={"age": [0, float("nan")]}),
        "the bounds of 'age' are [0.0, nan]",
    ),
    "bound of no column": (lambda f: own_data(f, bounds={"agee": [0, 100]}), "'agee'"),
    "ε = 0": (lambda f: write_scenario(f, dp={"all": {"epsilon": 0}}), "dp.all.epsilon = 0"),
    "δ ≥ 1": (lambda f: write_scenario(f, dp={"all": {"epsilon": 1, "delta": 1}}), "dp.all.delta = 1"),
    "DP of no party": (
        lambda f: write_scenario(f, dp={"hospital-9": {"epsilon": 1}}),
        "dp.hospital-9: no such party; did you mean",
    ),
    "unknown attack": (
        lambda f: write_scenario(f, adversary={"attacks": ["los"]}),
        "unknown attack 'los'; did you mean 'loss'?",
    ),
    "unknown adversary": (
        lambda f: write_scenario(f, adversary={"party": "hospital-7"}),
        "adversary.party = 'hospital-7': no such party",
    ),
    "unknown data set": (
        lambda f: write_scenario(f, data={"name": "hart-disease"}),
        "did you mean 'heart-disease'?",
    ),
    "unknown model module": (
        lambda f: write_scenario(f, model={"name": "no_such_module:net"}),
        "model.name = 'no_such_module:net'",
    ),
    "CNN on a table": (lambda f: write_scenario(f, model={"name": "cnn"}), "model.name = 'cnn'"),
    "natural parties without a party column": (
        lambda f: write_scenario(f, parties={"partition": "natural"}),
        "partition",
    ),
    "strategy option": (
        lambda f: write_scenario(f, federation={"strategy": "fedprox", "options": {"mu": 1}}),
        "federation.options.mu: 'fedprox' has no such option",
    ),
    "budget below one round": (
        lambda f: write_scenario(f, dp={"all": {"noise_multiplier": 1.0, "budget": 0.1}}),
        "dp.hospital-1.budget = 0.1: one round already spends ε = ",
    ),
    "q-FedAvg under DP": (
        lambda f: write_scenario(
            f, federation={"strategy": "qfedavg"}, dp={"all": {"epsilon": 1}}
        ),
        "keeps to itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_2(tmp_path: Path, name: str) -> None:
    make, expected = WRONG[name]
    result = fedsim("run", make(tmp_path))
    assert_refused(result, expected)
    assert not (tmp_path / "runs").exists(), "nothing was started"


def assert_refused(result: Result, expected: str) -> None:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.output.splitlines() if line.strip()]
    said = ("This scenario names code", "Reading the records")  # progress, where that takes two seconds
    lines = [line for line in lines if not line.startswith(said)]
    assert len(lines) == 1 and lines[0].startswith("fedsim: "), result.output
    assert expected in lines[0]
    assert "Traceback" not in result.output


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    assert_refused(fedsim("run", path, "--engine", "rai"), "did you mean 'ray'?")
    assert_refused(fedsim("run", path, "--set", "training.lr"), "expected key=value")
    assert_refused(fedsim("run", path, "--dp", "8"), "expected party=ε")
    assert not (tmp_path / "runs").exists()


def test_wrong_runs_are_refused(tmp_path: Path) -> None:
    assert_refused(fedsim("show", "nowhere"), "nowhere is not a run of fedsim: there is no such folder")
    assert_refused(fedsim("runs"), "runs is not a folder")
    (tmp_path / "other").mkdir()
    assert_refused(fedsim("show", "other"), "it has no manifest.json")
    (tmp_path / "other" / "manifest.json").write_text('{"format": 99}')
    assert_refused(fedsim("show", "other"), "format = 99; this fedsim reads format 3")
    (tmp_path / "other" / "manifest.json").write_text("{")
    assert_refused(fedsim("show", "other"), "other/manifest.json: Expecting property name")


def test_corrupt_results_are_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    observed = run.observations(0) / "round-002.safetensors"
    observed.write_bytes(observed.read_bytes()[:50])
    assert_refused(fedsim("attack", str(run.path)), "round-002.safetensors")
    (run.path / "rounds.parquet").write_bytes(b"PAR1")
    assert_refused(fedsim("show", str(run.path)), "rounds.parquet")
    shutil.rmtree(run.observations(0))
    assert_refused(fedsim("attack", str(run.path)), "is missing")


def test_taken_and_unwritable_folders_are_refused(tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("keep me")
    assert_refused(fedsim("run", path, "--out", "taken"), "taken is not empty")
    assert (tmp_path / "taken" / "letter.txt").read_text() == "keep me"
    assert_refused(fedsim("run", path, "--out", f"{path}/below"), "cannot write")
    assert_refused(fedsim("run", path, "--out", "/proc/fedsim"), "cannot write /proc/fedsim")


def test_resume_without_a_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    result = fedsim("run", write_scenario(tmp_path), "--resume")
    assert result.exit_code != 0 and "no unfinished run of 'tiny'" in result.output


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, federation={"rounds": 60})
    command = [sys.executable, "-m", "fedsim.cli", "run", path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folder = tmp_path / "runs" / "tiny"
    deadline = time.monotonic() + 60
    while not (folder / "checkpoints").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    asked = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert time.monotonic() - asked < 5
    assert process.returncode == 130 and "--resume" in output and "Traceback" not in output
    assert not RunDirectory.open(folder).manifest["complete"]
    result = fedsim("run", path, "--resume", "--workers", "2")
    assert result.exit_code == 0, result.output
    run = RunDirectory.open(folder)
    assert run.last_round(0) == 60 and run.manifest["complete"]


def test_a_table_nobody_has_seen(tmp_path: Path) -> None:
    """Categories, missing values, its own party column, and a scenario of ten lines."""
    table = write_table(tmp_path / "x.csv", 200)
    lines = table.read_text().splitlines()
    clinics = ["North", "South", "Ost & West", ""]
    lines = [lines[0] + ",clinic,score"] + [
        f"{line},{clinics[k % 3]},{'n/a' if k % 7 == 0 else k}" for k, line in enumerate(lines[1:])
    ]
    lines[5] = lines[5].replace(",A,", ",,").replace(",B,", ",,").replace(",C,", ",?,")
    table.write_text("\n".join(lines))
    (tmp_path / "own.toml").write_text(
        'name = "own"\n[data]\npath = "x.csv"\nlabel = "ill"\nparty = "clinic"\n[federation]\nrounds = 2\n'
    )
    result = fedsim("run", "own.toml")
    assert result.exit_code == 0, result.output
    assert "set aside as public" in result.output and "declare [data.bounds]" in " ".join(
        result.output.split()
    )
    assert len(RunDirectory.open(tmp_path / "runs" / "own").manifest["parties"]) == 3


def test_a_cluster_is_named_by_hand_and_only_ray_heeds_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere, absent = "127.0.0.1:1", str(tmp_path / "absent")
    refused = f"--ray-address {nowhere}: no Ray cluster answers there"
    for command in ("run", "attack"):
        assert refused in fedsim(command, absent, "--ray-address", nowhere).output
    monkeypatch.setenv("RAY_ADDRESS", nowhere)
    assert refused in fedsim("run", absent, "--engine", "ray").output
    for command in ("run", "attack"):
        result = fedsim(command, absent)
        assert result.exit_code == 2 and "absent" in result.output and nowhere not in result.output


def test_a_store_that_is_none_is_said_before_a_folder_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = write_scenario(tmp_path)
    monkeypatch.setenv("FEDSIM_CACHE", "nope://x")
    result = fedsim("run", scenario, "--out", str(tmp_path / "made"))
    assert result.exit_code == 2 and "FEDSIM_CACHE = nope://x" in result.output
    assert not (tmp_path / "made").exists()
