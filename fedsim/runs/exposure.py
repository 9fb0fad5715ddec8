"""What a party can know before it joins: how exposed its records would be, and what DP would allow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from attacks.rounds import exposure as channel
from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings
from fedsim.core import rng
from fedsim.core.data.parties import units_of
from fedsim.core.data.records import Records
from fedsim.core.errors import InputError, suggestion
from fedsim.core.models import zoo
from fedsim.core.models.weights import weights_of
from fedsim.core.privacy.plan import Plan, make_plan
from fedsim.evaluation import guarantees, truth
from fedsim.runs.prepare import Prepared

ALPHA = 0.01
"""The FPR of the TPR that is predicted."""


@dataclass(frozen=True, eq=False)
class Exposure:
    """A party's exposure before it joins.

    records: record (its number in the table, duplicates left out, as in a run's truth.parquet), label,
        separation (standard deviations), auc, tpr (at 1 % FPR); the most exposed first
    epsilon, delta: of the party's planned DP over the whole run; infinite and NaN without
    allowed_auc, allowed_tpr: the largest that (ε, δ)-DP allows any attack of all rounds (`guarantees`)
    unknown: members of other parties that are taken to be noise, on average
    cost: rounds of a whole federation that were simulated
    """

    party: str
    adversary: str
    records: pd.DataFrame
    epsilon: float
    delta: float
    allowed_auc: float
    allowed_tpr: float
    unknown: int
    kind: str
    cost: float


def expose(prepared: Prepared, party: str | None = None) -> Exposure:
    """Predict the exposure of a party's records to another participant of the scenario.

    party: default the first that is not the scenario's adversary. The adversary is the scenario's, or where
        that is the party itself the first other one; but for its size it makes no difference.

    Raises:
        InputError: no such party, or a scenario whose first model or updates cannot be foreseen.
    """
    scenario, names = prepared.scenario, list(prepared.rows)
    party = party or next(name for name in names if name != prepared.adversary)
    if party not in names:
        raise InputError(f"--party '{party}': no such party{suggestion(party, names)}")
    _check(prepared)
    other = prepared.adversary if prepared.adversary != party else next(n for n in names if n != party)
    rows = prepared.rows[party]
    records, settings = prepared.encoded.records(rows), _settings(prepared, other)
    start = zoo.build(
        scenario.model,
        records.shape,
        settings.classes,
        seed=rng.integer(scenario.seed, "initial weights", game=0),
    )
    none = records.take(np.arange(0))
    view = ParticipantView(settings, {0: weights_of(start)}, {}, none, none)
    seed = rng.integer(scenario.seed, "exposure", party=party, bits=62)
    found = channel.predict(view, records, scenario.parties.member_share, seed)
    plan = settings.privacy[names.index(party)]
    epsilon, delta = (plan.epsilon, plan.delta) if plan is not None else (math.inf, math.nan)
    private = plan is not None
    return Exposure(
        party,
        other,
        _table(prepared, rows, records, found),
        epsilon,
        delta,
        guarantees.auc_bound(epsilon, delta) if private else 1.0,
        guarantees.tpr_bound(ALPHA, epsilon, delta) if private else 1.0,
        sum(settings.sizes) - settings.sizes[names.index(party)] - settings.sizes[settings.own],
        found.kind,
        found.cost,
    )


def _table(prepared: Prepared, rows: np.ndarray, records: Records, found: channel.Exposed) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "record": rows,
            "label": [prepared.encoded.classes[label] for label in records.labels],
            "separation": found.separation,
            "auc": found.auc,
            "tpr": found.tpr(ALPHA),
        }
    )
    return table.sort_values(["separation", "record"], ascending=[False, True]).reset_index(drop=True)


def _check(prepared: Prepared) -> None:
    """Refuse what the first round's channel does not describe."""
    scenario = prepared.scenario
    if prepared.encoded.vocabulary:
        raise InputError("fedsim exposure reads tables and images; the records of this scenario are letters")
    if scenario.model.pretrain is not None:
        raise InputError("model.pretrain: fedsim exposure starts from a random w_0; leave pretraining out")
    if scenario.federation.central_dp is not None:
        raise InputError("federation.central_dp: fedsim exposure does not follow the server's noise")


def _settings(prepared: Prepared, adversary: str) -> PublicSettings:
    """Return what everybody knows; a party's size is that of game 0."""
    scenario, names = prepared.scenario, list(prepared.rows)
    federation = scenario.federation
    member = truth.draw_members(
        prepared.encoded,
        prepared.rows,
        seed=scenario.seed,
        game=0,
        share=scenario.parties.member_share,
    )
    trained = [rows[member[rows]] for rows in prepared.rows.values()]
    return PublicSettings(
        model=scenario.model,
        input_shape=tuple(prepared.encoded.features.shape[1:]),
        classes=len(prepared.encoded.classes),
        rounds=federation.rounds,
        parties=len(names),
        participants=federation.participants(len(names)),
        training=scenario.training,
        strategy=federation.strategy,
        options=dict(federation.options),
        sizes=tuple(map(len, trained)),
        privacy=tuple(_plan(prepared, name, rows) for name, rows in zip(names, trained, strict=True)),
        defences=tuple(scenario.defence_of(name) for name in names),
        own=names.index(adversary),
    )


def _plan(prepared: Prepared, party: str, trained: np.ndarray) -> Plan | None:
    """Return the party's DP-SGD as it would plan it, None where it is off."""
    scenario = prepared.scenario
    settings = scenario.dp_of(party)
    if settings is None:
        return None
    by_person = settings.unit == "person"
    n = len(np.unique(units_of(prepared.encoded)[0][trained])) if by_person else len(trained)
    return make_plan(settings, scenario.training_of(party), n, scenario.federation.rounds)
