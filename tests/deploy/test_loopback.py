"""A federation between real processes, each with its own folder alone, over TLS on the loopback."""

from __future__ import annotations

import json
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest
from support.deployments import started
from support.runs import scenario

from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.deploy import folders, offline
from fedsim.deploy.folders import Wanted
from fedsim.engines import flower_cli
from fedsim.runs import prepare
from fedsim.runs.integrity import open_results

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flower")]

SECONDS = 150


def run_all(server: Path, nodes: list[Path], code: int) -> str:
    """Run a server with its nodes to its end; return what it printed."""
    with ExitStack() as stack:
        process = stack.enter_context(started("server", server))
        for node in nodes:
            stack.enter_context(started("node", node))
        output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == code, output
    return str(output)


def test_organisations_train_a_model_and_one_of_them_keeps_what_it_is_sent(tmp_path: Path) -> None:
    settings = scenario(
        tmp_path, parties={"count": 2}, federation={"rounds": 2}, dp={"hospital-2": {"epsilon": 8}}
    )
    [port] = flower_cli.free_ports(1)
    wanted = Wanted(port=port, budgets={"hospital-2": 8.5}, malicious="hospital-1", with_records=True)
    written = folders.write(prepare.check(settings, None), tmp_path / "federation", wanted)
    homes = {}
    for name, folder in written.items():  # each on a machine of its own, as far as one machine goes
        (tmp_path / f"home-{name}").mkdir()
        homes[name] = folder.rename(tmp_path / f"home-{name}" / folder.name)

    output = run_all(homes["server"], [homes["hospital-1"], homes["hospital-2"]], 0)
    assert "hospital-2: accuracy" in output and ("ε = 8" in output or "ε = 7.9" in output)

    run = RunDirectory.open(homes["server"] / "run")
    assert run.manifest["complete"] and run.last_round(0) == 2
    rounds = run.table("rounds")
    assert set(rounds["party"]) == {"all", "hospital-1", "hospital-2"}
    with pytest.raises(InputError, match="the server's of a deployment"):
        open_results(run.path)
    ledger = json.loads((homes["hospital-2"] / "ledger.json").read_text())
    assert sum(ledger["steps"]) > 0
    assert not (homes["hospital-2"] / "seen").exists()

    kept = sorted(path.name for path in (homes["hospital-1"] / "seen").glob("round-*"))
    assert kept == [f"round-{t:03d}.safetensors" for t in range(3)]
    candidates = tmp_path / "people.csv"
    table = pd.read_csv(homes["hospital-2"] / "records.csv")
    table.assign(trained=["yes", "no"] * (len(table) // 2)).to_csv(candidates, index=False)
    asked = offline.read_candidates(homes["hospital-1"], candidates, "trained")
    assert asked.truth is not None
    scores, _ = offline.attack(homes["hospital-1"], asked, ["loss", "update-cosine"])
    assert set(scores["attack"]) == {"loss", "update-cosine"} and scores["score"].notna().all()
    judged = offline.judge(scores, asked.truth)
    assert judged["auc"].between(0, 1).all() and (judged["n_members"] == 15).all()


def test_a_node_stops_when_it_is_asked_to_and_leaves_no_process(tmp_path: Path) -> None:
    settings = scenario(tmp_path, federation={"rounds": 1})
    wanted = Wanted(port=flower_cli.free_ports(1)[0], with_records=True)
    folder = folders.write(prepare.check(settings, None), tmp_path / "federation", wanted)["hospital-2"]
    with started("node", folder) as node:
        deadline = time.monotonic() + 60
        while not (folder / "flower.log").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
    assert node.returncode not in (None, -signal.SIGKILL)
    assert not [process for process in Path("/proc").glob("[0-9]*") if _names(process, folder)]


def _names(process: Path, folder: Path) -> bool:
    try:
        return str(folder).encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False
