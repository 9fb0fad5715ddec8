"""What a malicious node makes of what it was sent: membership of people whose records it holds, offline."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from attacks import execution, registry
from attacks.declaration import Attack
from attacks.execution import Results, Task
from attacks.views import observations
from clients.deployed import SEEN, read_node, scenario_of
from fedsim.core.data import released
from fedsim.core.data.listed import Persons, read_persons
from fedsim.core.errors import InputError
from fedsim.evaluation import estimates


def read_candidates(folder: Path, path: Path, truth: str | None = None) -> Persons:
    """Read the persons whom a malicious node asks about, as the federation's schema says.

    truth: the column that says who is a member

    Raises:
        InputError: the node kept nothing of what it was sent, or naming what in the file does not fit.
    """
    if read_node(folder).role != "malicious":
        raise InputError(f"{folder}: role = 'honest' in its node.toml: it kept nothing of what it was sent")
    return read_persons(path, released.read_schema(folder), truth)


def attack(folder: Path, asked: Persons, names: Sequence[str] = ()) -> tuple[pd.DataFrame, Results]:
    """Score persons by what the node of ``folder`` was sent.

    names: attacks, default all that read what was seen and simulate nothing

    Returns: a row an attack and record: attack, row (of the file, from 1), score, called a member or not; and
    the attacks' results.

    Raises:
        InputError: what it was sent cannot be read, or an attack is unknown or simulates.
    """
    scenario = scenario_of(folder)
    view = observations.load_view(folder / SEEN)
    view = dataclasses.replace(view, candidate_party=np.full(len(asked.records), -1))
    mounted = _attacks(list(names))
    results = execution.run("participant", view, mounted, Task(asked.records, scenario.seed))
    parts = [
        pd.DataFrame(
            {
                "attack": name,
                "row": np.arange(1, len(asked.records) + 1),
                "score": finding.scores,
                "member": finding.scores >= finding.threshold,
            }
        )
        for name, finding in results.findings.items()
    ]
    if not parts:
        raise InputError(f"no attack could be run: {next(iter(results.not_run.values()))}")
    return pd.concat(parts, ignore_index=True), results


def judge(scores: pd.DataFrame, member: np.ndarray) -> pd.DataFrame:
    """Return each attack's AUC with its interval; member: (n,) bool, who of the persons was trained on."""
    rows = []
    for name, of_attack in scores.groupby("attack", sort=False):
        sides = member[of_attack["row"].to_numpy() - 1]
        values = of_attack["score"].to_numpy()
        auc = estimates.auc(values[sides], values[~sides])
        rows.append((name, auc.value, auc.low, auc.high, int(sides.sum()), int((~sides).sum())))
    return pd.DataFrame(rows, columns=["attack", "auc", "low", "high", "n_members", "n_nonmembers"])


def _attacks(names: list[str]) -> list[Attack]:
    there = [
        attack
        for attack in registry.select(names or [registry.ALL], "participant", None)
        if attack.infers == "membership" and attack.reads != "text" and not attack.active
    ]
    simulating = [attack.name for attack in there if attack.shadows or attack.simulates]
    if names and simulating:
        raise InputError(
            f"'{simulating[0]}' simulates the federation, for which the node would have to own records like "
            "the others'; take one without shadows"
        )
    return [attack for attack in there if not (attack.shadows or attack.simulates)]
