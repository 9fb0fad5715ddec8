"""The interactive charts of the page, as Plotly's JSON: each a function from a table to {data, layout}.

Colours are named by CSS variables of the page, such as '--s0', which `page.js` looks up, so that a chart
follows the page into dark mode. The static twins for papers and print are in `figures`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedsim.evaluation.confidence import EDGES

Chart = dict[str, Any]

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "4px,4px")
"""Strokes that can be told apart without colour vision, as in `chart.css`."""

PROBABILITIES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
"""Ticks of the axis of log-odds."""


def gap(histogram: pd.DataFrame, rounds: pd.DataFrame, utility: pd.DataFrame) -> Chart:
    """Return the confidence gap: a frame per round, of members' and non-members' shares per bin.

    histogram, rounds: ``confidence.parquet`` and ``confidence_rounds.parquet``; games are added up.
    utility: round, accuracy and loss over all parties
    """
    counts = histogram.groupby(["round", "edge"], as_index=False)[["members", "nonmembers"]].sum()
    means = rounds.groupby("round", as_index=False)[["threshold", "tpr", "fpr", "auc"]].mean()
    known = {row["round"]: row for row in utility[["round", "accuracy", "loss"]].to_dict("records")}
    frames, most = [], 0.0
    for place, row in enumerate(means.to_dict("records")):
        t = int(row["round"])
        of_round = counts[counts["round"] == t]
        shares = {side: of_round[side] / max(1, of_round[side].sum()) for side in ("members", "nonmembers")}
        if place >= len(means) // 4:  # the first models know nothing yet: one bin holds all records
            most = max(most, *(float(share.max()) for share in shares.values()))
        figures = {str(key): _figure(value) for key, value in (known.get(t, {}) | row).items()}
        frames.append(figures | {"round": t} | {side: _rounded(share) for side, share in shares.items()})
    middles = (EDGES[:-1] + (EDGES[1] - EDGES[0]) / 2).tolist()
    return {
        "kind": "gap",
        "frames": frames,
        "x": middles,
        "ticks": {"values": [math.log(p / (1 - p)) for p in PROBABILITIES],
                  "text": [f"{100 * p:g} %" for p in PROBABILITIES]},
        "most": most,
    }  # fmt: skip


def by_round(rounds: pd.DataFrame, utility: pd.DataFrame, leakage: pd.DataFrame | None = None) -> Chart:
    """Return leakage of each round's model by its confidence alone, beside held-out accuracy and loss.

    leakage: the participant's rows of ``leakage_by_round.parquet`` over all games, AUC: other attacks by
    round
    """
    means = rounds.groupby("round")[["auc", "low", "high"]].mean().reset_index()
    best = best_round(utility)
    x = means["round"].tolist()
    data = [
        _line(x + x[::-1], [*means["high"], *means["low"][::-1]], "", "--s1", fill="toself", width=0),
        _line(x, means["auc"], "leakage: AUC of this round's model alone", "--s1"),
        _line(utility["round"], utility["accuracy"], "held-out accuracy", "--s0", dash="dash"),
        _line(utility["round"], utility["loss"], "held-out loss", "--s2", dash="dot", axis="y2"),
    ]
    for place, (attack, rows) in enumerate(() if leakage is None else leakage.groupby("attack", sort=False)):
        ordered, style = rows.sort_values("round"), 3 + place % 3
        name = f"leakage: AUC of {attack} on this round's model"
        data.append(_line(ordered["round"], ordered["value"], name, f"--s{style}", DASHES[style], 1.5))
    layout = {
        "xaxis": {"title": {"text": "round"}},
        "yaxis": {"title": {"text": "AUC, accuracy"}, "range": [0.4, 1.02]},
        "yaxis2": {"title": {"text": "loss"}, "overlaying": "y", "side": "right", "rangemode": "tozero",
                   "showgrid": False, "tickmode": "auto", "nticks": 5},
        "shapes": [_upright(best, "--muted", "dot")],
        "annotations": [{"x": best, "y": 1, "yref": "paper", "text": f"lowest loss: round {best}",
                         "showarrow": False, "xanchor": "left", "yanchor": "top"}],
    }  # fmt: skip
    return {"data": data, "layout": layout}


def best_round(utility: pd.DataFrame) -> int:
    """Return the round whose model has the lowest held-out loss."""
    return int(utility["round"].iloc[int(utility["loss"].to_numpy().argmin())])


def roc(table: pd.DataFrame, attacks: Sequence[str]) -> Chart:
    """Return ROC curves on log axes; table: columns attack, fpr, tpr, low, high; attacks: at most six."""
    names, data = list(attacks)[: len(DASHES)], []
    for style, attack in enumerate(names):
        rows = table[(table["attack"] == attack) & table["tpr"].notna() & (table["tpr"] > 0)]
        if style == 0:
            x = rows["fpr"].tolist()
            band = [*rows["high"], *rows["low"].clip(lower=1e-6)[::-1]]
            data.append(_line(x + x[::-1], band, "", "--s0", fill="toself", width=0))
        data.append(_line(rows["fpr"], rows["tpr"], attack, f"--s{style}", dash=DASHES[style]))
    floor = float(table["fpr"].min())
    data.append(_line([floor, 1], [floor, 1], "guessing", "--muted", dash="dot", width=1))
    axis = {"type": "log", "range": [math.log10(floor), 0.02]}
    layout = {
        "xaxis": {**axis, "title": {"text": "false-positive rate"}},
        "yaxis": {**axis, "title": {"text": "true-positive rate"}},
    }
    return {"data": data, "layout": layout}


def parties(rows: Sequence[tuple[str, float, float, float, float | None]]) -> Chart:
    """Return each victim's AUC with its interval and what its guarantee allows; rows as
    `figures.intervals`."""
    known = [row for row in rows if math.isfinite(row[1])]
    names, values = [row[0] for row in known], [row[1] for row in known]
    error = {
        "type": "data", "symmetric": False, "color": "--s0",
        "array": _rounded([row[3] - row[1] for row in known]),
        "arrayminus": _rounded([row[1] - row[2] for row in known]),
    }  # fmt: skip
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "markers", "x": _rounded(values), "y": names, "error_x": error,
         "name": "strongest attack", "marker": {"color": "--s0", "size": 10}}
    ]  # fmt: skip
    bounds = [(row[0], row[4]) for row in known if row[4] is not None]
    if bounds:
        marker = {"color": "--bound", "size": 14, "symbol": "line-ns-open", "line": {"width": 3}}
        data.append({"type": "scatter", "mode": "markers", "x": _rounded([b for _, b in bounds]),
                     "y": [name for name, _ in bounds], "name": "the most DP allows",
                     "marker": marker})  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "AUC of the strongest attack (guessing .5)"}, "range": [0.25, 1.02]},
        "yaxis": {"autorange": "reversed", "automargin": True, "type": "category"},
        "shapes": [_upright(0.5, "--muted", "dot")],
    }
    return {"data": data, "layout": layout}


def over_rounds(rounds: pd.DataFrame, metric: str, label: str) -> Chart:
    """Return a metric over rounds, all parties' mean in bold and each party thin."""
    data = []
    for party, rows in rounds.groupby("party", sort=False):
        ordered, everyone = rows.sort_values("round"), party == "all"
        colour, width = ("--s0", 3.0) if everyone else ("--muted", 1.0)
        data.append(_line(ordered["round"], ordered[metric], str(party), colour, width=width))
    return {
        "data": data,
        "layout": {"xaxis": {"title": {"text": "round"}}, "yaxis": {"title": {"text": label}}},
    }


def _line(
    x: Any,
    y: Any,
    name: str,
    colour: str,
    dash: str = "solid",
    width: float = 2.5,
    fill: str = "",
    axis: str = "y",
) -> dict[str, Any]:
    line = {"color": colour, "dash": dash, "width": width}
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "x": _rounded(x),
        "y": _rounded(y),
        "line": line,
    }
    trace |= {"name": name} if name else {"showlegend": False, "hoverinfo": "skip"}
    if fill:
        trace |= {"fill": fill, "fillcolor": colour, "opacity": 0.25}
    return trace if axis == "y" else {**trace, "yaxis": axis}


def _upright(x: float, colour: str, dash: str) -> Mapping[str, Any]:
    return {
        "type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper",
        "line": {"color": colour, "dash": dash, "width": 1.5},
    }  # fmt: skip


def _rounded(values: Any) -> list[float | None]:
    return [_figure(value) for value in values]


def _figure(value: Any) -> float | None:
    """Return a number in JSON: six digits, None where it is not known."""
    number = float(value)
    return float(np.format_float_positional(number, 6, fractional=False)) if math.isfinite(number) else None
