"""Flower's own simulation engine runs the same two apps, unchanged, to the same bits."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pandas as pd
import pytest
from support.runs import final_sha, finished_run, prepared_run

import fedsim
from fedsim.core.errors import FedsimError
from fedsim.engines import flower_cli
from fedsim.runs import integrity, play

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


def test_the_folder_is_a_flower_app() -> None:
    folder = flower_cli.app_folder()
    assert folder == Path(fedsim.__file__).parents[1]
    app = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["components"] == {
        "serverapp": "fedsim.server.server_app:app",
        "clientapp": "clients.client_app:app",
    }
    assert all(isinstance(value, str | int | float | bool) for value in app["config"].values())
