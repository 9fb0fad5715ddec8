"""Tiny tables and scenarios that every group of tests shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import parse
from fedsim.core.scenario.settings import Scenario
from fedsim.runs import play, prepare


def write_table(path: Path, n: int = 60, seed: int = 0) -> Path:
    """A table of patients whose illness depends on two of three columns, and on chance."""
    stream = np.random.default_rng(seed)
    age, pressure = stream.uniform(20, 90, n), stream.normal(125, 15, n)
    ward = stream.choice(["A", "B", "C"], n)
    ill = (age / 70 + pressure / 140 + stream.normal(0, 0.6, n)) > 1.7
    frame = pd.DataFrame({"age": age, "pressure": pressure, "ward": ward, "ill": np.where(ill, "yes", "no")})
    frame.to_csv(path, index=False)
    return path


def document(folder: Path, n: int = 60, **sections: object) -> dict[str, object]:
    """A scenario of three hospitals and three short rounds on `write_table`'s table, in one world.

    adversary, of ``sections``: beside worlds = ["all"], where it does not say in which
    """
    table = write_table(folder / "patients.csv", n)
    base: dict[str, object] = {
        "name": "tiny",
        "seed": 3,
        "data": {
            "path": str(table),
            "label": "ill",
            "bounds": {"age": [0, 100], "pressure": [80, 180]},
            "categories": {"ward": ["A", "B", "C"], "ill": ["no", "yes"]},
        },
        "parties": {"count": 3},
        "model": {"name": "mlp", "hidden": [8]},
        "federation": {"rounds": 3},
        "training": {"epochs": 2, "batch": 8, "private": {"epochs": 2, "batch": 8, "lr": 0.1}},
    }
    adversary = dict(sections.pop("adversary", {}))  # type: ignore[call-overload]
    if not adversary.keys() & {"worlds", "auxiliary"}:
        adversary["worlds"] = ["all"]
    return base | sections | {"adversary": adversary}


BRIEF = {"attacks": ["loss", "update-regression", "lira"], "shadows": 16}
"""An adversary that takes a second, where what is tested is not what it finds."""


def scenario(folder: Path, n: int = 60, **sections: object) -> Scenario:
    return parse(document(folder, n, **sections))


def prepared_run(folder: Path, n: int = 60, out: str = "run", **sections: object) -> RunDirectory:
    """A run directory that is ready for its first round."""
    return prepare.prepare(prepare.check(scenario(folder, n, **sections), None), folder / out)


def finished_run(folder: Path, n: int = 60, out: str = "run", **sections: object) -> RunDirectory:
    run = prepared_run(folder, n, out, **sections)
    play.federate(run)
    return run


def final_sha(run: RunDirectory, game: int = 0) -> str:
    return str(run.manifest["games"][str(game)]["final_model_sha256"])
