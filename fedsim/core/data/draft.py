"""A first scenario for a table that nobody has described: what is guessed, and what the guess rests on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tomli_w

from fedsim.core.data.codes import missing_codes
from fedsim.core.data.describe import ColumnFacts
from fedsim.core.data.table import numeric

LABELS = (
    "label", "target", "outcome", "class", "diagnosis", "disease", "readmitted", "default", "churn", "died",
    "death", "mortality", "y", "response", "ill", "status", "result", "event", "income",
)  # fmt: skip
PARTIES = (
    "hospital", "clinic", "site", "centre", "center", "party", "bank", "branch", "institution", "provider",
    "department", "ward", "region", "country", "company",
)  # fmt: skip
PERSONS = ("patient", "person", "subject", "customer", "client", "individual", "member", "mrn", "nhs", "ssn")
"""Words in names of columns, the likeliest first, that tell what a column is."""

MOST_CLASSES, MOST_PARTIES, LEAST_OF_PARTY = 20, 50, 10


@dataclass(frozen=True)
class Guess:
    """A column for a role, and why; column: None where none fits."""

    column: str | None
    why: str


def label(frame: pd.DataFrame) -> Guess:
    """Guess the column to predict: few values, each several times, a telling name, or the last place."""
    fits = [name for name in frame.columns if 2 <= frame[name].nunique() <= MOST_CLASSES
            and frame[name].value_counts().min() >= 2]  # fmt: skip
    if not fits:
        return Guess(None, "no column has between 2 and 20 values, each at least twice")
    last = str(frame.columns[-1])

    def rank(name: str) -> tuple[int, bool, bool]:
        place = _place(name, LABELS)
        return (place if place is not None else len(LABELS), name != last, frame[name].nunique() != 2)

    best = min(fits, key=lambda name: rank(str(name)))
    counts = frame[best].value_counts()
    shown = ", ".join(f"{value} ({count})" for value, count in list(counts.items())[:5])
    return Guess(str(best), f"{len(counts)} values: {shown}{', …' if len(counts) > 5 else ''}")


def party(frame: pd.DataFrame, taken: Iterable[str | None] = ()) -> Guess:
    """Guess the column that says who holds a record, by its name; none: records are dealt at random."""
    for name in _named(frame, PARTIES, taken):
        counts = frame[name].value_counts()
        if 2 <= len(counts) <= MOST_PARTIES and counts.min() >= LEAST_OF_PARTY:
            return Guess(name, f"{len(counts)} values, {counts.min()} to {counts.max()} records each")
    return Guess(None, "no column is named like one; records will be dealt at random")


def person(frame: pd.DataFrame, taken: Iterable[str | None] = ()) -> Guess:
    """Guess the column that says whose a record is: named like one, with many values, some of them
    repeated."""
    for name in _named(frame, PERSONS, taken):
        distinct = frame[name].nunique()
        if len(frame) > distinct > 0.05 * len(frame):
            return Guess(name, f"{distinct} persons with {len(frame)} records")
    return Guess(None, "no column repeats like persons do; each record counts as a person of its own")


def _named(frame: pd.DataFrame, words: Sequence[str], taken: Iterable[str | None]) -> list[str]:
    """Return the columns whose names hold one of the words, the likeliest first."""
    used = set(taken)
    places = {str(name): _place(str(name), words) for name in frame.columns if name not in used}
    return sorted((name for name, place in places.items() if place is not None), key=lambda n: places[n] or 0)


def _place(name: str, words: Sequence[str]) -> int | None:
    """Return the place of the first of the words that a name consists of or contains, None where none."""
    parts = re.split(r"[^a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    return next((place for place, word in enumerate(words) if word in parts), None)


def codes(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Return numbers that look like codes for 'missing', by column."""
    found = {str(name): missing_codes(numeric(frame[name])) for name in frame.columns}
    return {name: values for name, values in found.items() if values}


def write_up(
    path: Path, frame: pd.DataFrame, roles: dict[str, Guess], facts: Sequence[ColumnFacts], asks: str
) -> str:
    """Return the scenario's text, each guess with its reason in a comment.

    roles: 'label', 'party', 'person'. facts: what `encode` decides of the columns, none where it could not.
    asks: the sentence by which it refused, ''
    """
    lines = [
        f"# Drafted from {_comment(path.name)}: {len(frame)} records, {len(frame.columns)} columns.",
        "# What is guessed says why; read every line. Then: fedsim scenario check THIS_FILE",
        f"name = {_toml(re.sub(r'[^A-Za-z0-9._-]+', '-', path.stem).strip('-.') or 'scenario')}",
        "", "[data]", f"path = {_toml(path.name)}",
    ]  # fmt: skip
    for role, guess in roles.items():
        shown = f"{role} = {_toml(guess.column or '…')}"
        lines.append(f"{'' if guess.column else '# '}{shown}  # {_comment(guess.why)}")
    suspects = codes(frame)
    if suspects:
        values = sorted({value for of_column in suspects.values() for value in of_column})
        lines.append(
            f"# missing = {_toml(list(values))}  # stand apart in {_comment(', '.join(suspects))}: codes?"
        )
    if asks:
        lines.append(f"# fedsim asks: {_comment(asks)}")
    lines += _columns(facts)
    lines += ["", "[parties]", 'sector = "hospital"  # or "bank", "employer": words and defaults']
    if roles["party"].column is None:
        lines.append("count = 5  # records are dealt at random to so many")
    lines += ["", "# DP-SGD at every party; try it with: fedsim run … --twin all=8", "# [dp]",
              "# all = {epsilon = 8}", ""]  # fmt: skip
    return "\n".join(lines)


def _columns(facts: Sequence[ColumnFacts]) -> list[str]:
    """Return sections of bounds and categories, as comments: a person declares them, not the private
    table."""
    numbers = [fact for fact in facts if fact.kept and fact.kind in ("number", "date")]
    others = [fact for fact in facts if fact.kept and fact.kind not in ("number", "date")]
    lines = []
    if numbers:
        lines += [
            "",
            "# What is declared here is not taken from records: write what can occur, in the column's unit,",
            "# not what does occur. Until then, records are set aside as public.",
            "# [data.bounds]",
        ]
        for fact in numbers:
            bounds = " to ".join(f"{value:g}" for value in _rounded(fact.range))
            lines.append(f"# {_toml(fact.name)} = […, …]  # {fact.kind}; about {bounds or 'unknown'}")
    if others:
        lines += ["", "# [data.categories]"]
        lines += [f'# {_toml(fact.name)} = ["…"]  # {_comment(fact.range)}' for fact in others]
    dropped = [fact for fact in facts if not fact.kept]
    if dropped:
        lines.append("")
    return lines + [f"# {_comment(fact.name)} is left out: {_comment(fact.change)}" for fact in dropped]


def _rounded(text: str) -> list[float]:
    """Return 'low to high' rounded outwards to one figure of its width: no record's own value."""
    ends = [float(part) for part in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", text)][:2]
    if len(ends) < 2 or ends[0] == ends[1]:
        return ends
    step = 10.0 ** math.floor(math.log10(abs(ends[1] - ends[0])))
    return [math.floor(ends[0] / step) * step, math.ceil(ends[1] / step) * step]


def _toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def _comment(text: str) -> str:
    """Return text that cannot end its line."""
    return "".join(character if character.isprintable() else " " for character in text)
