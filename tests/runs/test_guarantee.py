"""One private record is changed: nothing but the noisy model, and what is named as outside, may change.

Two runs under DP whose tables differ in one record of one party are compared file by file.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.runs import document, write_table

from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import parse
from fedsim.runs import play, prepare

CHANGED_PARTY = "south"

OUTSIDE = {
    "manifest.json": {
        "data_sha256",
        "created",
        "games",
        "world_seconds",
    },  # the owner's own fingerprint; wall times; the model
    "rounds": {"loss", "accuracy", "auc", "brier", "seconds", "update_norm", "update_cosine"},
}
"""Outside the guarantee, or after the noisy model: `docs/guarantee.md` lists them."""


def table(path: Path, row: int | None = None, **cells: object) -> Path:
    """Write patients of three clinics; the cells of one row may be others."""
    frame = pd.read_csv(write_table(path, 90))
    frame["clinic"] = np.array(["north", "south", "west"])[np.arange(90) % 3]
    frame = frame.astype(object)
    for column, value in cells.items():
        frame.loc[row, column] = value
    frame.to_csv(path, index=False)
    return path


def private_run(folder: Path, row: int | None = None, **cells: object) -> RunDirectory:
    folder.mkdir()
    base = document(folder)
    base["data"] = {
        "path": str(table(folder / "patients.csv", row, **cells)),
        "label": "ill",
        "party": "clinic",
        "bounds": {"age": [0, 100], "pressure": [80, 180]},
        "categories": {"ward": ["A", "B", "C"], "ill": ["no", "yes"]},
    }
    base |= {
        "parties": {},
        "federation": {"rounds": 2},
        "dp": {"all": {"noise_multiplier": 1.0, "accountant": "rdp"}},
        "adversary": {"attacks": ["loss"], "party": "north"},
    }
    run = prepare.prepare(prepare.check(parse(base), None), folder / "run")
    play.federate(run)
    return run


def public_files(run: RunDirectory) -> set[str]:
    names = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()}
    return {name for name in names if f"-{CHANGED_PARTY}/" not in name}


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return private_run(tmp_path_factory.mktemp("before") / "a")


@pytest.mark.parametrize(
    "cells",
    [
        {"age": 99.5},
        {"age": 4000.0},
        {"age": ""},
        {"age": "not measured"},
        {"age": "1.234,5"},
        {"ward": "Z"},
        {"ward": ""},
        {"pressure": "01.02.2020", "ward": "a"},
    ],
    ids=str,
)
def test_a_changed_private_record_changes_nothing_but_what_is_named(
    before: RunDirectory, tmp_path: Path, cells: dict
) -> None:
    after = private_run(tmp_path / "a", row=4, **cells)  # the second of the south
    assert public_files(after) == public_files(before)
    manifests = [json.loads((run.path / "manifest.json").read_text()) for run in (before, after)]
    left, right = ({k: v for k, v in m.items() if k not in OUTSIDE["manifest.json"]} for m in manifests)
    assert left == right, "shapes, classes, counts, notices, plans and names are public"
    assert [g["rounds"] for g in manifests[0]["games"].values()] == [
        g["rounds"] for g in manifests[1]["games"].values()
    ]
    rounds = [run.table("rounds").drop(columns=OUTSIDE["rounds"]) for run in (before, after)]
    pd.testing.assert_frame_equal(*rounds)
    for name in ("settings.json", "assumptions.json"):
        told = [(run.observations(0) / name).read_text() for run in (before, after)]
        assert told[0] == told[1], "what is public of the federation"
    shapes = [{k: v.shape for k, v in run.read_model(0, 2).items()} for run in (before, after)]
    assert shapes[0] == shapes[1]
    scenarios = [(run.path / "scenario.toml").read_text() for run in (before, after)]
    assert scenarios[0].replace(str(before.path.parent), "") == scenarios[1].replace(
        str(after.path.parent), ""
    )


def test_a_record_of_no_declared_class_is_missing_from_its_party_alone(
    before: RunDirectory, tmp_path: Path
) -> None:
    """Its party has one record less, which is a record count, and so outside; nothing else tells of it."""
    after = private_run(tmp_path / "a", row=4, ill="zebra")
    assert after.manifest["classes"] == before.manifest["classes"]
    assert after.manifest["notices"] == before.manifest["notices"]
    sizes = before.manifest["parties"] | {CHANGED_PARTY: before.manifest["parties"][CHANGED_PARTY] - 1}
    assert after.manifest["parties"] == sizes
    assert (
        "zebra" not in (after.path / "manifest.json").read_text() + (after.path / "scenario.toml").read_text()
    )


def test_a_twin_of_another_partys_record_removes_nothing_there(before: RunDirectory, tmp_path: Path) -> None:
    other = pd.read_csv(before.path.parent / "patients.csv").loc[5]  # of the west
    twin = {name: other[name] for name in ("age", "pressure", "ward", "ill")}
    after = private_run(tmp_path / "a", row=4, **twin)
    assert after.manifest["parties"] == before.manifest["parties"]
    west = "parties/game-000/002-west/records.safetensors"
    assert (after.path / west).read_bytes() == (before.path / west).read_bytes()
