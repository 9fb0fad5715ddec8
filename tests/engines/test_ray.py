"""Flower's own simulation engine runs the same two apps, unchanged, to the same bits."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from support.runs import final_sha, finished_run, prepared_run, write_table

import fedsim
from fedsim.core.errors import FedsimError, InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import load
from fedsim.engines import flower_cli
from fedsim.engines.settings import EngineOptions
from fedsim.runs import flower_app, integrity, play, prepare

pytest.importorskip("ray", reason="Ray is not installed; `make test` installs it")


def running() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def command_of(pid: int) -> str:
    """How a process was called and with what environment, '' for one that has ended."""
    try:
        parts = [(Path("/proc") / str(pid) / name).read_bytes() for name in ("cmdline", "environ")]
    except OSError:
        return ""
    return b" ".join(parts).decode(errors="replace")


@pytest.mark.slow
@pytest.mark.xdist_group("flower")
def test_ray_gives_the_same_bits_as_the_in_process_engine(tmp_path: Path) -> None:
    settings = {"dp": {"hospital-2": {"noise_multiplier": 1.0}}, "federation": {"rounds": 3, "fraction": 0.7}}
    alone = finished_run(tmp_path, out="a", **settings)
    run = prepared_run(tmp_path, out="b", **settings)
    before = set(running())
    play.federate(run, engine="ray", workers=2)
    # Neither Flower's processes nor Ray's: those of other tests beside this one name other folders.
    left = [pid for pid in set(running()) - before if str(run.path) in command_of(pid)]
    assert left == []
    assert final_sha(run) == final_sha(alone)
    columns = ["round", "party", "status", "epsilon", "loss", "auc"]
    pd.testing.assert_frame_equal(run.table("rounds")[columns], alone.table("rounds")[columns])
    pd.testing.assert_frame_equal(run.table("scores"), alone.table("scores"))


@pytest.mark.slow
@pytest.mark.xdist_group("flower")
def test_a_failed_run_under_ray_is_told_from_a_finished_one(tmp_path: Path) -> None:
    run = prepared_run(tmp_path)
    for folder in run.party_folder(0, 1, "hospital-2").parent.glob("001-*"):
        (folder / "records.safetensors").unlink()
    integrity.note_prepared(run)
    with pytest.raises(FedsimError, match=r"finished:failed.*records\.safetensors"):
        play.federate(run, engine="ray", workers=2)


@pytest.fixture
def cluster() -> Iterator[tuple[str, Path]]:
    """A Ray cluster of its own on this machine: its address, and the folder of its session."""
    [port] = flower_cli.free_ports(1)
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short path, for sockets
        command = ["ray", "start", "--head", "--port", str(port), "--num-cpus", "2", "--block"]
        command += ["--include-dashboard=false", "--disable-usage-stats", "--temp-dir", folder]
        head = subprocess.Popen(
            [flower_cli.tool(command[0]), *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not (Path(folder) / "ray_current_cluster").exists():
                assert head.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
            yield f"127.0.0.1:{port}", Path(folder)
            assert head.poll() is None, "the cluster did not outlive the run"
        finally:
            head.terminate()  # and so all of its processes
            head.wait(timeout=30)


@pytest.mark.slow
@pytest.mark.xdist_group("flower")
def test_a_cluster_that_was_there_runs_the_clients_and_outlives_them(
    tmp_path: Path, cluster: tuple[str, Path]
) -> None:
    address, folder = cluster
    settings = {"parties": {"count": 2}, "federation": {"rounds": 1}}
    alone = finished_run(tmp_path, out="a", **settings)
    run = prepared_run(tmp_path, out="b", **settings)
    own = set(running())
    play.federate(run, engine="ray", options=EngineOptions(ray_address=address))
    assert final_sha(run) == final_sha(alone)
    jobs = {path.name.split("-")[2] for path in (folder / "session_latest" / "logs").glob("worker-*.out")}
    assert jobs - {"ffffffff"}, "no worker of the cluster ever had a job"  # that number: waiting for one
    left = [pid for pid in set(running()) - own if str(run.path) in command_of(pid)]
    assert left == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port", "127.0.0.1:99999"])
def test_an_address_where_nothing_answers_is_refused_before_any_work(address: str) -> None:
    with pytest.raises(InputError, match=f"--ray-address {address}: no Ray cluster answers there"):
        play.check_engine("ray", EngineOptions(ray_address=address))
    with pytest.raises(InputError, match=f"--ray-address {address}: no Ray cluster answers there"):
        play.check_engine("inprocess", EngineOptions(ray_address=address))  # for the shadows
    with pytest.raises(InputError, match="--ray-address is for --engine ray and inprocess"):
        play.check_engine("superlink", EngineOptions(ray_address=address))


def test_what_is_no_address_is_refused_with_the_nearest_that_is() -> None:
    with pytest.raises(InputError, match=r"--ray-address atuo: neither .* did you mean 'auto'"):
        play.check_engine("ray", EngineOptions(ray_address="atuo"))


def test_the_folder_is_a_flower_app() -> None:
    folder = Path(fedsim.__file__).parents[1]
    app = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["components"] == {
        "serverapp": "fedsim.runs.flower_app:app",
        "clientapp": "clients.client_app:app",
    }
    assert all(isinstance(value, str | int | float | bool) for value in app["config"].values())


@pytest.mark.slow
@pytest.mark.xdist_group("flower")
def test_flwr_run_with_no_run_named_runs_the_default_scenario_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    changes = ["federation.rounds=2", "adversary.attacks=['loss']"]
    with (
        flower_cli.private_home(tmp_path / "flower.log", {}) as home,
        flower_cli.superlink(home, ["--insecure", "--simulation"]),
    ):
        flower_cli.run_app(
            home,
            Path(fedsim.__file__).parents[1],
            f"set={json.dumps('; '.join(changes))}",
            "num-supernodes=3",
        )
    [made] = (tmp_path / "fedsim" / "flower").iterdir()
    run = RunDirectory.open(made)
    assert run.manifest["complete"] and list(run.manifest["parties"]) == [f"hospital-{k}" for k in (1, 2, 3)]
    hospitals = Path(fedsim.__file__).parents[1] / "experiments" / "hospitals.toml"
    alone = prepare.prepare(
        prepare.check(load(hospitals, [*changes, "parties.count=3"]), None), tmp_path / "run"
    )
    play.federate(alone)
    assert final_sha(run) == final_sha(alone)


NATURAL = """
[data]
path = "patients.csv"
label = "ill"
party = "ward"
bounds = {age = [0, 100], pressure = [80, 180]}
categories = {ill = ["no", "yes"]}
"""


def test_there_is_a_party_for_each_node_or_a_sentence_says_how_many_are_needed(tmp_path: Path) -> None:
    hospitals = Path(fedsim.__file__).parents[1] / "experiments" / "hospitals.toml"
    assert len(flower_app.for_nodes(hospitals, [], 2).rows) == 2
    write_table(tmp_path / "patients.csv")
    natural = tmp_path / "natural.toml"
    natural.write_text(NATURAL)
    assert len(flower_app.for_nodes(natural, [], 3).rows) == 3
    with pytest.raises(InputError, match=r"has 3 parties, and there are 2 nodes; .*num-supernodes=3"):
        flower_app.for_nodes(natural, [], 2)
    with pytest.raises(InputError, match="games = 2"):
        flower_app.for_nodes(hospitals, ["games=2"], 5)


def test_a_scenario_that_does_not_come_along_is_named_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"'hospital\.toml'.*did you mean 'hospitals\.toml'"):
        flower_app._scenario_path("hospital.toml")
