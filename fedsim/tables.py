"""A run's results as rich tables: what a person reads in the terminal."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from attacks import active, outsider, suite
from clients.sectors import SECTORS
from fedsim.audit import Audit
from fedsim.data.schema import Column
from fedsim.data.sources import DataSet
from fedsim.results import RunDirectory
from fedsim.scenario import CentralDPSettings

# Headings of two lines, so that a table of intervals fits into 80 columns.
_METRICS = {
    "auc": "AUC\n",
    "balanced_accuracy": "balanced\naccuracy",
    "fpr": "realised\nFPR",
    "tpr_at_fpr_0.1": "TPR at\n10 % FPR",
    "tpr_at_fpr_0.01": "TPR at\n1 % FPR",
    "tpr_at_fpr_0.001": "TPR at\n.1 % FPR",
}


_BY_OBSERVER = {"AUC": "auc", "TPR at 1 % FPR": "tpr_at_fpr_0.01"}


# More victims than this make a table of attacks × victims too wide for a terminal.
_MANY_VICTIMS = 6


def show(run: RunDirectory, console: Console) -> None:
    """Print utility and guarantee per party, leakage per attack, and leakage per attack and party."""
    console.print()
    console.print(_utility(run))
    central = run.scenario.federation.central_dp
    if central is not None:
        console.print(_central(run, central), highlight=False)
    if run.has("leakage"):
        leakage = run.table("leakage")
        console.print(_leakage(leakage))
        console.print(_exposure(leakage))
        for part in _observers(run, leakage):
            console.print(part, highlight=False)
        console.print(f"[dim]{_assumptions(run)}[/dim]", highlight=False)
    else:
        console.print("No leakage yet: the run is not finished (go on with --resume).")
    console.print(f"\nRun folder: [bold]{run.path}[/bold]", highlight=False, soft_wrap=True)


def _utility(run: RunDirectory) -> Table:
    rounds = run.table("rounds")
    last = rounds.sort_values("round", kind="stable").groupby(["game", "party"], as_index=False).last()
    record = SECTORS[run.scenario.parties.sector].record
    table = _table(f"{run.scenario.name}: the final model on held-out {record}s")
    for heading in ("party", "DP-SGD", "accuracy", "AUC", "loss", "held out"):
        table.add_column(heading, justify="left" if heading in ("party", "DP-SGD") else "right")
    names = [*run.manifest.get("parties", {}), "all"]
    for name in [name for name in names if name in set(last["party"])]:
        rows = last[last["party"] == name]
        shown = f"{name} [red](adversary)[/red]" if name == run.manifest.get("adversary") else name
        table.add_row(
            shown,
            "" if name == "all" else guarantee(run, name, rows),
            *(_number(rows[column].mean()) for column in ("accuracy", "auc", "loss")),
            f"{rows['n_heldout'].mean():.0f}",
            end_section=name == names[-2],
        )
    return table


def guarantee(run: RunDirectory, party: str, rows: pd.DataFrame) -> str:
    """Say what a party has spent: 'off', or 'ε = 7.99, δ = 1e-05'."""
    settings = run.scenario.dp_of(party)
    if settings is None:
        return "off"
    refused = " (budget spent)" if (rows["status"] == "refused").any() else ""
    return f"ε = {rows['epsilon'].max():.3g}, δ = {settings.delta:.0e}{refused}"


def _central(run: RunDirectory, central: CentralDPSettings) -> str:
    """Say what central DP has spent on a whole party."""
    spent = run.table("rounds")["party_epsilon"].max()
    return (
        f"Central DP: party-level ε = {spent:.3g}, δ = {central.delta:.0e}: a promise about whole parties, "
        "none about a record beyond what its noise hides"
    )


def _leakage(leakage: pd.DataFrame) -> Table:
    overall = _over_games(leakage)
    overall = overall[overall["party"] == "all"]
    sizes = overall[overall["metric"] == "auc"].iloc[0]
    title = (
        f"Leakage to the adversary on {sizes['n_members']:.0f} members and "
        f"{sizes['n_nonmembers']:.0f} held-out records, with 95 % intervals"
    )
    table = _table(title)
    table.add_column("attack", no_wrap=True)
    for heading in _METRICS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for attack, rows in overall.groupby("attack", sort=False):
        cells = [_cell(rows[rows["metric"] == metric]) for metric in _METRICS]
        table.add_row(str(attack), *cells)
    table.caption = (
        "Balanced accuracy and realised FPR: at the threshold that the adversary sets on its own records."
    )
    table.caption_justify = "left"
    return table


def _exposure(leakage: pd.DataFrame) -> Table:
    auc = _over_games(leakage)
    auc = auc[(auc["metric"] == "auc") & (auc["party"] != "all")]
    victims = list(dict.fromkeys(auc["party"]))
    if len(victims) > _MANY_VICTIMS:
        return _exposure_of_many(auc, victims)
    table = _table("AUC per attack and victim party (members + held out), with 95 % intervals")
    table.add_column("attack", no_wrap=True)
    for victim in victims:
        n = auc[auc["party"] == victim].iloc[0]
        size = f"{n['n_members']:.0f} + {n['n_nonmembers']:.0f}"
        table.add_column(f"{victim}\n{size}", justify="right", no_wrap=True)
    for attack, rows in auc.groupby("attack", sort=False):
        table.add_row(str(attack), *(_cell(rows[rows["party"] == victim]) for victim in victims))
    return table


def _exposure_of_many(auc: pd.DataFrame, victims: list[str]) -> Table:
    """Return a row per victim, with the attacks that find most on average; the table would be too wide."""
    best = auc.groupby("attack")["value"].mean().nlargest(5).index
    table = _table("AUC per victim party (members + held out) of the five strongest attacks, 95 % intervals")
    for heading in ("party", *best):
        table.add_column(str(heading), justify="left" if heading == "party" else "right")
    for victim in victims:
        rows = auc[auc["party"] == victim]
        n = rows.iloc[0]
        name = f"{victim}\n{n['n_members']:.0f} + {n['n_nonmembers']:.0f}"
        table.add_row(name, *(_cell(rows[rows["attack"] == attack]) for attack in best))
    return table


def _observers(run: RunDirectory, leakage: pd.DataFrame) -> list[Table | str]:
    """Return the strongest attack of each of several observers, and how often each names the right party."""
    overall = _over_games(leakage)
    overall = overall[overall["party"] == "all"]
    observer = overall["attack"].map(_observer)
    found: list[Table | str] = []
    if observer.nunique() > 1:
        table = _table("Observers: the same candidates, the attack with the largest AUC of each")
        for heading, metric in {"observer": "", "attack": "", **_BY_OBSERVER}.items():
            table.add_column(heading, justify="right" if metric else "left", no_wrap=True)
        for name, rows in overall.groupby(observer, sort=False):
            best = rows[rows["metric"] == "auc"].nlargest(1, "value")["attack"].iloc[0]
            mine = rows[rows["attack"] == best]
            cells = [_cell(mine[mine["metric"] == metric]) for metric in _BY_OBSERVER.values()]
            table.add_row(str(name), f"{str(best).split('/')[-1]} (of {rows['attack'].nunique()})", *cells)
        table.caption = "The best of several attacks on the same records: its figures err upwards."
        table.caption_justify = "left"
        found.append(table)
    found += _answers(run, overall)
    return found + (_sources(run.table("sources")) if run.has("sources") else [])


def _answers(run: RunDirectory, overall: pd.DataFrame) -> list[Table | str]:
    """Say what an outsider's queries spent, where the output policy states an ε for one answer."""
    policy, attacks = run.scenario.adversary.output, sorted(set(overall["attack"]) & set(outsider.SUITE))
    if not attacks or outsider.spent(policy, 1) is None:
        return []
    candidates = len(run.read_candidates(0))
    asked = {name: outsider.answers_asked(name, candidates, policy.queries) for name in attacks}
    most = max(attacks, key=lambda name: asked[name])
    epsilon, delta = outsider.spent(policy, asked[most]) or (math.nan, math.nan)
    total = f"ε = {epsilon:.6g}" + (f", δ = {delta:.2g}" if delta else "")
    return [
        f"Outsider: an answer costs ε = {policy.epsilon:g}; the {asked[most]} answers of "
        f"{most.split('/')[-1]} cost {total} a game (basic composition)"
    ]


def _sources(sources: pd.DataFrame) -> list[Table | str]:
    """Say for each observer how often its best rule names the party of a member."""
    overall = sources[sources["game"] == "all"]
    observer = overall["attack"].map(_observer)
    lines: list[Table | str] = []
    for name, rows in overall.groupby(observer, sort=False):
        strongest = rows[rows["metric"] == "accuracy"].nlargest(1, "value")["attack"].iloc[0]
        best = rows[rows["attack"] == strongest].set_index("metric")
        value, low, high = (float(best[column]["accuracy"]) for column in ("value", "low", "high"))
        rule, n = str(strongest).split("/")[-1], best["n"].iloc[0]
        guesses = [f"{float(best['value'][metric]):.0%}" for metric in ("chance", "label_prior")]
        lines.append(
            f"Which party? {name} ({rule}): right for {value:.0%} ({low:.0%} to {high:.0%}) of {n} members; "
            f"chance {guesses[0]}, labels alone {guesses[1]}"
        )
    return lines


def _observer(attack: str) -> str:
    """Return who mounts an attack: a bare name is the participant's."""
    return attack.split("/")[0] if "/" in attack else "participant"


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.padding = (0, 1, 0, 0)
    return table


def _over_games(leakage: pd.DataFrame) -> pd.DataFrame:
    return leakage[leakage["game"] == "all"]


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "-"
    row = rows.iloc[0]
    if not math.isfinite(row["value"]):
        return "[dim]n too\nsmall[/dim]" if "resolvable" in str(row["note"]) else "-"
    digits = 3 if row["high"] < 0.1 else 2
    interval = f"{_number(row['low'], digits)}-{_number(row['high'], digits)}"
    return f"{_number(row['value'])}\n[dim]{interval}[/dim]"


def _number(value: float, digits: int = 3) -> str:
    """Say 0.5861 as '.586': shares are read by the column, and their zeros only take room."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _assumptions(run: RunDirectory) -> str:
    scenario = run.scenario
    settings = scenario.adversary
    attacks = suite.attacks_of(scenario)
    assumed = "; ".join(dict.fromkeys(attack.assumes for attack in attacks if attack.assumes))
    kind = "a participant that deviates" if settings.active else "an ordinary participant"
    return (
        f"Adversary: {run.manifest.get('adversary')}, {kind}. {active.assumption(settings)}"
        "It sees every global model that it is sent, its own records and updates, and the public settings. "
        "It is assumed to hold the candidate records, not knowing who trained on them. "
        f"Its attacks rest on: {assumed}."
    )


def attack_list(attacks: list[suite.Attack]) -> Table:
    """Return what each attack sees, needs and assumes, and its source."""
    table = _table("Attacks; a participant's where no other observer is named")
    table.add_column("attack", no_wrap=True)
    for heading in ("sees", "needs", "assumes", "source"):
        table.add_column(heading)
    for attack in attacks:
        table.add_row(attack.name, attack.sees, attack.needs, attack.assumes, attack.source)
    return table


def data_list(entries: list[DataSet]) -> Table:
    """Return the named data sets, one a row."""
    table = _table("Named data sets")
    table.add_column("name", no_wrap=True)
    for heading in ("what", "records", "classes", "licence", "from"):
        table.add_column(heading, justify="right" if heading in ("records", "classes") else "left")
    for entry in entries:
        source = "embedded" if entry.embedded else "download"
        classes = str(len(entry.schema.classes))
        table.add_row(entry.name, entry.title, str(entry.rows), classes, entry.licence, source)
    return table


def data_set(entry: DataSet, console: Console) -> None:
    """Print where a named data set comes from, and its declared columns."""
    schema = entry.schema
    facts = {
        entry.name: entry.title,
        "origin": entry.origin,
        "licence": entry.licence,
        "records": f"{entry.rows}, each a {entry.record}",
        "label": f"{schema.label}: {_some(schema.classes)}",
        "party": schema.party or "none",
        "person": schema.person or "none",
        "notes": entry.notes,
    }
    for word, text in facts.items():
        if text:
            console.print(f"[bold]{word}[/bold]  {text}", highlight=False, soft_wrap=True)
    for file in entry.files:
        text = f"[bold]file[/bold]  {file.name}  SHA-256 {file.sha256}"
        console.print(text, highlight=False, soft_wrap=True)
    table = _table(f"{len(schema.columns)} columns")
    for heading in ("column", "kind", "declared"):
        table.add_column(heading)
    for column in schema.columns[:40]:
        table.add_row(column.name, column.kind, _declared(column))
    if len(schema.columns) > 40:
        table.add_row("…", "", f"and {len(schema.columns) - 40} more")
    console.print(table)


def _declared(column: Column) -> str:
    if column.bounds is not None:
        return f"{column.bounds[0]:g} to {column.bounds[1]:g}"
    return _some(column.categories or ())


def _some(values: tuple[str, ...], limit: int = 12) -> str:
    return ", ".join(values[:limit]) + (" …" if len(values) > limit else "")


def runs(found: list[RunDirectory]) -> Table:
    """Return the list of runs."""
    table = _table("Runs")
    for heading in ("run", "scenario", "games", "rounds", "engine", "state", "created"):
        table.add_column(heading)
    for run in found:
        manifest, scenario = run.manifest, run.scenario
        done = len(manifest.get("games", {}))
        state = "complete" if manifest.get("complete") else f"{done} of {scenario.games} games"
        table.add_row(
            str(run.path.name),
            scenario.name,
            str(scenario.games),
            str(scenario.federation.rounds),
            str(manifest.get("engine", "")),
            state,
            str(manifest.get("created", "")),
        )
    return table


def sweep(compact: pd.DataFrame, title: str) -> Table:
    """Return a sweep's points, a row for each of the attacks that were named in advance (`sweep.compact`)."""
    measures = {"accuracy": "accuracy", "utility_auc": "AUC", "auc": "attack's\nAUC"}
    measures |= {metric: _METRICS[metric] for metric in ("tpr_at_fpr_0.01", "tpr_at_fpr_0.001")}
    labels = list(compact.columns[: compact.columns.get_loc("epsilon")])
    shown = [name for name in labels if name == "scenario" or compact[name].nunique() > 1]
    table = _table(title)
    for name in [*shown, "ε", "attack"]:
        table.add_column(str(name).replace(".", ".\n"), no_wrap=name != "scenario")
    for heading in measures.values():
        table.add_column(heading, justify="right", no_wrap=True)
    before: list[object] = []
    for row in compact.to_dict("records"):
        point = [row[name] for name in labels]
        own = [_label(row[name]) for name in shown] + [_label(row["epsilon"])]
        cells = [_interval_cell(row, measure) for measure in measures]
        table.add_row(*(own if point != before else [""] * len(own)), str(row["attack"]), *cells)
        before = point
    table.caption = "All parties and games, with 95 % intervals. ε: the largest of the parties'."
    table.caption_justify = "left"
    return table


def _label(value: object) -> str:
    return "∞" if value == math.inf else f"{value:.3g}" if isinstance(value, float) else str(value)


def _interval_cell(row: dict[Any, Any], measure: str) -> str:
    value, low, high = (row[f"{measure}{end}"] for end in ("", "_low", "_high"))
    if not math.isfinite(low):
        return _number(value)
    digits = 3 if high < 0.1 else 2
    return f"{_number(value)}\n[dim]{_number(low, digits)}-{_number(high, digits)}[/dim]"


def audits(found: list[Audit]) -> Table:
    """Return the bounds of audits of one party, a statistic a row."""
    table = _table(f"Audit of {found[0].party}: ε at δ = {found[0].delta:.0e}")
    for heading in ("vantage", "method", "statistic"):
        table.add_column(heading, no_wrap=True)
    for heading in ("lower", "upper", "ceiling", "right", "canaries", "confidence"):
        table.add_column(heading, justify="right")
    for audit in found:
        for statistic, lower in audit.lower.items():
            table.add_row(
                audit.vantage,
                audit.method,
                statistic,
                f"[bold red]{lower:.2f}[/bold red]" if lower > audit.upper else f"{lower:.2f}",
                "∞" if math.isinf(audit.upper) else f"{audit.upper:.2f}",
                f"{audit.ceiling[statistic]:.2f}",
                f"{audit.correct}/{audit.guesses}",
                str(audit.canaries),
                f"{audit.confidence:.0%}",
            )
        for statistic, value in audit.estimate.items():
            table.add_row(audit.vantage, audit.method, statistic, f"[dim]≈ {value:.2f}[/dim]")
    table.caption = (
        "Lower: shown by the audit. Upper: guaranteed by the accountant. Ceiling: what an audit of this size "
        "shows at most. f-dp and gaussian assume a trade-off between errors as of Gaussian noise, "
        "dp-sgd one as of DP-SGD with some other noise. ≈: an estimate, "
        "no bound: it takes the canaries of one run to be independent."
    )
    table.caption_justify = "left"
    return table


def audit_words(audit: Audit) -> str:
    """Say in one sentence what an audit means."""
    lower, seen = max(audit.lower.values()), _SEEN[audit.vantage]
    if audit.violated:
        return (
            f"{audit.party}: BROKEN: {seen} shows ε ≥ {lower:.2f}, above the guaranteed {audit.upper:.2f}; "
            "the implementation or its accounting is wrong."
        )
    shown = f"{seen} shows ε ≥ {lower:.2f} ({audit.confidence:.0%} confidence)"
    if math.isinf(audit.upper):
        return f"{audit.party}, without DP (ε = ∞): {shown}."
    guaranteed = f"the accountant guarantees ε ≤ {audit.upper:.2f}"
    return f"{audit.party}: {shown}, {guaranteed}; the truth is in between."


_SEEN = {
    "white-box": "the white box, which sees every step,",
    "participant": "a participant, from the models it is sent,",
}
