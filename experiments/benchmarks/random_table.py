"""A federation on a table of random numbers, whose label depends on one of four columns: what sizes cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

SCENARIO = """
[data]
path = "t.csv"
label = "y"
bounds = {a = [0, 1], b = [0, 1], c = [0, 1], d = [0, 1]}
categories = {y = ["no", "yes"]}
[model]
name = "mlp"
[training]
epochs = 1
batch = 16
[adversary]
attacks = ["loss"]
worlds = ["all"]
"""


def write_scenario(folder: Path, n: int) -> Path:
    """Write a table of ``n`` records and a scenario of one cheap attack; return the scenario's file."""
    stream = np.random.default_rng(0)
    frame = pd.DataFrame(stream.uniform(size=(n, 4)), columns=list("abcd"))
    frame["y"] = np.where(frame["a"] + stream.normal(0, 0.3, n) > 0.5, "yes", "no")
    frame.to_csv(folder / "t.csv", index=False)
    (folder / "s.toml").write_text(SCENARIO)
    return folder / "s.toml"
