"""The report's section on letters: what a language model memorised and let out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation.estimates import Estimate
from fedsim.evaluation.secrets import UNASKED
from fedsim.report.svg import Frame, Scale, chart, legend, text

SHOWN = 5
"""Secrets that are shown, masked, as they came out."""

COLUMNS = {
    "exposure": "exposure, bits",
    "auc": "AUC against secrets never there",
    "extracted": "comes out at once",
    "discoverable in 100 draws": "likely to in 100 draws",
}


@dataclass(frozen=True)
class Letters:
    """What the section shows, all of it from ``memorisation.parquet`` and ``memorised.parquet``.

    rows: of the last round, letters → metric → row; unasked: letters → share that came out unasked
    came, of: secrets of the victims that the last model wrote verbatim, and all that were trained on
    sentences: prefix, secret (masked but for two digits), party, letters
    """

    round: int
    bits: float
    rows: dict[int, dict[str, Estimate]]
    unasked: dict[int, float]
    counts: dict[int, int]
    came: int
    of: int
    sentences: list[tuple[str, str, str, int]]


def section(run: RunDirectory) -> Letters | None:
    """Return what is shown of a run on letters, None where no model was asked for secrets."""
    if not (run.has("memorisation") and run.has("memorised")):
        return None
    table, measured = (run.table(name) for name in ("memorisation", "memorised"))
    table, measured = (part[part["observer"] == "participant"] for part in (table, measured))
    last = int(table["round"].max())
    table = table[table["round"] == last]
    rows: dict[int, dict[str, Estimate]] = {}
    counts: dict[int, int] = {}
    for row in table.to_dict("records"):
        letters = int(row["letters"])
        rows.setdefault(letters, {})[str(row["metric"])] = Estimate(row["value"], row["low"], row["high"])
        counts[letters] = int(row["n"])
    unasked = {letters: max(cells[m].value for m in UNASKED) for letters, cells in rows.items()}
    trained = measured[(measured["round"] == last) & measured["inserted"]]
    came = trained[trained["extracted"]].sort_values(["letters", "exposure"], ascending=False)
    sentences = [_masked(row) for row in came.head(SHOWN).to_dict("records")]
    bits = float(measured["bits"].iloc[0])
    return Letters(last, bits, rows, unasked, counts, len(came), len(trained), sentences)


def _masked(row: dict[Any, Any]) -> tuple[str, str, str, int]:
    secret = str(row["secret"])
    return str(row["prefix"]), secret[:2] + "•" * (len(secret) - 2), str(row["party"]), int(row["letters"])


def picture(table: pd.DataFrame, bits: float) -> str:
    """Draw the median exposure over rounds, a line per number of letters, never trained on as a dashed one.

    table: round, letters, metric, value, as in ``memorisation.parquet``; bits: the largest exposure
    """
    rows = table[(table["metric"] == "exposure") & (table["observer"] == "participant")]
    frame = Frame(Scale(0, max(1.0, float(rows["round"].max())), 64, 444), Scale(0, bits, 274, 34))
    parts = [frame.axes("round", "exposure of the secrets, bits (median)")]
    order = sorted(set(rows["letters"]))
    for place, letters in enumerate(order):
        of_letters = rows[rows["letters"] == letters].sort_values("round")
        points = list(zip(of_letters["round"].astype(float), of_letters["value"], strict=True))
        name = f"in {letters} letter{'s' * (letters > 1)}" if letters else "never trained on"
        style = f"s{place - 1}" if letters else "chance"
        parts.append(frame.line(points, style, name))
        parts.append(legend(64 + 150 * (place % 3), 322 + 18 * (place // 3), [(name, style)]))
    parts.append(text(72, 50, f"{bits:.1f}: named first", style="quiet"))
    return chart(460, 334 + 18 * ((len(order) - 1) // 3), "Exposure of secrets over rounds", *parts)
