"""Persons with several records, end to end on a small run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.runs import scenario, write_table

from fedsim.core.data.store import read_party
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.runs import play, prepare

BY_PERSON = {"all": {"noise_multiplier": 1.0, "unit": "person", "records_per_person": 2}}


def run_of_persons(folder: Path, persons: int = 40, **sections: object) -> RunDirectory:
    """`write_table`'s patients, each of whom has about three records."""
    file = write_table(folder / "patients.csv", 120)
    frame = pd.read_csv(file)
    frame["patient"] = np.random.default_rng(5).integers(0, persons, len(frame))
    asked = scenario(folder, 120, **({"adversary": {"attacks": ["loss"]}} | sections))
    frame.to_csv(file, index=False)  # `scenario` has written it anew
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"person": "patient"})})
    run = prepare.prepare(prepare.check(asked, None), folder / "run")
    play.federate(run)
    return run


def test_dp_sgd_of_persons_is_planned_for_persons(tmp_path: Path) -> None:
    run = run_of_persons(tmp_path, dp=BY_PERSON)
    for partition, name in enumerate(run.manifest["parties"]):
        party, info = read_party(run.party_folder(0, partition, name))
        assert party.train_person is not None
        persons = len(np.unique(party.train_person))
        assert info.persons[partition] == persons < len(party.train)
        plan = run.manifest["dp"][name]
        assert plan["unit"] == "person" and plan["sample_rate"] == pytest.approx(min(1, 8 / persons))
    assert np.isfinite(run.table("rounds").query("round > 0 and party != 'all'")["epsilon"]).all()


def test_what_cannot_go_with_persons_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.person"):
        prepare.check(scenario(tmp_path, dp=BY_PERSON), None)
    shadows = {"attacks": ["lira"]}
    with pytest.raises(InputError, match="unit = 'person'"):
        prepare.check(scenario(tmp_path, dp=BY_PERSON, adversary=shadows), None)
