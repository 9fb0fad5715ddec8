"""A server that is killed goes on where it was, with the same nodes, to the same model."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.deployments import started, written
from support.long import LONG

from fedsim.core.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flower")]

SECONDS = 300
ROUNDS = 3


def rounds_done(run: RunDirectory) -> int:
    checkpoint = run.read_checkpoint(0)
    return -1 if checkpoint is None else checkpoint.round


def trained(homes: dict[str, Path], kill_after: int | None) -> RunDirectory:
    """Run a deployment to its end, its server killed and started again after so many rounds."""
    server, nodes = homes["server"], [home for name, home in homes.items() if name != "server"]
    run = RunDirectory.open(server / "run")
    with ExitStack() as stack:
        for node in nodes:
            stack.enter_context(started("node", node))
        if kill_after is not None:
            with started("server", server) as process:
                deadline = time.monotonic() + SECONDS
                while rounds_done(run) < kill_after and time.monotonic() < deadline:
                    assert process.poll() is None, process.communicate()[0]
                    time.sleep(0.1)
                process.kill()
        with started("server", server) as process:
            output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert ("going on after round" in output) == (kill_after is not None)
    return run


def model_sha(run: RunDirectory) -> str:
    return hashlib.sha256(run.model_path(0, ROUNDS).read_bytes()).hexdigest()


def steps_of(ledger: Path) -> int:
    return int(sum(json.loads(ledger.read_text())["steps"])) if ledger.exists() else 0


@LONG
def test_the_model_is_that_of_a_server_that_was_never_killed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "parties": {"count": 2}, "federation": {"rounds": ROUNDS, "strategy": "fedadam"},
    }  # fmt: skip
    shas, tables = [], []
    for name, kill_after in (("whole", None), ("killed", 1)):
        (tmp_path / name).mkdir()
        run = trained(written(tmp_path / name, settings), kill_after)
        rounds = run.table("rounds")
        tables.append(rounds[["round", "party", "status", "loss", "auc", "update_norm"]])
        shas.append(model_sha(run))
    assert shas[0] == shas[1]
    assert tables[0].equals(tables[1])


def test_what_a_node_has_spent_stays_spent_and_a_round_that_is_asked_for_again_costs_again(
    tmp_path: Path,
) -> None:
    settings: dict[str, Any] = {
        "parties": {"count": 2}, "federation": {"rounds": ROUNDS},
        "dp": {"hospital-2": {"noise_multiplier": 1.0}},
    }  # fmt: skip
    homes = written(tmp_path, settings)
    ledger = homes["hospital-2"] / "ledger.json"
    run = trained(homes, kill_after=1)
    [plan] = [plan for name, plan in run.manifest["dp"].items() if name == "hospital-2"]
    rounds = run.table("rounds").query("party == 'hospital-2' and round > 0")
    assert list(rounds["status"]) == ["ok"] * ROUNDS and rounds["epsilon"].is_monotonic_increasing
    times, rest = divmod(steps_of(ledger), plan["steps_per_round"])
    assert rest == 0 and times in (ROUNDS, ROUNDS + 1)  # the round that the server was killed in, once more
