"""The frontier: what leaks, what it costs and what is guaranteed; makes `experiments/results/frontier.md`.

    python experiments/studies/frontier.py --workers 4 [--data-dir data] [--out runs/frontier] [--quick]

Runs the sweeps `epsilon`, `epsilon_large`, `own_dp` and `defences` (56 points), which share their cells, and
makes the tables, `frontier.parquet` (all games together) and `frontier.svg` from them. About 50 minutes of
CPU, in as many processes as --workers; stopped in whatever way, it goes on with the same command. --quick: a
few minutes, to see that it works.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pandas as pd
from rich.console import Console

from fedsim.core import files
from fedsim.evaluation.guarantees import tpr_bound
from fedsim.evaluation.leakage import FALSE_POSITIVE_RATES
from fedsim.report import svg
from fedsim.sweeps import table as table_of
from fedsim.sweeps.file import load
from fedsim.sweeps.points import plan, run
from fedsim.terminal import live

EXPERIMENTS = Path(__file__).resolve().parents[1]
ALONG_EPSILON = {
    "epsilon": "## ε: what leaks, and what it costs",
    "epsilon_large": "## ε on larger data sets",
}
SWEEPS = (*ALONG_EPSILON, "own_dp", "defences")
QUICK = (
    "games=2", "adversary.shadows=16", "federation.rounds=4", "data.max_records=300",
    "adversary.candidates=120", "training.epochs=1",
)  # fmt: skip
EPSILON = "dp.all.epsilon"
RATES = FALSE_POSITIVE_RATES
WORLDS = {"all": "every candidate's record", "half": "half of the members unknown"}
"""What the adversary owns of the others' records, in the page's words."""
TOLERANCE = 0.02
"""Difference of utility up to which two cells are called matched, if its interval holds 0."""


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval, NaN where there is none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return "–"
        if not math.isfinite(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    @property
    def signed(self) -> str:
        """A difference: with its sign."""
        if not math.isfinite(self.value):
            return "–"
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


# ------------------------------------------------------------------- figures
def figure(rows: pd.DataFrame, metric: str, party: str = "all", attack: str = "") -> Figure:
    """Return one cell's metric over all games; of the model where no attack is named."""
    kind = "leakage" if attack else "utility"
    wanted = rows[(rows["kind"] == kind) & (rows["attack"] == attack) & (rows["game"] == "all")]
    found = wanted[(wanted["metric"] == metric) & (wanted["party"] == party)]
    return Figure(*found[["value", "low", "high"]].iloc[0]) if len(found) else Figure(*[math.nan] * 3)


def difference(a: pd.DataFrame, b: pd.DataFrame, metric: str, party: str = "all", attack: str = "") -> Figure:
    """Return a − b, paired by game: both have the same members, candidates and initial weights in a game.

    The interval is Student's over games.
    """
    from scipy.stats import t

    kind = "leakage" if attack else "utility"
    series = []
    for rows in (a, b):
        wanted = rows[(rows["kind"] == kind) & (rows["attack"] == attack) & (rows["game"] != "all")]
        found = wanted[(wanted["metric"] == metric) & (wanted["party"] == party)]
        series.append(found.set_index("game")["value"])
    gaps = (series[0] - series[1]).dropna().to_numpy(float)
    if len(gaps) < 2:
        return Figure(float(gaps.mean()) if len(gaps) else math.nan, math.nan, math.nan)
    reach = float(t.isf(0.025, len(gaps) - 1)) * float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    return Figure(float(gaps.mean()), float(gaps.mean()) - reach, float(gaps.mean()) + reach)


def spent(rows: pd.DataFrame, party: str = "all", metric: str = "epsilon") -> float:
    """Return the ε or δ of a party; of all: the largest. ε is infinite and δ NaN where DP is off."""
    found = rows[(rows["kind"] == "guarantee") & (rows["party"] == party) & (rows["metric"] == metric)]
    return float(found["value"].iloc[0]) if len(found) else math.nan


def cells_of(found: pd.DataFrame, column: str) -> Iterator[tuple[object, pd.DataFrame]]:
    """Yield the values of an axis in the sweep's order, with their rows."""
    yield from found.groupby(column, sort=False)


def in_world(rows: pd.DataFrame, world: str) -> pd.DataFrame:
    """Return the attacks of one world, with what is of no world (utility, guarantees)."""
    return rows[rows["world"].isin(["", world])]


def epsilon_words(value: float) -> str:
    return "none" if math.isinf(value) else f"{value:.2g}"


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(map(str, cells))} |" for cells in lines]


# ------------------------------------------------------------------------- ε
def epsilon_section(found: pd.DataFrame, headline: Sequence[str]) -> list[str]:
    lines = [ALONG_EPSILON[str(found["sweep"].iloc[0])]]
    for scenario, mine in reversed(list(cells_of(found, "scenario"))):  # the sweep runs the largest first
        attacks = [name for name in headline if name in set(mine["attack"])]
        cells = [(epsilon_words(float(str(e))), rows) for e, rows in cells_of(mine, EPSILON)]
        lines += ["", f"### {scenario}", "", f"{sizes(mine, attacks[0])} The attack is `{attacks[0]}`.", ""]
        lines += epsilon_table(cells, attacks[0])
        for world, owned in WORLDS.items():
            lines += ["", f"AUC of every attack in world '{world}' ({owned}):", ""]
            body = [
                [e, *(figure(in_world(rows, world), "auc", attack=name) for name in attacks)]
                for e, rows in cells
            ]
            lines += table(["ε", *attacks], body)
    return lines


def epsilon_table(cells: Sequence[tuple[str, pd.DataFrame]], attack: str) -> list[str]:
    """Return one data set's table: utility, and the attack's AUC and TPR in each world, a row per ε."""
    measures = {"AUC": "auc", "TPR at 1 % FPR": "tpr_at_fpr_0.01"}
    headings = ["ε", "accuracy", "loss", "AUC of the model"]
    headings += [f"{words} in '{world}'" for world in WORLDS for words in measures]
    body = [
        [e, *(figure(rows, metric) for metric in ("accuracy", "loss", "auc"))]
        + [
            figure(in_world(rows, world), metric, attack=attack)
            for world in WORLDS
            for metric in measures.values()
        ]
        for e, rows in cells
    ]
    return table(headings, body)


def sizes(rows: pd.DataFrame, attack: str) -> str:
    wanted = rows[(rows["attack"] == attack) & (rows["metric"] == "auc") & (rows["party"] == "all")]
    row = wanted[wanted["game"] == "all"].iloc[0]
    games = wanted["game"].nunique() - 1
    word = "game" if games == 1 else "games"
    return f"{games} {word}; {row['n_members']} members and {row['n_nonmembers']} held-out records in all."


# ----------------------------------------------------------------- guarantee
def region(fpr: float, epsilon: float, delta: float) -> float:
    """Return the largest TPR that (ε, δ)-DP allows on one record in two worlds (Kairouz et al. 2015)."""
    return min(math.exp(epsilon) * fpr + delta, 1 - math.exp(-epsilon) * (1 - delta - fpr), 1.0)


def against_guarantee(found: pd.DataFrame) -> pd.DataFrame:
    """Return every TPR at a fixed FPR on records of parties under DP, beside what their (ε, δ) allows.

    Columns: sweep, scenario, cell, attack, world, party, rate, epsilon, delta, value, low, high, allowed,
    in_game. allowed: `region`; in_game: `evaluation.tpr_bound`, for games in which a party's size is fixed.
    """
    overall = found[found["game"] == "all"]
    guarantees = overall[overall["kind"] == "guarantee"].pivot_table(
        index=["cell", "party"], columns="metric", values="value"
    )
    rates = {f"tpr_at_fpr_{rate}": rate for rate in RATES}
    rows = overall[(overall["kind"] == "leakage") & overall["metric"].isin(list(rates))]
    rows = rows.dropna(subset=["value"]).assign(rate=rows["metric"].map(rates))
    rows = rows.join(guarantees, on=["cell", "party"])
    rows = rows[np.isfinite(rows["epsilon"]) & rows["delta"].notna()]
    # Two sweeps share cells, or have cells of the same games that other attacks stand beside this one in.
    same = ["scenario", "attack", "world", "party", "rate", "epsilon", "delta", "value", "low", "high"]
    rows = rows.drop_duplicates(same)
    arguments = list(zip(rows["rate"], rows["epsilon"], rows["delta"], strict=True))
    rows = rows.assign(
        allowed=[region(*each) for each in arguments],
        in_game=[tpr_bound(*each) for each in arguments],
    )
    columns = ["sweep", "scenario", "cell", "attack", "world", "party", "rate", "epsilon", "delta"]
    return rows[[*columns, "value", "low", "high", "allowed", "in_game"]]


def guarantee_section(found: pd.DataFrame, headline: Sequence[str]) -> list[str]:
    judged = against_guarantee(found)
    lines = ["## Does any attack exceed what (ε, δ)-DP allows?", ""]
    lines += [verdict_on_guarantee(judged), ""]
    first = headline[0]
    lines += [
        f"`{first}` on all parties' records, where all have DP, in world 'all', which owns the most: TPR",
        "(95 % interval), and in brackets what",
        "TPR ≤ e^ε·FPR + δ and TPR ≤ 1 − e^−ε(1 − δ − FPR) allow (Kairouz et al. 2015).",
        "",
    ]
    mine = judged[(judged["attack"] == first) & (judged["party"] == "all") & (judged["world"] == "all")]
    rows = []
    for _, cell in mine.groupby("cell", sort=False):
        by_rate = cell.set_index("rate")
        cells = [
            f"{Figure(*by_rate.loc[rate, ['value', 'low', 'high']])} [{by_rate.loc[rate, 'allowed']:.3f}]"
            if rate in by_rate.index
            else "n too small"
            for rate in RATES
        ]
        exceeds = "yes" if (cell["low"] > cell["allowed"]).any() else "no"
        rows.append([cell["scenario"].iloc[0], epsilon_words(cell["epsilon"].iloc[0]), *cells, exceeds])
    headings = ["data", "ε", *(f"FPR {100 * rate:g} %" for rate in RATES), "exceeds"]
    return lines + table(headings, rows)


def verdict_on_guarantee(judged: pd.DataFrame) -> str:
    """Say how many intervals lie wholly above what is allowed, and which is the worst."""
    if judged.empty:
        return "No cell is under DP at a party whose records are attacked."
    cells = judged["cell"].nunique()
    what = f"{len(judged)} rates of {judged['attack'].nunique()} attacks in {cells} cells under DP"
    above, broken = judged[judged["low"] > judged["allowed"]], judged[judged["low"] > judged["in_game"]]
    if above.empty:
        nearest = judged.loc[(judged["value"] / judged["allowed"]).idxmax()]
        none = "no interval lies above what the guarantee allows"
        return f"No: of {what}, {none}; the nearest is {_rate(nearest)}."
    worst = above.loc[(above["low"] / above["allowed"]).idxmax()]
    chance = f"about {0.025 * len(judged):.0f} would by chance if all lay on the bound"
    return (
        f"Of {what}, {len(above)} intervals lie above what the guarantee allows for one record ({chance}), "
        f"{len(broken)} above what it allows in games of fixed sizes; the worst is {_rate(worst)}."
        + (" **An implementation of DP is broken.**" if len(broken) > 0.05 * len(judged) else "")
    )


def _rate(row: pd.Series) -> str:
    return (
        f"`{row['attack']}` on {row['scenario']} (world '{row['world']}', party {row['party']}, "
        f"ε = {row['epsilon']:.3g}): TPR "
        f"{Figure(row['value'], row['low'], row['high'])} at {100 * row['rate']:g} % FPR, "
        f"where {row['allowed']:.3f} is allowed"
    )


# -------------------------------------------------------------------- own DP
@dataclass(frozen=True)
class OwnDP:
    """One data set's answer: leakage of party j under each variant, and differences paired by game."""

    scenario: str
    party: str
    epsilon: float
    leakage: dict[str, Figure]
    own_less_none: Figure
    own_less_all: Figure
    others_less_none: Figure


def own_dp(rows: pd.DataFrame, scenario: str, attack: str) -> OwnDP:
    """Measure one data set of the sweep `own_dp`; j is the party that alone has DP in the variant 'own'."""
    by_variant = {str(name): mine for name, mine in cells_of(rows, "variant")}
    epsilons = {
        party: spent(by_variant["own"], str(party))
        for party in by_variant["own"]["party"].unique()
        if party != "all"
    }
    party = str(min(epsilons, key=lambda name: epsilons[name]))

    def gap(a: str, b: str) -> Figure:
        return difference(by_variant[a], by_variant[b], "auc", party, attack)

    leakage = {name: figure(mine, "auc", party, attack) for name, mine in by_variant.items()}
    pairs = gap("own", "none"), gap("own", "all"), gap("others", "none")
    return OwnDP(scenario, party, epsilons[party], leakage, *pairs)


def answer(found: Sequence[OwnDP], attack: str) -> str:
    """Answer in two sentences whether j's own DP protects j; the words follow the paired intervals."""
    lower = [each.own_less_none.high < 0 for each in found]
    word = "Yes" if all(lower) else "In part" if any(lower) else "It does not show"
    first = "; ".join(
        f"on {each.scenario} (j = {each.party}) {_change(each.own_less_none)} the AUC of `{attack}` on j's "
        f"records, from {each.leakage['none']} to {each.leakage['own']}, by {each.own_less_none.signed}"
        for each in found
    )
    second = "; ".join(
        f"on {each.scenario} DP at all parties gives {each.leakage['all']}, {_compared(each.own_less_all)}, "
        f"and DP at everyone but j {each.leakage['others']}, which {_others(each.others_less_none)}"
        for each in found
    )
    epsilon = max(each.epsilon for each in found)
    return f"{word}: DP-SGD at j alone (ε = {epsilon:.2g}) {first}. For comparison, {second}."


def _change(gap: Figure) -> str:
    if not math.isfinite(gap.low):
        return "moves (too few games for an interval)"
    return "lowers" if gap.high < 0 else "raises" if gap.low > 0 else "does not measurably change"


def _compared(own_less_all: Figure) -> str:
    gap = f"(own − all: {own_less_all.signed})"
    if own_less_all.low > 0:
        return f"less than j's own DP alone {gap}"
    return f"{'more than' if own_less_all.high < 0 else 'not told apart from'} j's own DP alone {gap}"


def _others(others_less_none: Figure) -> str:
    gap = f"(others − none: {others_less_none.signed})"
    if others_less_none.high < 0:
        return f"protects j too {gap}"
    return f"{'exposes j more' if others_less_none.low > 0 else 'protects j not measurably'} {gap}"


def own_dp_section(found: pd.DataFrame, headline: Sequence[str]) -> list[str]:
    lines = ["## Does party j's own DP protect j when no one else has it?"]
    for world, owned in WORLDS.items():
        mine = in_world(found, world)
        answers = [own_dp(rows, str(scenario), headline[0]) for scenario, rows in cells_of(mine, "scenario")]
        lines += ["", f"In world '{world}' ({owned}): {answer(answers, headline[0])}"]
        for each in answers:
            lines += own_dp_table(mine[mine["scenario"] == each.scenario], each, world, headline)
    return lines


def own_dp_table(rows: pd.DataFrame, found: OwnDP, world: str, headline: Sequence[str]) -> list[str]:
    """Return the table of one data set in one world: who has DP, and what is found of party j."""
    attacks = [name for name in headline if name in set(rows["attack"])]
    body = [
        [variant, epsilon_words(spent(mine, found.party))]
        + [figure(mine, "auc", found.party, name) for name in attacks]
        + [figure(mine, "accuracy"), figure(mine, "accuracy", found.party)]
        for variant, mine in cells_of(rows, "variant")
    ]
    headings = ["who has DP", "ε of j", *(f"AUC of {name}" for name in attacks), "accuracy", "accuracy at j"]
    title = f"### {found.scenario}, world '{world}': attacks on the records of {found.party}"
    return ["", title, "", *table(headings, body)]


# ------------------------------------------------------------------ defences
def utility_of(rows: pd.DataFrame) -> str:
    """Return the metric of utility: the model's AUC, or accuracy where there are more than two classes."""
    return "auc" if math.isfinite(figure(rows, "auc").value) else "accuracy"


def matched(rows: pd.DataFrame, reference: str) -> dict[str, tuple[str, Figure]]:
    """Return defence → its strength nearest to the reference's utility, and the difference of utility."""
    by_variant = {str(name): mine for name, mine in cells_of(rows, "variant")}
    utility = utility_of(by_variant[reference])
    nearest: dict[str, tuple[str, Figure]] = {}
    for name, mine in by_variant.items():
        defence = name.rpartition(" ")[0] or name
        if defence == reference.rpartition(" ")[0]:
            continue
        gap = difference(mine, by_variant[reference], utility)
        if defence not in nearest or abs(gap.value) < abs(nearest[defence][1].value):
            nearest[defence] = (name, gap)
    return nearest


def is_matched(gap: Figure) -> bool:
    return abs(gap.value) <= TOLERANCE and not (gap.low > 0 or gap.high < 0)


def defences_section(found: pd.DataFrame, headline: Sequence[str]) -> list[str]:
    lines = [
        "## Every defence at matched utility",
        "",
        "For each defence the strength whose utility (the model's AUC) comes nearest to that of DP-SGD.",
        f"'Matched': the paired difference is at most {TOLERANCE:g} and its interval holds 0.",
        f"'AUC above DP': that of `{headline[0]}`, if it can be mounted, less that against DP-SGD, paired.",
    ]
    for scenario, rows in cells_of(found, "scenario"):
        names = [str(name) for name, _ in cells_of(rows, "variant")]
        for reference in [name for name in names if name.startswith("DP-SGD")]:
            nearest = matched(rows, reference)
            for world, owned in WORLDS.items():
                mine = dict(cells_of(in_world(rows, world), "variant"))
                by_variant = {str(name): found for name, found in mine.items()}
                lines += ["", f"### {scenario}, against {reference}, world '{world}' ({owned})", ""]
                lines += defences_table(by_variant, nearest, reference, headline)
    return lines


def defences_table(
    by_variant: dict[str, pd.DataFrame],
    nearest: dict[str, tuple[str, Figure]],
    reference: str,
    headline: Sequence[str],
) -> list[str]:
    utility, attacks = utility_of(by_variant[reference]), list(headline)
    body = []
    for name, gap in [(reference, Figure(0, math.nan, math.nan)), *nearest.values()]:
        mine = by_variant[name]
        first = next(attack for attack in attacks if attack in set(mine["attack"]))
        above = difference(mine, by_variant[reference], "auc", attack=first)
        body.append(
            [
                name,
                "reference"
                if name == reference
                else "matched"
                if is_matched(gap)
                else f"nearest ({gap.signed})",
                figure(mine, utility),
                *(figure(mine, "auc", attack=attack) for attack in attacks),
                "" if name == reference else f"{above.signed}{'' if first == attacks[0] else f' ({first})'}",
            ]
        )
    headings = ["defence", "utility", "the model's", *(f"AUC of {name}" for name in attacks), "AUC above DP"]
    return table(headings, body)


# -------------------------------------------------------------------- figure
def picture(found: pd.DataFrame, headline: Sequence[str]) -> str:
    """Draw the attack's AUC against the model's accuracy, a panel per world, a line along ε per data set."""
    attack = headline[0]
    names = [str(scenario) for scenario, _ in cells_of(found, "scenario")]
    styles = [(name, f"s{number}") for number, name in enumerate(names)]
    panels = {world: [line_of(rows, attack) for _, rows in cells_of(in_world(found, world), "scenario")]
              for world in WORLDS}  # fmt: skip
    known = [point for lines in panels.values() for line in lines for point in line]
    low = math.floor(min(x for x, _, _ in known) * 20) / 20
    high = math.ceil(max(x for x, _, _ in known) * 20) / 20
    bottom = min(0.45, math.floor(min(y for _, y, _ in known) * 20) / 20)
    parts = []
    for number, (world, lines) in enumerate(panels.items()):
        left = 64 + 470 * number
        frame = svg.Frame(svg.Scale(low, high, left, left + 400), svg.Scale(bottom, 1, 344, 34))
        parts += panel(frame, lines, styles, f"AUC of {attack}: {WORLDS[world]}")
    parts.append(svg.legend(950, 44, [*styles, ("guessing", "chance")]))
    return svg.chart(1086, 396, f"Leakage against accuracy, along ε, of {', '.join(names)}", *parts)


def line_of(rows: pd.DataFrame, attack: str) -> list[tuple[float, float, float]]:
    """Return (accuracy, the attack's AUC, ε) of each ε of one data set where both were measured."""
    points = [
        (figure(mine, "accuracy").value, figure(mine, "auc", attack=attack).value, float(str(e)))
        for e, mine in cells_of(rows, EPSILON)
    ]
    return [point for point in points if math.isfinite(point[0] + point[1])]


def panel(
    frame: svg.Frame,
    lines: Sequence[list[tuple[float, float, float]]],
    styles: Sequence[tuple[str, str]],
    title: str,
) -> list[str]:
    """Draw one world's lines; their ends are labelled with their ε."""
    parts = [frame.axes("accuracy of the model on held-out records", title)]
    parts.append(frame.line([(frame.x.low, 0.5), (frame.x.high, 0.5)], "chance", "guessing"))
    for (scenario, style), line in zip(styles, lines, strict=True):
        parts.append(frame.line([(x, y) for x, y, _ in line], style, scenario))
        for x, y, e in (line[0], line[-1]) if line else ():
            below = 14 if y > 0.95 else -5  # clear of the title
            words = "no DP" if math.isinf(e) else f"ε {e:g}"
            parts.append(svg.text(frame.x(x) + 5, frame.y(y) + below, words))
    return parts


# ----------------------------------------------------------------------- run
def swept(
    name: str, out: Path, data_dir: Path | None, workers: int, overrides: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, str], list[str]]:
    """Run one sweep and return its table, the cells that failed, and which attacks were left out and why."""
    console = Console(stderr=True)
    file = EXPERIMENTS / "sweeps" / f"{name}.toml"
    with live.bar(f"checking {name}", console) as progress:
        points = plan(file, out / "cells", data_dir, overrides, progress)
    with live.sweep(points, workers, console) as watch:
        failed = run(points, workers, watch=watch)
    found = table_of.write(points, out / name, failed)
    missing = table_of.left_out(found)
    found = found[found["kind"] != "not run"]
    found = found[found["observer"].isin(["", "participant"])]  # whom the sections are about
    found = found[found["world"].isin(["", *WORLDS])]
    failures = {f"{name}: {p.name}": failed[p.cell.key] for p in points if p.cell.key in failed}
    return found.assign(sweep=name), failures, [f"{name}: {sentence}" for sentence in missing]


@click.command()
@click.option("--out", default="runs/frontier", show_default=True, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--workers", default=4, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(SWEEPS), help="Only these sweeps.")
@click.option("--quick", is_flag=True, help="Few games, records and rounds, to see that it works.")
@click.option("--results", default=EXPERIMENTS / "results", type=click.Path(path_type=Path))
def main(
    out: Path, data_dir: Path | None, workers: int, only: tuple[str, ...], quick: bool, results: Path
) -> None:
    results = out / "results" if quick else results
    sections = {
        "epsilon": epsilon_section,
        "epsilon_large": epsilon_section,
        "own_dp": own_dp_section,
        "defences": defences_section,
    }
    parts: list[str] = []
    tables: dict[str, pd.DataFrame] = {}
    failures: dict[str, str] = {}
    left_out: list[str] = []
    headlines: dict[str, list[str]] = {}
    for name in only or SWEEPS:
        found, failed, missing = swept(name, out.resolve(), data_dir, workers, QUICK if quick else ())
        headlines[name] = load(EXPERIMENTS / "sweeps" / f"{name}.toml").headline
        tables[name], failures = found, failures | failed
        left_out += missing
        parts += ["", *sections[name](found, headlines[name])]
    whole = pd.concat(tables.values(), ignore_index=True)
    parts += ["", *guarantee_section(whole, next(iter(headlines.values())))]
    files.write_table(results / "frontier.parquet", whole[whole["game"] == "all"])
    if along := [tables[name] for name in ALONG_EPSILON if name in tables]:
        drawn = picture(pd.concat(along, ignore_index=True), next(iter(headlines.values())))
        files.write_text(results / "frontier.svg", svg.standalone(drawn))
        parts = ["", "![Leakage against accuracy](frontier.svg)", *parts]
    head = [
        "# The frontier: leakage, utility, ε",
        "",
        "From the view of one participant, in two worlds: 'all' owns every candidate's record, not knowing",
        "who trained on it; 'half' owns half of the members' and of the others'. ε is of the whole run, at",
        "δ = 1e-5, at every party unless said otherwise. Intervals are 95 %; differences are paired by game.",
        "Attacks were named before anything was run. Made by",
        f"`python experiments/studies/frontier.py{' --quick' if quick else ''}`.",
    ]
    head += [f"\n**Failed:** {where}: {why}" for where, why in failures.items()]
    head += [f"\n**Left out:** {sentence}." for sentence in left_out]
    files.write_text(results / "frontier.md", "\n".join([*head, *parts]) + "\n")
    click.echo(f"{results / 'frontier.md'}")
    if failures:
        raise click.ClickException(f"{len(failures)} points failed; the same command tries them again")


if __name__ == "__main__":
    main()
