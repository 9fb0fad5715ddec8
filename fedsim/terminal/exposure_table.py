"""A party's exposure before it joins, as a rich table and its conditions in words."""

from __future__ import annotations

import math

from rich.markup import escape
from rich.table import Table

from fedsim.runs.exposure import Exposure
from fedsim.terminal.formatting import new_table, number

QUANTILES = (0.5, 0.9, 0.99)


def table(found: Exposure, top: int) -> Table:
    """Return the ``top`` most exposed records, a row each."""
    shown = new_table(f"{found.party}: its most exposed records, predicted")
    shown.add_column("record", justify="right")
    shown.add_column("label")
    for heading in ("separation\n(deviations)", "AUC\n", "TPR at\n1 % FPR"):
        shown.add_column(heading, justify="right")
    for row in found.records.head(top).to_dict("records"):
        shown.add_row(
            str(row["record"]), escape(str(row["label"])), f"{row['separation']:.2f}",
            number(row["auc"]), number(row["tpr"]),
        )  # fmt: skip
    shown.caption = f"For {escape(found.party)}'s eyes: the {top} of {len(found.records)} records."
    shown.caption_justify = "left"
    return shown


def words(found: Exposure) -> list[str]:
    """Say what all records' prediction is, what DP allows, and what is assumed."""
    separation = found.records["separation"]
    spread = ", ".join(f"{separation.quantile(q):.2f}" for q in QUANTILES)
    lines = [
        f"Of all {len(found.records)} records: separation {spread} (median, 90 %, 99 %); "
        f"mean AUC {number(found.records['auc'].mean())}, "
        f"mean TPR at 1 % FPR {number(found.records['tpr'].mean())}."
    ]
    if math.isinf(found.epsilon):
        lines.append(f"{found.party} trains without DP: nothing bounds what an attack may find.")
    else:
        lines.append(
            f"DP over all rounds (ε = {found.epsilon:.3g}, δ = {found.delta:g}) allows any attack an AUC of "
            f"{number(found.allowed_auc)} and a TPR of {number(found.allowed_tpr)} at 1 % FPR."
        )
    lines.append(
        f"A prediction of round 1, not a measurement: {found.adversary} owns these records, not knowing "
        f"which are trained on, and none of the {found.unknown} members of the other parties, which are "
        f"taken to be like {found.party}'s own. Signatures by {found.kind}; the work of "
        f"{found.cost:.0f} party-rounds was simulated."
    )
    return lines
