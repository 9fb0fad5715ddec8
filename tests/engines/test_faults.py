"""A client that hangs, exits or is killed costs its own reply, whatever the workers and the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.long import LONG

from fedsim.core import trust
from fedsim.core.errors import FedsimError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import parse
from fedsim.engines.inprocess import InProcessGrid, answer
from fedsim.runs import integrity, play, prepare

MODEL = """
import os, pathlib, signal, time
import torch
from torch import nn
FAULT = pathlib.Path(__file__).with_name("fault").read_text()
class Net(nn.Linear):
    def forward(self, x):
        if self.training and len(x) and bool((x[:, -1] > 0).any()):
            if FAULT == "exit": os._exit(7)
            if FAULT == "sys.exit": raise SystemExit(5)
            if FAULT == "kill": os.kill(os.getpid(), signal.SIGKILL)
            if FAULT == "interrupt": raise KeyboardInterrupt
            if FAULT == "hang": time.sleep(600)
            if FAULT == "huge": raise RuntimeError("\\x1b[31m" + "x" * 10_000_000)
            if FAULT == "bloat": self.register_buffer("more", torch.zeros(10_000_000))
            if FAULT == "address": raise RuntimeError(f"of {object()}")
        return super().forward(x)
def make(shape, classes):
    return Net(shape[0], classes)
"""


def faulty_run(folder: Path, fault: str, **federation: Any) -> RunDirectory:
    """Three sites, of which s1 alone holds marked records, on which its model does what ``fault`` says."""
    stream, n = np.random.default_rng(0), 20
    site = np.repeat(["s0", "s1", "s2"], n)
    frame = pd.DataFrame({"a": stream.uniform(size=3 * n), "mark": (site == "s1") * 1.0, "site": site})
    frame["y"] = stream.choice(["no", "yes"], 3 * n)
    frame.to_csv(folder / "m.csv", index=False)
    (folder / "faulty.py").write_text(MODEL)
    (folder / "fault").write_text(fault)
    document = {
        "data": {
            "path": "m.csv", "label": "y", "party": "site", "bounds": {"a": [0, 1], "mark": [0, 1]},
            "categories": {"y": ["no", "yes"]},
        },
        "model": {"name": "faulty:make"},
        "federation": {"rounds": 2, **federation},
        "training": {"epochs": 1},
        "adversary": {"attacks": ["loss"]},
    }  # fmt: skip
    return prepare.prepare(prepare.check(parse(document, folder=folder), None), folder / "run")


def statuses(run: RunDirectory) -> dict[str, set[tuple[str, str]]]:
    rounds = run.table("rounds").query("round > 0 and party != 'all'")
    rows = zip(rounds["party"], rounds["status"], rounds["detail"], strict=True)
    found: dict[str, set[tuple[str, str]]] = {}
    for party, status, detail in rows:
        found.setdefault(party, set()).add((status, detail))
    return found


FAULTS = {
    "exit": ("failed", "its process ended with code 7"),
    "sys.exit": ("failed", "SystemExit: 5"),
    "kill": ("failed", "its process ended with code −9 (often too little memory)"),
    "interrupt": ("failed", "KeyboardInterrupt"),
    "huge": ("failed", "RuntimeError: " + "x" * 285 + "…"),
    "address": ("failed", "RuntimeError: of <object object>"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "workers"), [*((fault, 3) for fault in FAULTS), ("exit", 1), ("interrupt", 1)]
)
def test_the_party_fails_alone_and_the_run_ends_well(tmp_path: Path, fault: str, workers: int) -> None:
    run = faulty_run(tmp_path, fault)
    play.federate(run, workers=workers)
    assert run.manifest["complete"] and run.has("leakage")
    assert statuses(run) == {"s0": {("ok", "")}, "s1": {FAULTS[fault]}, "s2": {("ok", "")}}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_hung_client_alone_sends_no_reply(tmp_path: Path, workers: int) -> None:
    run = faulty_run(tmp_path, "hang", timeout=8)
    play.federate(run, workers=workers)
    assert run.manifest["complete"]
    late = {("no reply", "nothing came within federation.timeout")}
    assert statuses(run) == {"s0": {("ok", "")}, "s1": late, "s2": {("ok", "")}}


@pytest.mark.slow
def test_the_number_of_workers_does_not_change_what_is_left(tmp_path: Path) -> None:
    models = []
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        run = faulty_run(folder, "exit")
        play.federate(run, workers=workers)
        models.append(run.model_path(0, 2).read_bytes())
    assert models[0] == models[1]


@pytest.mark.slow
@pytest.mark.xdist_group("flower")
@pytest.mark.parametrize(
    ("engine", "size"), [("inprocess", "40,000,"), pytest.param("superlink", "its bytes", marks=LONG)]
)
def test_a_huge_reply_is_refused(tmp_path: Path, engine: str, size: str) -> None:
    """On a SuperLink before the server has taken all of it, and knows how large it is."""
    run = faulty_run(tmp_path, "bloat", rounds=1)
    play.federate(run, engine=engine, workers=2)
    found = statuses(run)
    [(status, detail)] = found.pop("s1")
    assert status == "invalid" and detail.startswith(size)
    assert "bytes are more than a reply may hold, 1,0" in detail
    assert found == {"s0": {("ok", "")}, "s2": {("ok", "")}}


AT_ONCE = """
import os, signal, time
import torch
from torch import nn
class Net(nn.Linear):
    def forward(self, x):
        fault = round(float(x[:, -1].max()) * 5) if self.training and len(x) else 0
        if fault == 1: raise RuntimeError("disk on fire")
        if fault == 2: raise SystemExit(5)
        if fault == 3: os._exit(7)
        if fault == 4: os.kill(os.getpid(), signal.SIGKILL)
        if fault == 5: time.sleep(600)
        if fault == 6: self.bias.data = torch.full_like(self.bias.data, float("nan"))
        return super().forward(x)
def make(shape, classes):
    return Net(shape[0], classes)
"""


def run_of_all_faults(folder: Path, timeout: float, sites: tuple[int, ...] = tuple(range(8))) -> RunDirectory:
    """Sites s0 to s7; s1 to s6 hold marked records, each mark another fault; s0 and s7 are well."""
    stream, n = np.random.default_rng(0), 12
    site = np.repeat(sites, n)
    mark = np.where(site == 7, 0, site) / 10
    frame = pd.DataFrame({"a": stream.uniform(size=len(site)), "mark": mark})
    frame["y"] = stream.choice(["no", "yes"], len(site))
    frame["site"] = [f"s{number}" for number in site]
    frame.to_csv(folder / "m.csv", index=False)
    (folder / "faulty_at_once.py").write_text(AT_ONCE)
    document = {
        "data": {
            "path": "m.csv", "label": "y", "party": "site", "bounds": {"a": [0, 1], "mark": [-1, 1]},
            "categories": {"y": ["no", "yes"]},
        },
        "model": {"name": "faulty_at_once:make"},
        "federation": {"rounds": 1, "timeout": timeout},
        "training": {"epochs": 1},
        "adversary": {"attacks": ["loss"]},
    }  # fmt: skip
    return prepare.prepare(prepare.check(parse(document, folder=folder), None), folder / "run")


def assert_others_are_unhurt(run: RunDirectory) -> None:
    assert run.manifest["complete"]
    said = {party: next(iter(outcomes)) for party, outcomes in statuses(run).items()}
    expected = {
        "s0": ("ok", ""), "s1": ("failed", "RuntimeError: disk on fire"), "s2": FAULTS["sys.exit"],
        "s3": FAULTS["exit"], "s4": FAULTS["kill"],
        "s5": ("no reply", "nothing came within federation.timeout"),
        "s6": ("invalid", "weight holds NaN or infinity"), "s7": ("ok", ""),
    }  # fmt: skip
    assert said == {party: expected[party] for party in said} and {"s0", "s3", "s5"} <= set(said)
    model, sent = run.read_model(0, 1), run.read_model(0, 0)
    assert all(np.isfinite(array).all() for array in model.values())
    assert any(not np.array_equal(model[name], sent[name]) for name in model)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_each_fault_at_once_costs_one_reply_and_the_model_is_that_of_the_others(
    tmp_path: Path, workers: int
) -> None:
    run = run_of_all_faults(tmp_path, timeout=10)
    play.federate(run, workers=workers)
    assert_others_are_unhurt(run)


@pytest.mark.slow
@pytest.mark.xdist_group("flower")
@pytest.mark.parametrize("engine", ["ray", "superlink"])
def test_on_flowers_engines_it_is_the_same(tmp_path: Path, engine: str) -> None:
    pytest.importorskip("ray")
    run = run_of_all_faults(tmp_path, timeout=10, sites=(0, 3, 5, 6))
    play.federate(run, engine=engine, workers=2)
    assert_others_are_unhurt(run)


ENDLESS = """
import time
import torch
class Endless(torch.nn.Linear):
    def forward(self, x):
        if not self.training and len(x) > 31:  # all candidates together: an attack
            time.sleep(600)
        return super().forward(x)
def make(shape, classes):
    return Endless(shape[0], classes)
"""


@pytest.mark.slow
def test_the_attack_has_a_timeout_of_its_own(tmp_path: Path) -> None:
    run = faulty_run(tmp_path, "none")
    (tmp_path / "faulty.py").write_text(ENDLESS)
    adversary = run.scenario.adversary.model_copy(update={"timeout": 3.0})
    from fedsim.core.scenario.reading import save

    save(run.scenario.model_copy(update={"adversary": adversary}), run.path / "scenario.toml")
    integrity.note_prepared(run)
    trust.mark(run.path, run.scenario)
    with pytest.raises(FedsimError, match=r"brought no scores: no reply within adversary\.timeout"):
        play.federate(RunDirectory.open(run.path))


def test_a_client_in_this_process_that_exits_has_failed(tmp_path: Path) -> None:
    from flwr.app import Message, RecordDict

    from fedsim.engines import flower_internals

    def exits(message: Message, context: Any) -> Message:
        raise SystemExit(5)

    with InProcessGrid(tmp_path, 0, 2, client_app=exits) as grid:
        message = Message(RecordDict(), flower_internals.SERVER_NODE_ID + 1, "train")
        flower_internals.set_message_id(message, "1")
        reply = answer(exits, message, grid._contexts[flower_internals.SERVER_NODE_ID + 1])
    assert reply.error.reason == "SystemExit: 5"
