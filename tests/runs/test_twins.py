"""A run's twins beside it, in processes of their own."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pandas as pd
import pytest
from support.runs import prepared_run

from fedsim.core.errors import FedsimError
from fedsim.core.parallel import Workers
from fedsim.engines.settings import EngineOptions
from fedsim.runs import play, twins

SWITCHES = ["all=8", "all=2"]
LIGHT = {"attacks": ["loss", "confidence"]}


def test_processes_find_what_one_process_finds(tmp_path: Path) -> None:
    found = []
    for workers in (0, 1, 2):
        run = prepared_run(tmp_path, out=f"run-{workers}", adversary=LIGHT)
        made = [twins.prepared(run, switch, None) for switch in SWITCHES]
        with contextlib.ExitStack() as on_exit:
            processes = on_exit.enter_context(Workers(workers)) if workers else None
            wait = on_exit.enter_context(twins.federated(made, processes, "inprocess", 1, EngineOptions()))
            play.federate(run)
            for twin in reversed(made):  # in whatever order they are waited for
                wait(twin)
        assert all(twin.manifest["complete"] for twin in made)
        found.append([twin.table("leakage") for twin in made])
    for alone, *beside in zip(*found, strict=True):
        for table in beside:
            pd.testing.assert_frame_equal(alone, table)


def test_what_a_twin_raises_is_raised_where_it_is_waited_for(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, adversary=LIGHT)
    twin = twins.prepared(run, "all=8", None)
    (twin.path / "scenario.toml").write_text("name = 7")
    with (
        Workers(1) as processes,
        twins.federated([twin], processes, "inprocess", 1, EngineOptions()) as wait,
        pytest.raises(FedsimError, match=r"scenario\.toml"),
    ):
        wait(twin)
