"""An outsider's attack on a released model: over HTTP with a key, or offline on a run's own.

Both ask raw records through a policy and within a budget; the same seed and budget give the same scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from attacks.released import suite
from attacks.released.answers import Progress, Spending, share_out
from attacks.released.shadows import ShadowSettings
from attacks.released.suite import Suite
from attacks.shadows.simulate import Laboratory
from attacks.views.outsider import OutsiderView
from fedsim.core.data.listed import Persons, read_persons
from fedsim.core.data.records import Records
from fedsim.core.data.released import ReleasedSchema
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.evaluation import outsider as judge
from fedsim.serving import offline
from fedsim.serving.client import RemoteModel

ALPHA = 0.05
"""Chance at which the suite accuses somebody who is not in the data, at most."""


@dataclass(frozen=True)
class Target:
    """A released model as its outsider knows it.

    ask: features (n, …) float32 → (n, classes) float64, NaN: not told; queries: that may be spent;
    per_minute: records that may be asked about in 60 seconds
    """

    name: str
    ask: Callable[[np.ndarray], np.ndarray]
    schema: ReleasedSchema
    policy: OutputPolicy
    queries: int | None
    per_minute: int | None = None


def remote(url: str, key: str, budget: int | None = None) -> Target:
    """Return the model behind a URL; budget: queries, fewer than the key's own.

    Raises:
        InputError: nobody answers there, or the key is not valid, or has nothing left.
    """
    model = RemoteModel(url, key)
    queries = _smaller(model.queries, budget)
    if queries == 0:
        raise InputError(f"{url}: the key has no query left")
    return Target(url, model.ask, model.schema, model.policy, queries, model.per_minute)


def of_run(
    run: RunDirectory,
    policy: OutputPolicy | None = None,
    budget: int | None = None,
    *,
    seed: int = 0,
    game: int = 0,
) -> Target:
    """Return a run's own final model behind a policy, default: its scenario's; seed: of the answers' noise.

    Raises:
        InputError: the run cannot be served.
    """
    model = offline.opened(run, policy, game=game, seed=seed)
    queries = _smaller(model.stated.queries, budget)
    return Target(str(run.path), model.ask, model.release.schema, model.stated, queries)


def _smaller(first: int | None, second: int | None) -> int | None:
    known = [queries for queries in (first, second) if queries is not None]
    return min(known) if known else None


@dataclass(frozen=True, eq=False)
class Question:
    """Whom an outsider asks about, and whom it knows not to be in the data."""

    candidates: Persons
    outsiders: Records

    def spending(self, queries: int | None) -> Spending:
        """Return how a budget is divided."""
        return share_out(len(self.candidates.records), len(self.outsiders), queries)


def question(target: Target, candidates: Path, outsiders: Path | None, truth: str | None = None) -> Question:
    """Read the persons; truth: the candidates' column that says who is a member.

    Raises:
        InputError: a file does not fit the table, or somebody is in both.
    """
    people = read_persons(candidates, target.schema, truth)
    if outsiders is None:
        return Question(people, people.records.take(np.arange(0)))
    known = read_persons(outsiders, target.schema).records
    _check_apart(people.records, known, candidates, outsiders)
    return Question(people, known)


def _check_apart(people: Records, known: Records, candidates: Path, outsiders: Path) -> None:
    """Refuse a candidate who is known to be an outsider: there would be nothing to ask."""
    places = {row.tobytes(): number for number, row in enumerate(known.features, start=1)}
    for number, row in enumerate(people.features, start=1):
        if (other := places.get(row.tobytes())) is not None:
            raise InputError(
                f"{candidates}: record {number} is record {other} of {outsiders}; leave it out of one of them"
            )


def attack(
    target: Target,
    asked: Question,
    seed: int = 0,
    settings: ShadowSettings | None = None,
    laboratory: Laboratory | None = None,
    progress: Progress | None = None,
) -> Suite:
    """Spend the budget and run the suite; settings: of the shadows, None trains none.

    Raises:
        FedsimError: the service refused, or does not answer any more.
    """
    view = OutsiderView(target.ask, len(target.schema.schema.classes), target.queries)
    candidates = asked.candidates.records
    return suite.run(view, target.policy, candidates, asked.outsiders, seed, settings, laboratory, progress)


def accusations(found: Suite, alpha: float = ALPHA) -> pd.DataFrame:
    """Return a row per attack and candidate: attack, candidate (from 1), score, p_value, accused."""
    parts = [
        pd.DataFrame(
            {
                "attack": name,
                "candidate": np.arange(1, len(finding.scores) + 1),
                "score": finding.scores,
                "p_value": finding.p_values,
                "accused": finding.p_values <= alpha,
            }
        )
        for name, finding in found.findings.items()
    ]
    return pd.concat(parts, ignore_index=True)


def summary(found: Suite, alpha: float = ALPHA) -> pd.DataFrame:
    """Return a row per attack: attack, queries, asked, accused, by_chance (expected if nobody is in)."""
    rows = []
    for name, finding in found.findings.items():
        p_values = finding.p_values
        asked = int(np.isfinite(finding.scores).sum())
        # The rule accuses an outsider with the probability of a rank, not more than α.
        known = int(np.isfinite(finding.outsiders).sum())
        chance = np.floor(alpha * (known + 1) + 1e-9) / (known + 1) * asked if known else np.nan
        rows.append((name, finding.queries, asked, int((p_values <= alpha).sum()), chance))
    return pd.DataFrame(rows, columns=["attack", "queries", "asked", "accused", "by_chance"])


def judged(found: Suite, member: np.ndarray, alpha: float = ALPHA) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return how right the findings are, and the curve over queries; member: (n,) bool."""
    findings = {name: (f.scores, f.p_values, f.queries) for name, f in found.findings.items()}
    points = [(name, queries, finding.scores) for name, queries, finding in found.curve]
    return judge.judge(findings, member, alpha), judge.judge_curve(points, member)
