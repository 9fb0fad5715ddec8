"""Flower's deployment engine runs the same two apps between real processes, to the same bits."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from support.runs import final_sha, finished_run, prepared_run
from support.waiting import eventually

from fedsim.core.errors import FedsimError
from fedsim.engines import flower_cli
from fedsim.runs import play

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flower")]


def of_home(folder: Path) -> list[int]:
    """Processes whose Flower home lies below ``folder``."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"FLWR_HOME={folder}".encode() in (process / "environ").read_bytes():
                pids.append(int(process.name))
        except OSError:
            continue
    return [pid for pid in pids if pid != os.getpid()]


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which Flower's private homes are made."""
    folder = tmp_path / "homes"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_superlink_gives_the_same_bits_as_the_in_process_engine_and_leaves_nothing(
    tmp_path: Path, homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"dp": {"hospital-2": {"noise_multiplier": 1.0}}, "federation": {"rounds": 2, "fraction": 0.7}}
    alone = finished_run(tmp_path, out="a", **settings)
    run = prepared_run(tmp_path, out="b", **settings)
    modes: dict[str, int] = {}
    run_app = flower_cli.run_app

    def look_at_the_home(home: flower_cli.FlowerHome, *args: object, **kwargs: object) -> None:
        modes.update(
            {path.name: stat.S_IMODE(path.stat().st_mode) for path in [home.path, *home.path.iterdir()]}
        )
        assert of_home(homes)
        run_app(home, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(flower_cli, "run_app", look_at_the_home)
    play.federate(run, engine="superlink")
    assert final_sha(run) == final_sha(alone)
    columns = ["round", "party", "status", "epsilon", "loss", "auc"]
    pd.testing.assert_frame_equal(run.table("rounds")[columns], alone.table("rounds")[columns])
    pd.testing.assert_frame_equal(run.table("scores"), alone.table("scores"))
    private = {"server.key", "node-0", "node-1", "node-2"}
    assert all(modes[name] & 0o077 == 0 for name in private)
    assert not of_home(homes) and not list(homes.glob("fedsim-flower-*"))


def test_a_failed_run_on_superlink_says_why_and_leaves_nothing(tmp_path: Path, homes: Path) -> None:
    run = prepared_run(tmp_path)
    (run.path / "scenario.toml").write_text("name = 3")
    from fedsim.engines import superlink

    with pytest.raises(FedsimError, match=r"did not start: .*name"):
        superlink.run_game(run, 0)
    assert not of_home(homes) and not list(homes.glob("fedsim-flower-*"))


def test_a_run_on_superlink_that_is_killed_leaves_no_process(tmp_path: Path, homes: Path) -> None:
    run = prepared_run(tmp_path, federation={"rounds": 500})
    code = (
        "from pathlib import Path; from fedsim.core.run_directory import RunDirectory; "
        "from fedsim.runs import play; "
        f"play.federate(RunDirectory.open(Path({str(run.path)!r})), engine='superlink')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(homes)})
    try:
        assert eventually(lambda: any((run.path / "models").rglob("*.safetensors")), 180), "a round is over"
        assert of_home(homes)
    finally:
        process.kill()
        process.wait()
    assert eventually(lambda: not of_home(homes), 15), (
        "of itself a ServerApp asks a dead SuperLink for minutes"
    )
