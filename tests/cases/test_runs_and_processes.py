"""Runs that mixed, hung, died or began in vain: each of `inputs/b-…`, or its command, gives what is right."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from support.cases import INPUTS, enter, fedsim, finished, refused, start

from fedsim.core import files
from fedsim.core.run_directory import RunDirectory


@pytest.fixture(autouse=True)
def _in_the_case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for marker in request.node.iter_markers("case"):
        monkeypatch.chdir(enter(marker.args[0], tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


def statuses(run: RunDirectory) -> dict[str, set[str]]:
    rounds = run.table("rounds").query("round > 0 and party != 'all'")
    return {str(party): set(rows["status"]) for party, rows in rounds.groupby("party")}


@pytest.mark.case("b-01-cache-deletes-user-files")
def test_b_01_cache_deletes_user_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Path("models/my-llama.safetensors")
    model.parent.mkdir()
    with model.open("wb") as file:
        file.truncate(9 << 30)  # more than the cache may hold; no bytes on disk
    os.utime(model, (978_307_200, 978_307_200))
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "models"))
    finished("small.toml", "--set", 'adversary.attacks=["lira"]', "--set", "adversary.shadows=16")
    assert model.stat().st_size == 9 << 30


def stopped_by(failure: OSError | SafetensorError, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a run on a disk that is full when the first file called ``at`` is written; go on with it."""
    write = files.write_atomically

    def on_a_full_disk(path: Path, fill, private=False) -> None:  # type: ignore[no-untyped-def]
        def fail(temporary: Path) -> None:
            raise failure

        write(path, fail if path.name == at else fill, private)

    with monkeypatch.context() as full:
        full.setattr(files, "write_atomically", on_a_full_disk)
        refused(fedsim("run", "small.toml", "--out", "r"), "the disk is full", "--resume")
    resumed = fedsim("run", "r", "--resume")
    assert resumed.exit_code == 0 and "Report: " in resumed.stdout, resumed.output
    assert fedsim("show", "r").exit_code == 0


@pytest.mark.case("b-02-unprepared-resume")
def test_b_02_unprepared_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_by(OSError(errno.ENOSPC, "No space left on device"), "truth.parquet", monkeypatch)


@pytest.mark.case("b-03-safetensors-enospc")
def test_b_03_safetensors_enospc(monkeypatch: pytest.MonkeyPatch) -> None:
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    stopped_by(error, "records.safetensors", monkeypatch)


@pytest.mark.slow
@pytest.mark.case("b-04-worker-death")
@pytest.mark.parametrize(("fault", "workers"), [("exit", 2), ("sysexit", 1)])
def test_b_04_worker_death(fault: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT", fault)
    run = finished("f60.toml", "--workers", workers, "--set", "federation.rounds=1")
    assert sorted(statuses(run).values(), key=str) == [{"failed"}, {"ok"}, {"ok"}]


@pytest.mark.slow
@pytest.mark.case("b-05-short-timeout-workers")
def test_b_05_short_timeout_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start-up of a process takes seconds, which are not the client's; nor is what a busy machine takes."""
    monkeypatch.setenv("FAULT", "none")
    run = finished("f.toml", "--workers", 2, "--set", "federation.rounds=1")
    assert list(statuses(run).values()) == [{"ok"}] * 3


@pytest.mark.case("b-06-rich-markup-path")
def test_b_06_rich_markup_path(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = enter("b-06-rich-markup-path", Path("x[") / "bold]y")  # a slash in a name is a folder below
    monkeypatch.chdir(folder)
    result = fedsim("run", "small.toml")
    assert result.exit_code == 0 and "x[/bold]y/runs/small/report.html" in result.stdout
    assert Path("runs/small/report.html").exists()


@pytest.mark.case("b-08-party-column-all-empty")
def test_b_08_party_column_all_empty() -> None:
    refused(fedsim("run", "party-missing.toml"), "data.party = 'site'", "no record has a value")


@pytest.mark.case("b-10-path-tracebacks")
@pytest.mark.parametrize("scenario", ["fdirp2", "floop", "pp4"])
def test_b_10_path_tracebacks(scenario: str) -> None:
    Path("loop.csv").symlink_to("loop.csv")
    Path("dirp2.parquet").mkdir()
    words = {"fdirp2": "dirp2.parquet", "floop": "loop.csv", "pp4": "data.path"}
    refused(fedsim("run", f"{scenario}.toml"), words[scenario])


@pytest.mark.case("b-11-unbounded-rounds-range")
def test_b_11_unbounded_rounds_range() -> None:
    finished("small.toml")
    refused(fedsim("attack", "run", "--rounds", "1-99999999999"), "round", "99999999999")


@pytest.mark.case("b-12-no-attacks")
def test_b_12_no_attacks() -> None:
    for command in (["run"], ["scenario", "check"]):
        refused(fedsim(*command, "small.toml", "--set", "adversary.attacks=[]"), "adversary.attacks")
    assert not Path("runs").exists()


def processes_of(word: str) -> list[str]:
    """Return the processes that have this word in their environment."""
    return [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/environ")
        if word.encode() in _content(path) and _state(path.parent) != "Z"
    ]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended, or is another user's
        return b""


def _state(process: Path) -> str:
    return _content(process / "stat").rpartition(b")")[2].split()[:1][0].decode()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked for below /proc")
@pytest.mark.case("b-13-orphans")
def test_b_13_orphans(tmp_path: Path) -> None:
    """After SIGKILL it is the same: `tests/core/test_parallel.py`."""
    word = f"FEDSIM_TEST={tmp_path}"
    process = start("run", "small.toml", "--workers", 2, "--set", "federation.rounds=300",
                    FEDSIM_TEST=str(tmp_path))  # fmt: skip
    model = Path("runs/small/models/game-000/round-001.safetensors")
    _wait(model.exists)
    assert len(processes_of(word)) >= 3
    process.send_signal(signal.SIGTERM)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "--resume" in stderr.splitlines()[-1]
    _wait(lambda: not processes_of(word))


def _wait(until, seconds: float = 120) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.2)


@pytest.mark.case("b-14-resume-edited")
@pytest.mark.parametrize("what", ["seed", "lr", "model"])
def test_b_14_resume_edited(what: str) -> None:
    Path("net.py").write_text("from torch import nn\ndef make(s, k): return nn.Linear(s[0], k)\n")
    run = prepared("small.toml", ["model.name=net:make"] if what == "model" else [])
    if what == "model":
        Path("net.py").write_text("from torch import nn\ndef make(s, k): return nn.Linear(s[0], k, False)\n")
        refused(fedsim("run", run.path, "--resume"), "net.py has changed")
        return
    path = run.path / "scenario.toml"
    text = path.read_text()
    key = re.compile(rf"^{what} = \S+$", re.MULTILINE)
    assert key.search(text)
    path.write_text(key.sub({"seed": "seed = 77", "lr": "lr = 0.01"}[what], text, count=1))
    refused(fedsim("run", run.path, "--resume"), "scenario.toml has changed")


def prepared(scenario: str, overrides: list[str]) -> RunDirectory:
    """A run that was killed before its first round."""
    from fedsim.core.scenario.reading import load
    from fedsim.runs import prepare

    return prepare.prepare(prepare.check(load(Path(scenario), overrides), None), Path("run"))


@pytest.mark.case("b-15-min-parties-device")
@pytest.mark.parametrize("value", ['device="banana"', "federation.min_parties=100"])
def test_b_15_min_parties_device(value: str) -> None:
    for command in (["scenario", "check"], ["run"]):
        refused(fedsim(*command, "small.toml", "--set", value), value.partition("=")[0])
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.case("b-16-hung-client-deadlock")
def test_b_16_hung_client_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT", "hang")
    run = finished("f45.toml", "--workers", 2, "--set", "federation.timeout=8")
    assert sorted(statuses(run).values(), key=str) == [{"no reply"}, {"ok"}, {"ok"}]
    assert run.manifest["complete"] and run.has("leakage")


@pytest.mark.case("b-17-public-is-private")
def test_b_17_public_is_private() -> None:
    refused(fedsim("run", "p.toml"), "data.public", "is the private table itself")


@pytest.mark.case("b-20-observations-missing")
@pytest.mark.parametrize("change", ["removed", "changed"])
def test_b_20_observations_missing(change: str) -> None:
    run = finished("small.toml")
    path = run.path / "observations" / "game-000" / "reply-002.safetensors"
    content = path.read_bytes()
    path.unlink()
    if change == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = run.table("scores")
    refused(fedsim("attack", "run"), "reply-002.safetensors", "missing" if change == "removed" else "changed")
    assert run.table("scores").equals(before)


@pytest.mark.slow
@pytest.mark.xdist_group("ray")
@pytest.mark.case("b-21-ray-in-parent-folder")
def test_b_21_ray_in_parent_folder() -> None:
    """The name of Flower's connection, 'fedsim', is that of a folder here."""
    pytest.importorskip("ray")
    enter("b-21-ray-in-parent-folder", Path("fedsim"))
    run = finished("fedsim/small.toml", "--engine", "ray", "--set", "federation.rounds=1")
    assert run.manifest["complete"] and np.isfinite(run.table("rounds")["loss"]).all()


@pytest.mark.case("b-21-ray-in-parent-folder")
def test_b_21_nor_without_flowers_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setenv("PATH", "/nowhere")
    result = fedsim("run", "small.toml", "--engine", "ray", "--out", "run")
    said = [line for line in result.stderr.splitlines() if line.startswith("fedsim: ")]
    assert result.exit_code in (1, 2) and len(said) == 1 and "the command 'f" in said[0], result.output


def test_every_folder_of_inputs_is_tried() -> None:
    here = Path(__file__).parent
    texts = "".join(path.read_text("utf-8") for path in here.glob("test_*.py"))
    asked = {path.name for path in INPUTS.iterdir() if path.is_dir()} - {"faulty"}
    assert [name for name in sorted(asked) if f'case("{name}")' not in texts] == []
