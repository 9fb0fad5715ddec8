"""The page: findings and words in a Jinja template, with every figure inside it."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedsim.core.errors import InputError
from fedsim.core.files import write_text
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation import guarantees
from fedsim.evaluation.leakage import FALSE_POSITIVE_RATES, PRIORS
from fedsim.report import beyond, cards, charts, course, figures, findings, letters, svg, verdicts, words
from fedsim.report.findings import Findings

METRICS = {
    "auc": ("AUC", "share of member–non-member pairs in the right order; guessing .5"),
    "balanced_accuracy": ("balanced accuracy", "at the adversary's own threshold; guessing .5"),
    "tpr_at_threshold": ("TPR", "members found, at the adversary's own threshold"),
    "fpr": ("FPR", "non-members accused, at the adversary's own threshold"),
    "advantage": ("advantage", "TPR − FPR at the adversary's own threshold; guessing 0"),
    "advantage_max": ("largest advantage", "TPR − FPR at the best threshold; errs upwards, guessing near 0"),
    "tpr_at_fpr_0.1": ("TPR at 10\u202f% FPR", "guessing .1"),
    "tpr_at_fpr_0.01": ("TPR at 1\u202f% FPR", "guessing .01"),
    "tpr_at_fpr_0.001": ("TPR at .1\u202f% FPR", "guessing .001"),
}


def write(run: RunDirectory, others: Sequence[RunDirectory] = (), priors: Sequence[float] = ()) -> Path:
    """Write ``report.html`` and ``figures/*.svg`` into the run's folder; return the page's path.

    others: finished runs of the same federation with other adversaries, for the exposure matrix.
    priors: shares of members among those whom the adversary asks about, `PRIORS` where none. The same run
    gives the same bytes.

    Raises:
        InputError: a file is missing or corrupt, cannot be written, or another run does not fit.
    """
    results = findings.gather(run, others, priors or PRIORS)
    drawn = draw(results)
    for name, picture in drawn.items():
        write_text(run.path / "figures" / f"{name}.svg", svg.standalone(picture))
    path = run.path / "report.html"
    write_text(path, render(results, drawn))
    return path


def draw(results: Findings) -> dict[str, str]:
    """Return the figures that the run has data for, by name."""
    drawn: dict[str, str] = {}
    if len(results.rounds):
        utility = results.rounds
        drawn["accuracy"] = figures.utility(utility, "accuracy", "held-out accuracy")
        if utility["auc"].notna().any():  # of letters, which have no classes, there is none
            drawn["auc"] = figures.utility(utility, "auc", "held-out AUC")
        private = {party.name for party in results.parties if party.epsilon is not None}
        if private:
            drawn["epsilon"] = figures.epsilon(utility[utility["party"].isin(private)])
        sent = utility[(utility["round"] > 0) & (utility["party"] != "all")]
        if results.run.scenario.adversary.active and (sent["update_norm"] > 0).any():
            moving = sent[sent["update_norm"] > 0]
            drawn["norms"] = figures.norms(moving, str(results.run.manifest["adversary"]))
    drawn |= {f"beyond-{part.name}": part.picture for part in beyond.sections(results.run)}
    written = letters.section(results.run)
    if written is not None:
        drawn["letters"] = letters.picture(results.run.table("memorisation"), written.bits)
    confidence = _confidence(results)
    if confidence is not None and len(results.rounds):
        last = confidence[0][confidence[0]["round"] == confidence[0]["round"].max()]
        means = confidence[1].groupby("round", as_index=False)[["threshold", "auc", "low", "high"]].mean()
        counts = last.groupby("edge", as_index=False)[["members", "nonmembers"]].sum()
        drawn["gap"] = figures.gap(counts, float(means["threshold"].iloc[-1]))
        drawn["by-round"] = figures.by_round(means, _everyone(results))
    if results.overall is not None:
        drawn["parties"] = figures.intervals(
            _parties(results), "AUC of the strongest attack (guessing .5), 95 % interval"
        )
        drawn["roc"] = figures.roc(results.roc, results.attacks, _resolutions(results), results.guarantee)
        if results.records["error"].notna().any():
            drawn["records"] = figures.vulnerability(results.records)
    return drawn


_TOGETHER = {
    "all": "together, all owned",
    "half": "together, half unknown",
    "few": "together, few owned",
    "none": "together, none owned",
    "own": "together, own alone",
}
"""All parties in each world, beside one party after another in the headline's."""


def _parties(results: Findings) -> list[tuple[str, float, float, float, float | None]]:
    rows = [
        (party.name, party.leak.value, party.leak.low, party.leak.high, party.bound)
        for party in results.parties
        if party.leak is not None
    ]
    worlds = results.ladder if len(results.ladder) > 1 else []
    return rows + [
        (_TOGETHER[rung.world], rung.leak.value, rung.leak.low, rung.leak.high, None) for rung in worlds
    ]


def _everyone(results: Findings) -> pd.DataFrame:
    """Return round, accuracy, loss and AUC over all parties."""
    return results.rounds[results.rounds["party"] == "all"].sort_values("round")


def _confidence(results: Findings) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Return the tables of the confidence gap; None where the run has none."""
    run = results.run
    if not (run.has("confidence") and run.has("confidence_rounds")):
        return None
    return run.table("confidence"), run.table("confidence_rounds")


def _by_round(results: Findings) -> pd.DataFrame | None:
    """Return the AUC of the attacks that were mounted on each round's model; None where none was."""
    run = results.run
    if not run.has("leakage_by_round"):
        return None
    rows = run.table("leakage_by_round")
    rows = rows[(rows["observer"] == findings.PARTICIPANT) & (rows["game"] == "all")]
    return rows[rows["metric"] == "auc"]


def _charts(results: Findings) -> dict[str, charts.Chart]:
    """Return the interactive charts that the run has data for, by the end of their place's id."""
    drawn: dict[str, charts.Chart] = {}
    confidence = _confidence(results)
    if confidence is not None and len(results.rounds):
        drawn["gap"] = charts.gap(*confidence, _everyone(results))
        drawn["by-round"] = charts.by_round(confidence[1], _everyone(results), _by_round(results))
    if results.overall is not None:
        drawn["parties"] = charts.parties(_parties(results))
        drawn["roc"] = charts.roc(results.roc, results.attacks)
    if len(results.rounds):
        drawn["accuracy"] = charts.over_rounds(results.rounds, "accuracy", "held-out accuracy")
        drawn["auc"] = charts.over_rounds(results.rounds, "auc", "held-out AUC")
        private = {party.name for party in results.parties if party.epsilon is not None}
        if private:
            spent = results.rounds[results.rounds["party"].isin(private)]
            drawn["epsilon"] = charts.over_rounds(spent, "epsilon", "ε spent, rounds 1…t composed")
    return drawn


def library() -> str:
    """Return Plotly's script, which stands once in each page.

    Raises:
        InputError: plotly is not installed.
    """
    found = importlib.util.find_spec("plotly")
    if found is None or found.origin is None:
        raise InputError("the report's charts need plotly; install it with: pip install plotly")
    path = Path(found.origin).parent / "package_data" / "plotly.min.js"
    return path.read_text(encoding="utf-8").replace("</script", "<\\/script")


def _resolutions(results: Findings) -> dict[str, int]:
    """Return what the non-members resolve, of one game and of all games together."""
    rows = _participants(results.leakage)
    auc = rows[(rows["attack"] == results.attacks[0]) & (rows["party"] == "all") & (rows["metric"] == "auc")]
    by_game = auc.set_index("game")["n_nonmembers"]
    sizes = {"held-out records of all games": int(by_game["all"])}
    if results.run.scenario.games > 1:
        sizes = {"held-out records of one game": int(by_game.drop("all").min())} | sizes
    return sizes


def render(results: Findings, drawn: Mapping[str, str]) -> str:
    """Return the page as HTML."""
    return (
        _environment()
        .get_template("page.html.j2")
        .render(_set_up(results) | _first_screen(results) | _measured(results) | _pictures(results, drawn))
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """Return what keeps the compiled templates: a run and its twins have a page each."""
    environment = Environment(
        loader=PackageLoader("fedsim.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "cell": cell}
    return environment


def _set_up(results: Findings) -> dict[str, Any]:
    """Return what the page says of the run itself."""
    run, scenario = results.run, results.run.scenario
    manifest = run.manifest
    return {
        "results": results,
        "scenario": scenario,
        "manifest": manifest,
        "record": manifest.get("record", "record"),
        "adversary": str(manifest.get("adversary", scenario.adversary.party or "the adversary")),
        "words": words,
        "verdict": verdicts.verdict,
        "metrics": METRICS,
        "this_run": run.path.name,
        "progress": "" if manifest.get("complete") else course.progress(run),
        "scenario_text": tomli_w.dumps(_without_places(scenario.model_dump(exclude_none=True))),
    }


def _first_screen(results: Findings) -> dict[str, Any]:
    """Return what answers the two questions."""
    run = results.run
    priors = results.ppv["prior"].tolist() if len(results.ppv) else []
    prior = float(priors[0]) if priors else PRIORS[0]
    switches = cards.switches(run, results.twins, prior)
    return {
        "ladder": cards.ladder(results, prior, run.manifest.get("record", "record")),
        "switches": switches,
        "reconciled": cards.reconciled(switches),
        "surest": cards.surest(run, results.overall) if results.overall is not None else [],
    }


def _measured(results: Findings) -> dict[str, Any]:
    """Return the tables of the page's sections."""
    run = results.run
    explained = findings.entries(_participants(results.suite)) if len(results.suite) else []
    return {
        "utility": findings.overall_utility(results),
        "leakage": _by_attack(results),
        "allowed": _allowed(results),
        "others": _others(results),
        "empirical": findings.empirical(results),
        "audits": findings.audits(run),
        "sources": findings.source_rows(results),
        "suspicious": findings.entries(results.conduct),
        "not_run": findings.entries(results.not_run),
        "exposure": _exposure(results, results.attacks[:6]),
        "exposure_of_all": _exposure(results, results.attacks) if len(results.attacks) > 6 else {},
        "matrix": _matrix(results),
        "ppv": _ppv(results),
        "vulnerable": _vulnerable(results),
        "suite": _suite(results),
        "glosses": {row["attack"]: row["sees"] for row in explained},
        "unresolved": _unresolved(results),
        "further": beyond.sections(run),
        "letters": letters.section(run),
        "letter_columns": letters.COLUMNS,
    }


def _pictures(results: Findings, drawn: Mapping[str, str]) -> dict[str, Any]:
    """Return the pictures for paper (SVG), those that a reader can turn over, and what draws the latter."""
    live = _charts(results)
    return {
        "figures": {name: Markup(picture) for name, picture in drawn.items()},
        "gauge": lambda party: Markup(_gauge(party)),
        "chart_style": Markup(svg.STYLE),
        "charts": live,
        "charts_json": _embedded(live),
        "library": Markup(library()),
        "script": Markup(SCRIPT),
        "by_round_words": _by_round_words(results),
        "places": _places(results, live),
    }


SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")


def _embedded(data: object) -> Markup:
    """Return data as JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c"))


def _by_round_words(results: Findings) -> str:
    confidence = _confidence(results)
    if confidence is None or results.rounds.empty:
        return ""
    return course.by_round(confidence[1], _everyone(results), results.run.released_round(0))


def _places(results: Findings, live: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the sections that the page has, for its navigation: (id, name)."""
    measured = results.overall is not None
    there = {
        "question-1": (True, "Leakage"),
        "question-2": (True, "DP-SGD"),
        "picture": ("gap" in live, "Picture"),
        "parties": (True, "Parties"),
        "asked": (True, "Set-up"),
        "observers": (len(results.observers) > 1, "Observers"),
        "leakage": (measured, "Attacks"),
        "exposure": (measured, "Exposure"),
        "records": (measured, "Records"),
        "guarantee": (True, "Guarantee"),
        "outside": (True, "Limits"),
        "reproduce": (True, "Repeat"),
        "frameworks": (True, "Frameworks"),
    }
    return [(place, name) for place, (shown, name) in there.items() if shown]


def _unresolved(results: Findings) -> str:
    """Name the metrics that no attack's records resolve."""
    if results.overall is None:
        return ""
    rows = _participants(results.leakage)
    rows = rows[(rows["game"] == "all") & (rows["party"] == "all") & rows["note"].str.contains("resolvable")]
    return ", ".join(METRICS[metric][0] for metric in dict.fromkeys(rows["metric"]) if metric in METRICS)


def _gauge(party: findings.Party) -> str:
    leak = party.leak
    return "" if leak is None else figures.gauge(leak.value, leak.low, leak.high, party.bound)


def number(value: float, digits: int = 3) -> str:
    """Write a share as '.586': zeros before the point only take room in a table."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def cell(row: Mapping[str, Any] | None) -> Markup:
    """Write a value over its interval, or why there is none."""
    if row is None:
        return Markup("–")
    if not math.isfinite(row["value"]):
        note = str(row.get("note") or "–")
        short = "–" if "not resolvable" in note else note  # one note says it of all
        return Markup('<small title="{}">{}</small>').format(note, short)
    between = " to " if row["low"] < 0 else "–"
    ends = (number(row["low"]), between, number(row["high"]))
    return Markup("{}<small>{}{}{}</small>").format(number(row["value"]), *ends)


def _by_attack(results: Findings) -> list[dict[str, Any]]:
    """Return one entry an attack, the strongest first: metric → row, and how far behind the strongest."""
    if results.overall is None:
        return []
    rows = _participants(results.leakage)
    rows = rows[(rows["game"] == "all") & (rows["party"] == "all")]
    cells = {(row["attack"], row["metric"]): row for row in findings.entries(rows)}
    differences = {(row["attack"], row["metric"]): row for row in findings.entries(results.differences)}
    return [
        {
            "attack": attack,
            "cells": {metric: cells.get((attack, metric)) for metric in METRICS},
            "differences": [differences.get((attack, m)) for m in ("auc", "tpr_at_fpr_0.01")],
        }
        for attack in results.attacks
    ]


def _allowed(results: Findings) -> dict[str, float]:
    """Return the most that the victims' guarantee allows, by metric; empty unless all of them have one."""
    if results.guarantee is None:
        return {}
    advantage = guarantees.advantage_bound(*results.guarantee)
    rates = {f"tpr_at_fpr_{a}": guarantees.tpr_bound(a, *results.guarantee) for a in FALSE_POSITIVE_RATES}
    return rates | {
        "auc": guarantees.auc_bound(*results.guarantee),
        "balanced_accuracy": (1 + advantage) / 2,
        "advantage": advantage,
        "advantage_max": advantage,
    }


def _others(results: Findings) -> list[dict[str, Any]]:
    """Return one entry for each attack of the other observers: metric → row."""
    if results.overall is None:
        return []
    rows = results.leakage[(results.leakage["game"] == "all") & (results.leakage["party"] == "all")]
    rows = rows[rows["observer"] != findings.PARTICIPANT]
    return [
        {
            "observer": observer,
            "attack": attack,
            "cells": {row["metric"]: row for row in findings.entries(of_attack)},
        }
        for (observer, attack), of_attack in rows.groupby(["observer", "attack"], sort=False)
    ]


def _participants(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows about the participant's attacks."""
    return table[table["observer"] == findings.PARTICIPANT]


def _suite(results: Findings) -> list[dict[str, Any]]:
    """Return what was declared of the participant's attacks that were scored."""
    if results.overall is None:
        return []
    rows = _participants(results.suite)
    return findings.entries(rows[rows["attack"].isin(results.attacks)])


def _exposure(results: Findings, attacks: Sequence[str]) -> dict[str, Any]:
    """Return AUC by victim and attack, mean over games; whatever is more goes down."""
    if results.overall is None:
        return {}
    rows = _participants(results.leakage)
    rows = rows[(rows["game"] == "all") & (rows["metric"] == "auc")]
    victims = [party.name for party in results.parties if party.leak is not None]
    if len(victims) > len(attacks):
        return _heat_map(rows, "party", "attack", victims, attacks)
    return _heat_map(rows, "attack", "party", attacks, victims)


def _matrix(results: Findings) -> dict[str, Any]:
    if results.matrix.empty:
        return {}
    names = [party.name for party in results.parties]
    adversaries = [name for name in names if name in set(results.matrix["adversary"])]
    return _heat_map(results.matrix, "adversary", "victim", adversaries, names)


def _heat_map(
    table: pd.DataFrame, down: str, across: str, names: Sequence[str], columns: Sequence[str]
) -> dict[str, Any]:
    """Return {down, columns, rows: [(name, cells)]}; a cell has a heat in [0, 1], 0 at AUC .5 or below."""
    cells = {
        (row[down], row[across]): {**row, "heat": _heat(row["value"])} for row in findings.entries(table)
    }
    return {
        "down": down,
        "columns": list(columns),
        "rows": [(name, [cells.get((name, column)) for column in columns]) for name in names],
    }


def _heat(auc: float) -> float:
    return 0.0 if math.isnan(auc) else round(max(0.0, min(1.0, 2 * auc - 1)), 3)


def _ppv(results: Findings) -> list[tuple[float, list[dict[str, Any]]]]:
    """Return, per prior, how often the strongest attack's accusation is right, at each threshold."""
    if results.overall is None:
        return []
    rows = results.ppv
    keys = (rows["attack"] == results.overall.attack) & (rows["party"] == "all") & (rows["game"] == "all")
    strongest = rows[keys]
    return [
        (prior, findings.entries(strongest[strongest["prior"] == prior]))
        for prior in dict.fromkeys(strongest["prior"].tolist())
    ]


def _vulnerable(results: Findings, most: int = 10) -> dict[str, Any] | None:
    """Return the records most exposed over games, and how many stand out from 0, against chance."""
    if results.overall is None or not results.records["error"].notna().any():
        return None
    known = results.records.dropna(subset=["value", "error"])
    top = known.sort_values("value", ascending=False, kind="stable").head(most)
    return {
        "known": len(known),
        "all": len(results.records),
        "above": int((known["low"] > 0).sum()),
        "by_chance": 0.025 * len(known),
        "top": findings.entries(top),
    }


def _without_places(value: Any) -> Any:
    """Return a document with absolute paths cut to names: a page is passed on, a disk's layout is not."""
    if isinstance(value, dict):
        return {key: _without_places(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(part) for part in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
