"""A run's results as rich tables: what a person reads in the terminal."""

from __future__ import annotations

import math

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from attacks.membership import outsider
from fedsim.core.privacy import output
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.adversary import OWNS
from fedsim.core.scenario.protection import CentralDPSettings
from fedsim.evaluation.comparison import of_attacks
from fedsim.evaluation.results import in_world
from fedsim.report import course
from fedsim.report.verdicts import Leak
from fedsim.terminal import summary
from fedsim.terminal.formatting import METRICS, cell, intervals, new_table, number
from fedsim.terminal.round_table import by_round

_BY_OBSERVER = {"AUC": "auc", "TPR at 1 % FPR": "tpr_at_fpr_0.01"}


# More victims than this make a table of attacks × victims too wide for a terminal.
_MANY_VICTIMS = 6


SHOWN = 5
"""Attacks that are shown unless all are asked for: the strongest."""


def show(run: RunDirectory, console: Console, everything: bool = False) -> None:
    """Print the verdict, the strongest attacks, and every party's leakage, guarantee and utility.

    everything: all attacks, and each of them on each party
    """
    console.print()
    if not run.has("leakage"):
        _unfinished(run, console)
        return
    leakage, leaks = in_world(run, run.table("leakage")), summary.strongest(run)
    level = {"bad": "bold red", "warn": "bold yellow"}.get(summary.verdict(run, leaks).level, "bold")
    for place, sentence in enumerate(summary.sentences(run, leaks)):
        console.print(sentence, style="" if place else level, highlight=False, markup=False)
    console.print(_ladder(run))
    ranked = summary.ranked(leakage)
    shown = ranked if everything else ranked[:SHOWN]
    console.print(_leakage(of_attacks(leakage, shown), [key for key in ranked if key in shown]))
    if len(shown) < len(ranked):
        rest = f"The other {len(ranked) - len(shown)} attacks, and each attack on each party: "
        console.print(f"{rest}fedsim show {run.path} --all", style="dim", markup=False, soft_wrap=True)
    console.print(_parties(run, leaks))
    _more(run, console, leakage, everything)
    names = [attack for observer, attack in shown if observer == "participant"]
    console.print(f"[dim]{escape(summary.assumptions(run, names))}[/dim]", highlight=False)
    _folder(run, console)


def _unfinished(run: RunDirectory, console: Console) -> None:
    console.print(course.progress(run), style="yellow", highlight=False)
    if run.has("rounds"):
        console.print(_parties(run, {}))
    console.print("Go on with: fedsim run", str(run.path), "--resume", markup=False, soft_wrap=True)
    _folder(run, console)


def _folder(run: RunDirectory, console: Console) -> None:
    console.print(f"\nRun folder: [bold]{escape(str(run.path))}[/bold]", highlight=False, soft_wrap=True)


def _more(run: RunDirectory, console: Console, leakage: pd.DataFrame, everything: bool) -> None:
    """Print central DP, each attack on each party where all is asked for, observers, and what was not run."""
    central = run.scenario.federation.central_dp
    if central is not None:
        console.print(_central(run, central), highlight=False)
    rounds = by_round(run)
    if rounds is not None:
        console.print(rounds)
    if everything:
        console.print(_exposure(leakage))
    for part in _observers(run, leakage):
        console.print(part, highlight=False)
    for sentence in _not_run(run):
        console.print(sentence, style="yellow", highlight=False, markup=False)


def _parties(run: RunDirectory, leaks: dict[str, Leak]) -> Table:
    """Return a row per party: guarantee, the strongest attack on its records, the final model."""
    last = run.final_rounds()
    table = new_table(
        "Party by party: guarantee, AUC of the strongest attack, final model on held-out records"
    )
    for heading in ("party", "DP-SGD", "leakage\n(AUC)", "accuracy", "AUC", "loss", "held out"):
        table.add_column(heading, justify="left" if heading in ("party", "DP-SGD") else "right", no_wrap=True)
    names = [*run.manifest.get("parties", {}), "all"]
    for name in [name for name in names if name in set(last["party"])]:
        rows = last[last["party"] == name]
        shown = escape(name)
        if name == run.manifest.get("adversary"):
            shown += " [red](adversary)[/red]"
        table.add_row(
            shown,
            "" if name == "all" else guarantee(run, name, rows),
            _leak(leaks.get(name)),
            *(number(rows[column].mean()) for column in ("accuracy", "auc", "loss")),
            f"{rows['n_heldout'].mean():.0f}",
            end_section=name == names[-2],
        )
    return table


def _leak(leak: Leak | None) -> str:
    if leak is None or not math.isfinite(leak.value):
        return ""
    return f"{number(leak.value)}\n[dim]{number(leak.low, 2)}-{number(leak.high, 2)}[/dim]"


def guarantee(run: RunDirectory, party: str, rows: pd.DataFrame) -> str:
    """Say what a party has spent: 'off', or 'ε = 7.99, δ = 1e-05'."""
    settings = run.scenario.dp_of(party)
    if settings is None:
        return "off"
    refused = " (budget spent)" if (rows["status"] == "refused").any() else ""
    unit = " a person" if settings.unit == "person" else ""
    return f"ε = {rows['epsilon'].max():.3g}{unit}, δ = {settings.delta:.0e}{refused}"


def _central(run: RunDirectory, central: CentralDPSettings) -> str:
    """Say what central DP has spent on a whole party."""
    spent = run.table("rounds")["party_epsilon"].max()
    return (
        f"Central DP: party-level ε = {spent:.3g}, δ = {central.delta:.0e}: a promise about whole parties, "
        "none about a record beyond what its noise hides"
    )


def _ladder(run: RunDirectory) -> Table:
    """Return a row a world: what the adversary owns there, and what its strongest attack finds."""
    rungs, seconds = run.table("ladder"), run.manifest.get("world_seconds", {}).values()
    table = new_table("What the adversary owns, and the strongest attack in that world, with 95 % intervals")
    table.add_column("world", no_wrap=True)
    table.add_column("it owns", max_width=26)
    table.add_column("strongest attack", max_width=16)
    for heading in ("AUC", "TPR at\n1 % FPR", "members +\nheld out", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for world, rows in rungs.groupby("world", sort=False):
        row, name = rows.iloc[0], str(world)
        took = [of_game[name] for of_game in seconds if name in of_game]
        rate = rows[["tpr", "tpr_low", "tpr_high", "note"]].set_axis(["value", "low", "high", "note"], axis=1)
        table.add_row(
            name,
            OWNS[name],
            f"{escape(row['attack'])} (of {row['attacks']})",
            cell(rows),
            cell(rate),
            f"{row['n_members']} + {row['n_nonmembers']}",
            f"{sum(took) / len(took):.0f}" if took else "-",
        )
    table.caption = (
        "Assumed: the parties' exact sizes, w_0, the training's settings, and that half of those asked about "
        "are members. Intervals allow for having chosen the strongest attack. All below is of world "
        f"'{escape(run.scenario.adversary.ladder[0])}'."
    )
    table.caption_justify = "left"
    return table


def _leakage(leakage: pd.DataFrame, order: list[tuple[str, str]]) -> Table:
    """Return a row per attack in ``order``, (observer, attack) each."""
    overall = _over_games(leakage)
    overall = overall[overall["party"] == "all"]
    table = new_table(f"Strongest attacks over all parties, {intervals(leakage)}")
    several = _add_attack_columns(table, overall)
    metrics, too_few = _resolvable(of_attacks(overall, order))
    for metric in metrics:
        table.add_column(METRICS[metric], justify="right", no_wrap=True)
    for observer, attack in order:
        rows = of_attacks(overall, [(observer, attack)])
        cells = [cell(rows[rows["metric"] == metric]) for metric in metrics]
        table.add_row(*([escape(observer)] if several else []), escape(attack), *cells)
    table.caption = (
        "Balanced accuracy and realised FPR: at the threshold that the adversary sets on its own records."
        + too_few
    )
    table.caption_justify = "left"
    return table


def _resolvable(rows: pd.DataFrame) -> tuple[list[str], str]:
    """Return the metrics that the records can resolve for some attack, and a sentence about the others."""
    known = {metric for metric in METRICS if rows.loc[rows["metric"] == metric, "value"].notna().any()}
    missing = [" ".join(METRICS[metric].split()) for metric in METRICS if metric not in known]
    n = int(rows["n_nonmembers"].max())
    sentence = f" Too few held-out records ({n}) for {', '.join(missing)}." if missing else ""
    return [metric for metric in METRICS if metric in known], sentence


def _add_attack_columns(table: Table, rows: pd.DataFrame) -> bool:
    """Add the columns that name an attack; return whether that of the observer is among them."""
    several = rows["observer"].nunique() > 1
    for heading in ["observer", "attack"] if several else ["attack"]:
        table.add_column(heading, no_wrap=True)
    return several


def _exposure(leakage: pd.DataFrame) -> Table:
    auc = _over_games(leakage)
    auc = auc[(auc["metric"] == "auc") & (auc["party"] != "all")]
    victims = list(dict.fromkeys(auc["party"]))
    if len(victims) > _MANY_VICTIMS:
        return _exposure_of_many(auc, victims)
    table = new_table(f"AUC per attack and victim party (members + held out), {intervals(leakage)}")
    several = _add_attack_columns(table, auc)
    for victim in victims:
        n = auc[auc["party"] == victim].iloc[0]
        size = f"{n['n_members']:.0f} + {n['n_nonmembers']:.0f}"
        table.add_column(f"{escape(victim)}\n{size}", justify="right", no_wrap=True)
    for (observer, attack), rows in auc.groupby(["observer", "attack"], sort=False):
        cells = [cell(rows[rows["party"] == victim]) for victim in victims]
        table.add_row(*([escape(str(observer))] if several else []), escape(str(attack)), *cells)
    return table


def _exposure_of_many(auc: pd.DataFrame, victims: list[str]) -> Table:
    """Return a row per victim, with the attacks that find most on average; the table would be too wide."""
    means = auc.groupby(["observer", "attack"])["value"].mean()
    best = [(str(observer), str(attack)) for observer, attack in means.nlargest(5).index]
    several = auc["observer"].nunique() > 1
    table = new_table(
        "AUC per victim party (members + held out) of the five strongest attacks, 95 % intervals"
    )
    table.add_column("party")
    for observer, attack in best:
        name = f"{observer}\n{attack}" if several else attack
        table.add_column(escape(name), justify="right")
    for victim in victims:
        rows = auc[auc["party"] == victim]
        n = rows.iloc[0]
        name = f"{escape(victim)}\n{n['n_members']:.0f} + {n['n_nonmembers']:.0f}"
        table.add_row(name, *(cell(of_attacks(rows, [key])) for key in best))
    return table


def _observers(run: RunDirectory, leakage: pd.DataFrame) -> list[Table | str]:
    """Return the strongest attack of each of several observers, and how often each names the right party."""
    overall = _over_games(leakage)
    overall = overall[overall["party"] == "all"]
    parts: list[Table | str] = []
    if overall["observer"].nunique() > 1:
        table = new_table("Observers: the same candidates, the attack with the largest AUC of each")
        for heading, metric in {"observer": "", "attack": "", **_BY_OBSERVER}.items():
            table.add_column(heading, justify="right" if metric else "left", no_wrap=True)
        for observer, rows in overall.groupby("observer", sort=False):
            best = rows[rows["metric"] == "auc"].nlargest(1, "value")["attack"].iloc[0]
            of_best = rows[rows["attack"] == best]
            cells = [cell(of_best[of_best["metric"] == metric]) for metric in _BY_OBSERVER.values()]
            table.add_row(
                escape(str(observer)), f"{escape(str(best))} (of {rows['attack'].nunique()})", *cells
            )
        table.caption = "The best of several attacks on the same records: its figures err upwards."
        table.caption_justify = "left"
        parts.append(table)
    parts += _answers(run, overall)
    return parts + (_sources(run.table("sources")) if run.has("sources") else [])


def _not_run(run: RunDirectory) -> list[str]:
    """Say which attacks could not be run, and why."""
    if not run.has("not_run"):
        return []
    rows = run.table("not_run").drop_duplicates(["observer", "attack"])
    return [
        f"Not run: {', '.join(alike['attack'])} of the {observer}: {reason}"
        for (observer, reason), alike in rows.groupby(["observer", "reason"], sort=False)
    ]


def _answers(run: RunDirectory, overall: pd.DataFrame) -> list[Table | str]:
    """Say what an outsider's queries spent, where the output policy states an ε for one answer."""
    policy = run.scenario.adversary.output
    attacks = sorted(set(overall[overall["observer"] == "outsider"]["attack"]))
    if not attacks or output.spent(policy, 1) is None:
        return []
    candidates = run.table("scores").query("game == 0")["candidate"].nunique()
    counts = {name: outsider.answers_asked(name, candidates, policy.queries) for name in attacks}
    most = max(attacks, key=lambda name: counts[name])
    epsilon, delta = output.spent(policy, counts[most]) or (math.nan, math.nan)
    total = f"ε = {epsilon:.6g}" + (f", δ = {delta:.2g}" if delta else "")
    return [
        f"Outsider: an answer costs ε = {policy.epsilon:g}; the {counts[most]} answers of "
        f"{most} cost {total} a game (basic composition)"
    ]


def _sources(sources: pd.DataFrame) -> list[Table | str]:
    """Say for each observer how often its best rule names the party of a member."""
    overall = sources[sources["game"] == "all"]
    lines: list[Table | str] = []
    for observer, rows in overall.groupby("observer", sort=False):
        rule = rows[rows["metric"] == "accuracy"].nlargest(1, "value")["attack"].iloc[0]
        best = rows[rows["attack"] == rule].set_index("metric")
        value, low, high = (float(best[column]["accuracy"]) for column in ("value", "low", "high"))
        n = best["n"].iloc[0]
        guesses = [f"{float(best['value'][metric]):.0%}" for metric in ("chance", "label_prior")]
        lines.append(
            f"Which party? {observer} ({rule}): right for {value:.0%} ({low:.0%} to {high:.0%}) of {n} "
            f"members; chance {guesses[0]}, labels alone {guesses[1]}"
        )
    return lines


def _over_games(leakage: pd.DataFrame) -> pd.DataFrame:
    return leakage[leakage["game"] == "all"]
