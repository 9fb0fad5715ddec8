"""What a node's administrator can know before anything is sent."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clients.deployed import LEDGER, load, own_table, read_node
from fedsim.core.errors import InputError
from fedsim.core.files import read_json
from fedsim.core.models import private
from fedsim.core.privacy.ledger import Ledger
from fedsim.core.privacy.plan import Plan, make_plan


def facts(folder: Path) -> dict[str, str | list[str]]:
    """Return what becomes of the table, the plan of ε, and what was spent before, in words.

    Raises:
        InputError: something is wrong with the folder, or the plan is beyond the node's own budget.
    """
    folder = folder.resolve()
    settings, party, table = read_node(folder), load(folder), own_table(folder)
    counts = np.bincount(table.records.labels, minlength=party.classes)
    result: dict[str, str | list[str]] = {
        "party": f"{settings.party}, {settings.role}, of {', '.join(settings.parties)}",
        "server": settings.server,
        "records": f"{len(party.records.train)} to train on, {len(party.records.heldout)} held out",
        "classes": ", ".join(map(str, counts)),
        "notices": list(table.notices),
    }
    plan = None
    if party.dp is not None:
        private.check_dp_ready(party.module, party.records.train.shape)
        plan = make_plan(
            party.dp, party.training, party.units(party.partition), party.scenario.federation.rounds
        )
    result["DP-SGD"] = _in_words(plan)
    own = settings.epsilon_budget
    result["budget"] = "none of its own" if own is None else f"ε = {own:g} at δ = {settings.epsilon_delta:g}"
    if own is not None and (plan is None or plan.epsilon > own):
        asked = "no DP-SGD at all" if plan is None else f"ε = {plan.epsilon:.4g}"
        raise InputError(
            f"{folder}: the scenario plans {asked}, beyond epsilon_budget = {own:g} of node.toml: this node "
            "will refuse"
        )
    path = folder / LEDGER
    if path.exists():
        spent = Ledger.from_config(read_json(path)).epsilon(settings.epsilon_delta)
        result["spent so far"] = f"ε = {spent:.4g} at δ = {settings.epsilon_delta:g}"
    return result


def _in_words(plan: Plan | None) -> str:
    if plan is None:
        return "off: nothing is guaranteed"
    return (
        f"ε = {plan.epsilon:.4g} at δ = {plan.delta:.3g} over {plan.rounds} rounds, σ = "
        f"{plan.noise_multiplier:.3g}"
    )
