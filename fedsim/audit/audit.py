"""An audit of one party of a scenario."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fedsim.audit.participant import participant_audit
from fedsim.audit.party import plan_of, training_of, units
from fedsim.audit.settings import Audit, AuditSettings
from fedsim.audit.white_box import Progress, Target, white_box
from fedsim.core import rng
from fedsim.core.data.store import read_party
from fedsim.core.models import zoo
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.settings import Scenario
from fedsim.core.training.persons import bounded
from fedsim.runs import prepare


def audit(
    prepared: prepare.Prepared,
    settings: AuditSettings,
    folder: Path,
    workers: int = 1,
    progress: Progress | None = None,
) -> Audit:
    """Audit a party of a checked scenario, in a run made for it in ``folder``, which is absent or empty.

    Raises:
        InputError: the folder is taken, or the party is too small.
        FedsimError: the federation could not go on.
    """
    games = settings.runs if (settings.vantage, settings.method) == ("participant", "many-run") else 1
    scenario = _for_audit(prepared.scenario, games)
    run = prepare.prepare(dataclasses.replace(prepared, scenario=scenario), folder)
    if settings.vantage == "participant":
        return participant_audit(settings, run, list(prepared.rows), workers, progress)
    return _white_box_of_party(settings, run, list(prepared.rows), workers, progress)


def _for_audit(scenario: Scenario, games: int) -> Scenario:
    """Return the scenario with an adversary that does no more than keep what it is sent."""
    harmless = {"attacks": ["loss"], "candidates": 20, "observers": ["participant"], "coalition": []}
    harmless |= {"active": None, "targets": None}
    adversary = scenario.adversary.model_copy(update=harmless)
    return scenario.model_copy(update={"adversary": adversary, "games": games})


def _white_box_of_party(
    settings: AuditSettings, run: RunDirectory, names: list[str], workers: int, progress: Progress | None
) -> Audit:
    scenario, party = run.scenario, settings.party
    records, info = read_party(run.party_folder(0, names.index(party), party))
    module = zoo.build(scenario.model, records.train.shape, info.classes, seed=settings.seed)
    plan = plan_of(scenario, party, units(records, scenario.dp_of(party)))
    own, person = records.train, None
    if plan.unit == "person":
        assert records.train_person is not None  # checked before the run was prepared
        stream = rng.generator(settings.seed, "records of a person", party=party)
        rows = bounded(records.train_person, plan.records_per_person, stream)
        own, person = own.take(rows), records.train_person[rows]
    target = Target(plan, module, own, training_of(scenario, party), person)
    return white_box(settings, target, workers, progress)
