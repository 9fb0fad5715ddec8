"""The report's sections on what was asked of a run beside membership, one for each that was asked.

Each has a sentence that answers, one picture, and what has to be known to believe it. A leak is called shown
only where an interval that allows for the choice of the strongest of several attacks (Bonferroni, by normal
margins) lies wholly on the far side of guessing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import pandas as pd

from fedsim.core.run_directory import RunDirectory
from fedsim.report import pictures
from fedsim.report.svg import number

Row = tuple[str, float, float, float]
"""(name, value, low, high)"""


@dataclass(frozen=True)
class Section:
    """One section. lead: the answer; picture: SVG text; caption: what it shows; notes: what was assumed.

    table: its heading cells and rows of text, none where there is nothing to tabulate
    """

    name: str
    title: str
    lead: str
    picture: str
    caption: str
    notes: str
    table: tuple[tuple[str, ...], tuple[tuple[str, ...], ...]] = ((), ())


def sections(run: RunDirectory) -> list[Section]:
    """Return a section for each attack beyond membership that was asked of the run, in a fixed order."""
    makers: dict[str, Callable[[RunDirectory], Section]] = {
        "attributes": _attributes,
        "inversion": _inversion,
        "gradient": _gradient,
        "counts": _counts,
        "persons": _persons,
        "poisoning": _poisoning,
    }
    return [make(run) for table, make in makers.items() if run.has(table)]


def widened(row: Row, tests: int) -> tuple[float, float]:
    """Return the row's 95 % interval, its margins stretched until ``tests`` such hold at once."""
    _, value, low, high = row
    factor = NormalDist().inv_cdf(1 - 0.025 / max(1, tests)) / NormalDist().inv_cdf(0.975)
    return value - factor * (value - low), value + factor * (high - value)


def _strongest(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: row[1] if math.isfinite(row[1]) else -math.inf)


def _rows(table: pd.DataFrame, name: Callable[[dict[Any, Any]], str]) -> list[Row]:
    known = table.dropna(subset=["low", "high"])
    return [(name(row), row["value"], row["low"], row["high"]) for row in known.to_dict("records")]


def _attributes(run: RunDirectory) -> Section:
    table = run.table("attributes")
    leaks = table[(table["metric"] == "leak") & ~table["attack"].isin(("imputation", "prior"))]
    sentences: list[str] = []
    drawn: list[Row] = []
    for column, of_column in leaks.groupby("column", sort=False):
        rows = _rows(of_column, lambda row: str(row["attack"]))
        best = _strongest(rows)
        low, high = widened(best, len(rows))
        drawn += [(f"{column}: {name}", value, low, high) for name, value, low, high in rows]
        if low > 0:
            sentences.append(
                f"Of ‘{column}’ more is found out about those in the data than about others: {best[0]} is "
                f"right {_percent(best[1])} more often about them, beyond what anyone could guess from "
                f"other records ({_percent(low)} to {_percent(high)})"
            )
        else:
            sentences.append(
                f"Of ‘{column}’ no more was shown to be found out about those in the data than about others"
            )
    members, others = (
        int(table.loc[table["records"] == side, "n"].max()) for side in ("members", "held out")
    )
    return Section(
        "attributes",
        "Could someone who knows the rest of a record fill in a column?",
        _sentences(sentences),
        pictures.intervals(drawn, "leak: accuracy above imputation, members minus others", (-0.5, 0.5), 0.0),
        "Right of the dashed line: the model gives away something of those whose records trained it, and "
        "of them alone. Left of it, or across it: nothing shown.",
        f"The adversary knows every other column and the label of {members} members and {others} others. "
        "What a model of its own records fills in is taken off first: guessing well is no leak of the "
        "federation. Where several attacks were tried, the sentence above allows for having named the "
        "strongest.",
    )


def _inversion(run: RunDirectory) -> Section:
    table = run.table("inversion")
    nearer = table[(table["metric"] == "nearer") & (table["party"] == "all")]
    rows = _rows(nearer, lambda row: str(row["source"]))
    attacks = [row for row in rows if row[0] != "class mean"]
    best = _strongest(attacks or rows)
    low, _ = widened(best, len(attacks))
    lead = (
        f"The typical record that the model gives away ({best[0]}) lies nearer to people in the data than "
        "to others like them."
        if low > 0.5
        else "The typical records that the model gives away lie no nearer to people in the data than to "
        "others like them, as far as can be told: they show what a class is like, and nobody's record."
    )
    grid = pictures.typical_images(run)
    label = "how often a member is nearer to it than another record of its class"
    return Section(
        "inversion",
        "What does the model take for typical?",
        lead,
        grid or pictures.intervals(rows, label, (0.0, 1.0), 0.5),
        _PICTURED
        if grid
        else "On the dashed line it is as often nearer to a record that is not in the data.",
        "The record is looked for that a model is surest of. ‘Class mean’ is that of the adversary's own "
        "records and touches no model; ‘answer’ is one party's own model, which the server alone sees.",
        ((), ()) if grid else pictures.typical_rows(run),
    )


_PICTURED = (
    "One column a class. First row: the mean of the adversary's own records, which needs no model. Below: "
    "what was drawn out of the models."
)


def _gradient(run: RunDirectory) -> Section:
    table = run.table("gradient")
    rows_of = table[(table["metric"] == "rows")]
    drawn: list[Row] = []
    bare: list[Row] = []
    keys = ["protection", "batch", "epochs", "minibatches", "optimizer"]
    for (protection, *_), group in rows_of.groupby(keys, sort=False):
        attacks = group[group["method"] != "nearest own record"]
        best_of = _strongest(_rows(attacks, lambda row: str(row["method"])))
        drawn.append((_sent_as(group.iloc[0]), *best_of[1:]))
        bare += drawn[-1:] if protection == "none" else []
    baseline = rows_of[rows_of["method"] == "nearest own record"]["value"].max()
    bare = bare or drawn
    best = _strongest(bare)
    many = f"{_percent(best[1])} of them ({best[0]})"
    if widened(best, len(bare))[0] > baseline:
        lead = (
            "Whoever sees a party's update alone, as the server does without secure aggregation, can read "
            f"records off it: {many}."
        )
    elif best[1] > baseline:
        lead = f"Records were read off some updates, {many}, of too few batches to say how often in general."
    else:
        lead = "No records were read off the updates beyond what the adversary's own records come near to."
    return Section(
        "gradient",
        "Can records be read off an update?",
        lead,
        pictures.intervals(drawn, "share of the records recovered by the best method", (0.0, 1.0), None),
        "A record counts as recovered where every category is right and its numbers are within 5 % of "
        "their range. ‘participant’ is what another party sees of all others together.",
        "The updates are what parties of this run would send of so few records; one party trains on many "
        "more at once, in many steps; ‘momentum’ and ‘adam’ are other ways to make these. A party of the "
        "federation never sees such an update, but only the sum of all. The adversary's own "
        f"nearest record comes as near to {_percent(baseline)} of them at most.",
    )


def _sent_as(row: pd.Series) -> str:
    """Say how an update was made, and under which protection."""
    batch, parts = int(row["batch"]), int(row["minibatches"])
    steps = int(row["epochs"]) * parts
    records = f"{parts} × {batch} records" if parts > 1 else f"{batch} record{'s' * (batch > 1)}"
    by = "" if row["optimizer"] == "own" else f", {row['optimizer']}"
    under = "unprotected" if row["protection"] == "none" else row["protection"]
    return f"{under}, {records}, {steps} step{'s' * (steps > 1)}{by}"


def _counts(run: RunDirectory) -> Section:
    table = run.table("counts")
    lists = table[(table["what"] == "lists") & (table["metric"] == "error")]
    rows = _rows(lists, lambda row: f"{row['score']}, {row['estimator']}")
    gains = table[(table["what"] == "lists") & (table["metric"] == "gain over prior")]
    best = _strongest(_rows(gains, lambda row: f"{row['score']}, {row['estimator']}"))
    low, _ = widened(best, len(gains))
    lead = (
        "How many people on a list are in the data can be estimated better than by guessing, though not "
        f"who: {best[0]} is nearer to the truth by {_percent(best[1])} of the list."
        if low > 0
        else "How many people on a list are in the data could not be shown to be estimated better than by "
        "guessing half of them."
    )
    shares = table[table["metric"].str.startswith("share")]
    cells = tuple(
        (str(row["what"]), str(row["score"]), number(round(row["value"], 3)), number(round(row["truth"], 3)))
        for row in shares.to_dict("records")
    )
    return Section(
        "counts",
        "How many of a list are in the data?",
        lead,
        pictures.intervals(rows, "mean error of the count, as a share of the list", (0.0, 0.6), 0.3),
        "Left of the dashed line the count is better than the guess that half of the list is in the data.",
        "Lists of 40 candidates, of whom 0 to 100 % are in the data. The adversary learns from its own "
        "records how often its score is wrong.",
        (("group, at", "read off", "estimated share", "true share"), cells) if cells else ((), ()),
    )


NEAR = (
    "‘near her record’: the adversary knows her record only to within a few per cent, or not all of its "
    "columns; ‘one guess’ is the likeliest record, ‘range’ many drawn near it."
)


def _persons(run: RunDirectory) -> Section:
    table = run.table("persons")
    auc = table[table["metric"] == "auc"]
    drawn, best_of = [], {}
    for (asked, knows), group in auc.groupby(["asked", "knows"], sort=False):
        best = _strongest(_rows(group, lambda row: str(row["score"])))
        what = {"person": "by", "range": "near her record:"}[str(asked)]
        drawn.append((f"{what} {knows}", *best[1:]))
        best_of[asked, knows] = best, len(group)
    several = [
        pair for (asked, knows), pair in best_of.items() if asked == "person" and knows != "number of records"
    ]
    best, count = max(several, key=lambda pair: pair[0][1])
    low, high = widened(best, count * len(several))
    blind = best_of.get(("person", "number of records"))
    guessing = 0.5 if blind is None else max(0.5, blind[0][1])
    lead = (
        "Whether a person is in the data can be told better than by guessing: of two, one of whom is, the "
        f"attack names the right one {_percent(best[1])} of the time ({_percent(low)} to "
        f"{_percent(min(high, 1.0))}; guessing {_percent(guessing)})."
        if low > guessing
        else "Whether a person is in the data could not be shown to be told better than by guessing."
    )
    promised = run.table("promises") if run.has("promises") else pd.DataFrame()
    known = bool(len(promised) and promised["epsilon"].notna().any())
    return Section(
        "persons",
        "Is this person in the data?",
        lead,
        pictures.intervals(drawn, "AUC of the strongest score (guessing .5)", (0.25, 1.0), 0.5),
        NEAR if "range" in set(table["asked"]) else "",
        "A person is in the data with all of her records or with none. Guessing may know how many records "
        "she has, which touches no model. A promise of DP-SGD for one record is a weaker one for whoever has "
        "several" + ("; the table says what is promised." if known else "."),
        _promises(promised) if known else ((), ()),
    )


def _promises(table: pd.DataFrame) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    counts = sorted(set(table["records"]))
    heads = ("party", "unit", *(f"ε with {k} record{'s' if k > 1 else ''}" for k in counts))
    rows = []
    for (party, unit), group in table.groupby(["party", "unit"], sort=False):
        by_count = group.set_index("records")["epsilon"]
        cells = ("none" if math.isnan(by_count[k]) else f"{by_count[k]:.3g}" for k in counts)
        rows.append((str(party), str(unit), *cells))
    return heads, tuple(rows)


def _poisoning(run: RunDirectory) -> Section:
    table = run.table("poisoning")
    damage = table[table["metric"] == "damage"]
    gains = _rows(table[table["metric"] == "gain"], lambda row: f"{row['kind']} under {row['defence']}")
    best = _strongest(gains)
    low, _ = widened(best, len(gains))
    open_ = damage[damage["update"] == "open"]
    rows = _rows(open_, lambda row: f"{row['defence']}, {row['kind']}, {row['aim']}")
    worst = _strongest(rows)
    first = (
        "Poison can turn the model against chosen people: it believes what is true of them less by "
        f"{_percent(worst[1])} on average ({worst[0]})."
        if widened(worst, len(rows))[0] > 0
        else "No damage by so little poison could be shown."
    )
    second = (
        f" Knowing whom to call a member makes it worse ({best[0]})."
        if low > 0
        else " Knowing whom to call a member was not shown to make it worse than aiming at random."
    )
    return Section(
        "poisoning",
        "Does knowing who is in the data help to do harm?",
        first + second,
        pictures.intervals(rows, "how much less the model believes a target's label", (-0.2, 1.0), 0.0),
        "By the server's way of putting updates together, the poison, and whom it is aimed at.",
        "The last rounds were repeated with a few poisoned records of the adversary's for each of "
        f"{int(table['n'].max())} targets. Under a robust strategy the damage is measured against the same "
        "strategy without poison.",
    )


def _sentences(parts: Sequence[str]) -> str:
    return ". ".join(parts) + "."


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u202f%"
