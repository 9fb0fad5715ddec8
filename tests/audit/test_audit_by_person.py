"""The audit of DP-SGD whose unit is a person: canaries are persons of several records."""

from __future__ import annotations

import functools
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from support.runs import document

from fedsim.audit import audit
from fedsim.audit.party import train_persons_as_set
from fedsim.audit.settings import RECORDS, Audit, AuditSettings, settings_for
from fedsim.audit.white_box import Target, Train, white_box
from fedsim.core.data.records import Records
from fedsim.core.data.store import read_party
from fedsim.core.errors import InputError
from fedsim.core.models import zoo
from fedsim.core.privacy.plan import Plan, make_plan
from fedsim.core.scenario import reading
from fedsim.core.scenario.protection import DPSettings
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.core.training import dp, persons
from fedsim.runs import prepare
from fedsim.runs.prepare import Prepared
from fedsim.terminal import audit_tables

PERSONS, CLASSES = 30, 3


def a_plan(epsilon: float = 8.0, rounds: int = 4, steps: int = 15, **dp_settings) -> Plan:
    settings = DPSettings(epsilon=epsilon, unit="person", **dp_settings)
    return make_plan(settings, TrainingSettings(batch=16, steps=steps), PERSONS, rounds)


by_person = functools.partial(train_persons_as_set, device="cpu", secure=False)


def outcome(plan: Plan, train: Train = by_person, hidden: tuple[int, ...] = (), **settings: object) -> Audit:
    stream = np.random.default_rng(0)
    person = np.sort(np.concatenate([np.arange(PERSONS), stream.integers(0, PERSONS, 40)]))
    records = Records(
        stream.normal(size=(len(person), 5)).astype(np.float32), stream.integers(0, CLASSES, len(person))
    )
    module = zoo.build(ModelSettings(hidden=list(hidden)), (5,), CLASSES, seed=1)
    asked = AuditSettings(**{"records": 4, **settings})  # type: ignore[arg-type]
    return white_box(asked, Target(plan, module, records, train, person))


def clipping_each_record(module, records, local, plan, draws, *, person, **named):  # type: ignore[no-untyped-def]
    """DP-SGD whose unit is a record, passed off as that of a person."""
    return dp.train_private(module, records, local, plan, draws, **named)


def clipping_each_record_of_a_person(*arguments, **named):  # type: ignore[no-untyped-def]
    """Persons are drawn, and each of their records counts C."""

    def write(self, drawn, clipping_norm):  # type: ignore[no-untyped-def]
        rows = torch.isin(self._unit, drawn).nonzero().squeeze(1)
        return self.write(0, self._data[0][rows], self._data[1][rows], clipping_norm)

    with mock.patch.object(persons._ByPerson, "write_mean_of", write):
        return by_person(*arguments, **named)


def no_clipping(*arguments, **named):  # type: ignore[no-untyped-def]
    with mock.patch.object(persons, "clipping_factors", lambda norms, _: torch.ones_like(norms)):
        return by_person(*arguments, **named)


@pytest.mark.parametrize(
    ("how", "dp_settings", "hidden"),
    [
        ({"canaries": 1000}, {}, ()),
        ({"canaries": 600}, {"clipping": "adaptive"}, (6,)),
        ({"method": "many-run", "runs": 160}, {}, (6,)),
    ],
    ids=["one run", "one run, adaptive clipping", "many runs"],
)
def test_the_bound_is_below_what_the_accountant_promises_a_person(
    how: dict, dp_settings: dict, hidden: tuple[int, ...]
) -> None:
    plan = a_plan(rounds=2, steps=6, **dp_settings)
    found = outcome(plan, hidden=hidden, **how)
    assert found.upper == plan.epsilon and found.records == 4
    assert 0.5 < max(found.lower.values()) < found.upper
    assert "persons of 4 records" in audit_tables.audit_words(found)


@pytest.mark.parametrize(
    "broken", [clipping_each_record, clipping_each_record_of_a_person, no_clipping], ids=lambda f: f.__name__
)
def test_clipping_that_is_not_by_person_is_found_out(broken: Train) -> None:
    plan = a_plan(epsilon=2.0)
    assert outcome(plan, broken, canaries=1000).violated
    assert not outcome(plan, canaries=1000).violated
    one_each = outcome(plan, broken, canaries=1000, records=1)  # with one record there is no difference
    assert one_each.violated == (broken is no_clipping)


def test_many_runs_find_it_too() -> None:
    plan = a_plan(epsilon=2.0, rounds=1, steps=8)
    how = {"method": "many-run", "runs": 200, "hidden": (6,)}
    assert outcome(plan, clipping_each_record_of_a_person, **how).violated
    assert not outcome(plan, **how).violated


# ------------------------------------------------------------------- a scenario's party
def checked(folder: Path, **dp_settings: object) -> Prepared:
    everyone = {"all": {"epsilon": 4, "unit": "person", **dp_settings}}
    asked = reading.parse(document(folder, 200, dp=everyone))
    file = folder / "patients.csv"
    frame = pd.read_csv(file)
    frame["patient"] = np.random.default_rng(5).integers(0, 90, len(frame))
    frame.to_csv(file, index=False)
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"person": "patient"})})
    return prepare.check(asked, None)


def test_the_white_box_of_a_party_is_planned_for_its_persons(tmp_path: Path) -> None:
    prepared = checked(tmp_path, records_per_person=2)
    settings = settings_for(prepared, canaries=400)
    assert settings.records == 2 < RECORDS
    found = audit.audit(prepared, settings, tmp_path / "audit")
    party, _ = read_party(next((tmp_path / "audit").rglob(f"*-{found.party}")))
    asked = prepared.scenario.dp["all"]
    assert isinstance(asked, DPSettings)
    count = len(np.unique(party.train_person))
    expected = make_plan(asked, prepared.scenario.training_of(found.party), count, 3)
    assert found.upper == expected.epsilon < 4.0001
    assert 0 < max(found.lower.values()) < found.upper


@pytest.mark.parametrize("worst_case", [False, True])
def test_a_participant_s_canaries_are_persons_of_the_audited_party(tmp_path: Path, worst_case: bool) -> None:
    prepared = checked(tmp_path)
    how = {"worst_case": True, "runs": 10} if worst_case else {"canaries": 40}
    settings = settings_for(prepared, vantage="participant", records=3, **how)  # type: ignore[arg-type]
    found = audit.audit(prepared, settings, tmp_path / "audit")
    assert not found.violated and math_close(found.upper)
    told = set()
    for partition, name in enumerate(prepared.rows):
        party, info = read_party(tmp_path / "audit" / "parties" / "game-000" / f"{partition:03d}-{name}")
        assert party.train_person is not None
        canaries = party.train_person[party.train_person < 0]
        assert (np.bincount(-canaries)[1:] % 3 == 0).all()
        assert (len(canaries) > 0) == (name == found.party)
        assert info.sizes[partition] == len(party.train)
        assert info.persons[partition] == len(np.unique(party.train_person))
        told.add((info.sizes, info.persons))
    assert len(told) == 1


def math_close(epsilon: float) -> bool:
    return 3.9 < epsilon < 4.0001


def test_how_many_records_a_canary_may_have_is_said(tmp_path: Path) -> None:
    bounded = checked(tmp_path, records_per_person=2)
    with pytest.raises(InputError, match=r"records_per_person = 2; take 1 to 2"):
        settings_for(bounded, records=5)
    by_record = checked(tmp_path, unit="record")
    with pytest.raises(InputError, match=r"unit = 'record'"):
        settings_for(by_record, records=2)
    assert settings_for(by_record).records == 1
