"""Persons, asked of a finished run: subject membership, range membership, and what DP promises to whom.

Like `fedsim.runs.beyond`: views from what the run kept, attacks, then the judge; tables in the run's folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from attacks.attributes.problem import population
from attacks.calibration import calibrate
from attacks.persons import ranges, subject
from attacks.persons.ranges import Range
from attacks.persons.subject import Score
from attacks.text import patients
from fedsim.core import rng
from fedsim.core.data.layout import column_of, read_layout
from fedsim.core.data.records import PersonRecords, Records
from fedsim.core.data.store import PartyRecords, read_party
from fedsim.core.errors import InputError
from fedsim.core.models.shapes import LANGUAGE
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.persons import person_epsilon
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation import persons as judge
from fedsim.evaluation.persons import Found, Key
from fedsim.runs.beyond import PlayedGame, games_of

Progress = Callable[[int, int], object]

OFF, POINTS = 0.05, 6
"""By how much of its range a number may be off, and points drawn from a range, by default."""

RANGE_SCORES = ("scaled-logit", "update-regression")
"""Scores that ranges are asked with: the others cost as much and say no more."""

RECORDS = (1, 2, 4, 8)
"""Numbers of records for which a person's ε is worked out, beside the most that a candidate's has."""


def persons(
    run: RunDirectory,
    unknown: Sequence[str] = (),
    off: float = OFF,
    points: int = POINTS,
    progress: Progress = lambda done, total: None,
) -> pd.DataFrame:
    """Ask of each candidate's person whether she is in the data; write ``persons.parquet``.

    unknown: columns of which the adversary knows nothing where it asks about a range; off: see `Range`
    Columns: those of `fedsim.evaluation.persons`. asked 'person': with all of her records, by the mean, the
    largest or the sum of their scores, beside 'one record' (the candidate alone, which is all there is where
    nobody has several) and the number of them.
    asked 'range': of a record known only nearly, by points drawn from what is known, beside 'one guess' (its
    middle, unknown columns as they are most often) and 'exact' (the record itself).

    Of letters, which have no columns, only 'person' is asked.

    Raises:
        InputError: there is no such column.
    """
    known = _range(run, unknown, off)
    scores = subject.SCORES if known else patients.SCORES
    games = games_of(run, letters=True)
    total = len(games) * (len(scores) + (len(RANGE_SCORES) * (points + 2) if known else 0))
    done = iter(range(1, total + 1))
    judged = []
    for played in games:
        found = _subjects(run, played, scores, lambda: progress(next(done), total))
        if known:
            found |= _ranges(run, played, known, points, lambda: progress(next(done), total))
        judged.append(judge.evaluate(found, played.member))
    table = judge.over_games(judged, [played.member for played in games])
    run.write_table("persons", table)
    return table


def _range(run: RunDirectory, unknown: Sequence[str], off: float) -> Range | None:
    """Return what is known of a record that is known only nearly; None of letters, which have no columns."""
    if run.scenario.model.name in LANGUAGE:
        if unknown:
            raise InputError(
                f"--unknown {unknown[0]}: the records of {run.path} are letters, without columns"
            )
        return None
    layout = read_layout(run.path)
    return Range(layout, off, tuple(column_of(layout, name, "--unknown") for name in unknown))


def her_records(run: RunDirectory, played: PlayedGame) -> PersonRecords:
    """Return all records of each candidate's person; the candidate alone where the table names none."""
    kept = run.read_persons(played.game)
    return kept or PersonRecords(played.candidates, np.arange(len(played.candidates)))


def _subjects(
    run: RunDirectory, played: PlayedGame, scores: Mapping[str, Score], step: Callable[[], object]
) -> dict[Key, Found]:
    hers, own = her_records(run, played), _own(run, played)
    count = len(played.candidates)
    sides = [(own.train, own.train_person), (own.heldout, own.heldout_person)]
    owners = [np.arange(len(rows)) if who is None else _numbered(who) for rows, who in sides]
    found: dict[Key, Found] = {}
    for name, score in scores.items():
        stream = rng.generator(run.scenario.seed, f"persons/{name}", game=played.game)
        of_one, *known = subject.scored(
            played.view, [played.candidates, own.train, own.heldout], score, stream
        )
        found["person", "one record", name] = Found(of_one, calibrate(*known))
        step()
        if len(hers.owner) == count:  # nobody has several
            continue
        # By themselves: beside its double, a record's part in an update would be halved.
        of_her, *known = subject.scored(played.view, [hers.records, own.train, own.heldout], score, stream)
        for how, aggregate in subject.AGGREGATES.items():
            ends = [aggregate(s, who, who.max() + 1) for s, who in zip(known, owners, strict=True)]
            found["person", how, name] = Found(aggregate(of_her, hers.owner, count), calibrate(*ends))
    if len(hers.owner) > count:
        number = subject.number_of_records(hers.owner, count)
        found["person", "number of records", "none"] = Found(number)
    return found


def _numbered(person: np.ndarray) -> np.ndarray:
    return np.asarray(np.unique(person, return_inverse=True)[1])


def _own(run: RunDirectory, played: PlayedGame) -> PartyRecords:
    """Return the adversary's own records with its own persons, which it knows."""
    names = list(run.manifest["parties"])
    own = names.index(str(run.manifest["adversary"]))
    return read_party(run.party_folder(played.game, own, names[own]))[0]


def _ranges(
    run: RunDirectory, played: PlayedGame, known: Range, points: int, step: Callable[[], object]
) -> dict[Key, Found]:
    view, owned, seed = played.view, population(played.view), run.scenario.seed
    blur = rng.generator(seed, "persons/what is known", game=played.game)
    exact = [played.candidates, view.own_train, view.own_heldout]
    asked = [ranges.blurred(records, known, blur) for records in exact]
    found: dict[Key, Found] = {}
    for name in RANGE_SCORES:
        stream = rng.generator(seed, f"persons/range/{name}", game=played.game)

        def scored(
            groups: list[Records], name: str = name, stream: np.random.Generator = stream
        ) -> list[np.ndarray]:
            step()
            return subject.scored(view, groups, subject.SCORES[name], stream)

        guesses = [ranges.middle(records, known, owned) for records in asked]
        drawn = [
            scored([ranges.points(records, known, owned, stream) for records in asked]) for _ in range(points)
        ]
        summed_up = [ranges.trimmed_mean(side) for side in zip(*drawn, strict=True)]
        for knows, (scores, *sides) in {
            "exact": scored(exact), "one guess": scored(guesses), "range": summed_up,
        }.items():  # fmt: skip
            found["range", knows, name] = Found(scores, calibrate(*sides))
    return found


def promises(run: RunDirectory) -> pd.DataFrame:
    """Return what each party's DP promises a person with k records there, and write it to the run.

    Columns: party, unit, records (k), epsilon (NaN without DP), delta, of the whole planned run. Where the
    unit is a person, ε is the same for any k. A person known to several parties spends at each.
    """
    kept = [persons for game in range(run.scenario.games) if (persons := run.read_persons(game))]
    most = max((int(np.bincount(persons.owner).max()) for persons in kept), default=1)
    rows = []
    for name in run.manifest["parties"]:
        plan = (run.manifest.get("dp") or {}).get(name)
        for k in sorted({*RECORDS, most}):
            if plan is None:
                rows.append((name, "none", k, np.nan, np.nan))
                continue
            entries = Ledger().add(
                plan["noise_multiplier"], plan["sample_rate"], plan["steps_per_round"] * plan["rounds"]
            ).entries  # fmt: skip
            by_person = plan.get("unit") == "person"
            epsilon = plan["epsilon"] if by_person or k == 1 else person_epsilon(entries, plan["delta"], k)
            rows.append((name, plan.get("unit", "record"), k, float(epsilon), float(plan["delta"])))
    table = pd.DataFrame(rows, columns=["party", "unit", "records", "epsilon", "delta"])
    run.write_table("promises", table)
    return table
