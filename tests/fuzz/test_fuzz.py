"""A seeded sample of the fuzzing; `python -m tests.fuzz` tries everything."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from support.runs import finished_run

from fuzz import folders, keys, tables

SAMPLE = 300
"""Values of keys that CI tries, of about 1,900; 60 of a run's damaged files, of some 500."""


def test_a_wrong_value_is_one_sentence_or_a_valid_scenario(tmp_path: Path) -> None:
    everything = list(itertools.product(keys.every_key(), keys.VALUES))
    chosen = np.random.default_rng(0).permutation(len(everything))[:SAMPLE]
    found = [keys.try_value(tmp_path, *everything[i]) for i in chosen]
    assert [trial for trial in found if trial.failed] == []
    assert {trial.kind for trial in found} == {"valid", "sentence"}


@pytest.mark.parametrize("change", tables.CHANGES)
def test_a_broken_table_is_one_sentence_or_a_valid_scenario(tmp_path: Path, change: str) -> None:
    trial = tables.try_table(tmp_path, change, 0)
    assert not trial.failed, trial


@pytest.mark.slow
def test_a_damaged_run_is_one_sentence_or_the_same_result(tmp_path: Path) -> None:
    adversary = {"attacks": ["loss", "update-cosine"]}
    run = finished_run(tmp_path, out="run", federation={"rounds": 2}, adversary=adversary).path
    expected = {command: folders.call(command, run)[1] for command in folders.COMMANDS}
    everything = list(folders.trials(run))
    chosen = np.random.default_rng(0).permutation(len(everything))[:60]
    found = [folders.try_damage(run, expected, tmp_path / "copy", *everything[i]) for i in chosen]
    assert [trial for trial in found if trial.failed] == []
