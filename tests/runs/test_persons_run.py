"""Persons with several records, end to end on a small run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.runs import scenario, write_table
from support.truth import flip

from fedsim.core.data.store import read_party
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation.truth import read_truth
from fedsim.runs import persons, play, prepare
from fedsim.runs.prepare import Prepared

BY_PERSON = {"all": {"noise_multiplier": 1.0, "unit": "person", "records_per_person": 2}}


def checked_by_person(folder: Path, persons: int = 40, **sections: object) -> Prepared:
    """`write_table`'s patients, each of whom has about three records."""
    file = write_table(folder / "patients.csv", 120)
    frame = pd.read_csv(file)
    frame["patient"] = np.random.default_rng(5).integers(0, persons, len(frame))
    asked = scenario(folder, 120, **({"adversary": {"attacks": ["loss"]}} | sections))
    frame.to_csv(file, index=False)  # `scenario` has written it anew
    asked = asked.model_copy(update={"data": asked.data.model_copy(update={"person": "patient"})})
    return prepare.check(asked, None)


def run_of_persons(folder: Path, persons: int = 40, **sections: object) -> RunDirectory:
    run = prepare.prepare(checked_by_person(folder, persons, **sections), folder / "run")
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
    notices = checked_by_person(tmp_path, dp=BY_PERSON, adversary={"attacks": ["all"]}).encoded.notices
    assert any(notice.startswith("Round decoding is left out") for notice in notices)
    by_rounds = {"attacks": ["round-decoding"]}
    with pytest.raises(InputError, match="unit = 'person'"):
        prepare.check(scenario(tmp_path, dp=BY_PERSON, adversary=by_rounds), None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run whose parties learnt their records by heart, party 'hospital-2' under DP."""
    return run_of_persons(
        tmp_path_factory.mktemp("persons"), persons=60, federation={"rounds": 6},
        training={"epochs": 12, "batch": 8, "lr": 0.2}, dp={"hospital-2": {"noise_multiplier": 1.0}},
    )  # fmt: skip


def test_all_records_of_each_candidates_person_are_kept(run: RunDirectory) -> None:
    hers, truth = run.read_persons(0), read_truth(run.path)
    assert hers is not None
    candidates = run.read_candidates(0).records
    for candidate in range(len(truth)):
        rows = hers.records.features[hers.owner == candidate]
        assert (rows == candidates.features[candidate]).all(axis=1).any()
    assert set(hers.owner) == set(range(len(truth))) and len(hers.owner) > len(truth)


def test_persons_and_ranges_are_asked_and_the_truth_is_read_by_the_judge_alone(run: RunDirectory) -> None:
    table = persons.persons(run, unknown=["ward"], points=2)
    assert run.table("persons").equals(table)
    auc = table[table["metric"] == "auc"].set_index(["asked", "knows", "score"])["value"]
    assert auc["person", "number of records", "none"] == pytest.approx(0.5, abs=0.3)
    assert {knows for asked, knows, _ in auc.index if asked == "range"} == {"exact", "one guess", "range"}
    flip(run)
    flipped = persons.persons(run, unknown=["ward"], points=2)
    flip(run)
    after = flipped[flipped["metric"] == "auc"].set_index(["asked", "knows", "score"])["value"]
    np.testing.assert_allclose(after[auc.index], 1 - auc)
    with pytest.raises(InputError, match="--unknown warp: no such column; did you mean 'ward'"):
        persons.persons(run, unknown=["warp"])


def test_dp_promises_a_person_with_more_records_less(run: RunDirectory) -> None:
    table = persons.promises(run)
    private = table[table["party"] == "hospital-2"].sort_values("records")["epsilon"]
    assert (np.diff(private) > 0).all() and np.isfinite(private).all()
    assert table.loc[table["party"] != "hospital-2", "epsilon"].isna().all()
