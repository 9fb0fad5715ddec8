"""`fedsim attack` as an outsider: over HTTP and offline the same scores, from files of persons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from support.runs import write_table
from support.serving import a_run, listening, new_key, opened

from attacks.released.shadows import ShadowSettings
from attacks.released.suite import Suite
from fedsim.cli.main import main
from fedsim.core.data.listed import read_persons
from fedsim.core.data.released import read_schema
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.core.scenario.training import ModelSettings
from fedsim.runs import outsider
from fedsim.runs.outsider import Target

SHADOWS = ShadowSettings(shadows=16, model=ModelSettings(hidden=[8]), ages=(1, 2))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return a_run(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Candidates, with a column that says who is a member, and strangers."""
    folder = tmp_path_factory.mktemp("persons")
    people = pd.read_csv(write_table(folder / "people.csv", 40, seed=0))
    people.assign(member=np.arange(40) % 2).to_csv(folder / "people.csv", index=False)
    write_table(folder / "others.csv", 25, seed=8)
    return folder / "people.csv", folder / "others.csv"


def found(target: Target, files: tuple[Path, Path]) -> Suite:
    return outsider.attack(target, outsider.question(target, *files), seed=4, settings=SHADOWS)


@pytest.mark.parametrize(
    ("policy", "budget"),
    [({"policy": "full"}, 400), ({"policy": "rounded"}, 40), ({"policy": "laplace", "epsilon": 0.5}, 130)],
)
def test_http_and_offline_give_the_same_scores(
    run: RunDirectory, files: tuple[Path, Path], policy: dict, budget: int
) -> None:
    stated = OutputPolicy(**policy)
    made = opened(run, seed=5)
    spends = {"epsilon_budget": 0.5 * budget} if stated.policy == "laplace" else {"queries": budget}
    with listening(made) as url:
        key = new_key(made, name=stated.policy, **policy, **spends)
        http = found(outsider.remote(url, key), files)
    offline = found(outsider.of_run(run, stated, budget, seed=5), files)
    assert (http.findings.keys() == offline.findings.keys() and "lira" in http.findings) or budget == 40
    assert http.answers.spending == offline.answers.spending and http.answers.spending.queries <= budget
    for name, finding in http.findings.items():
        np.testing.assert_array_equal(finding.scores, offline.findings[name].scores)
        np.testing.assert_array_equal(finding.p_values, offline.findings[name].p_values)


def command(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["attack", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_accuses_over_http_and_writes_what_it_found(
    run: RunDirectory, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    made = opened(run)
    with listening(made) as url:
        monkeypatch.setenv("FEDSIM_KEY", new_key(made, name="attacker", queries=200))
        persons = ("--candidates", files[0], "--known-outsiders", files[1], "--truth", "member")
        text = command("--url", url, *persons, "--shadows", 16, "--hidden", 8, "--out", tmp_path / "found")
    assert "195 queries (200 left)" in text and "Leakage against queries spent" in text
    rows = pd.read_csv(tmp_path / "found" / "accusations.csv")
    assert set(rows["candidate"]) == set(range(1, 41)) and rows["p_value"].between(1 / 26, 1).all()
    assert {"judged.csv", "curve.csv"} < {path.name for path in (tmp_path / "found").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--candidates", "x.csv"], "name a RUN or --url"),
        (["--url", "http://127.0.0.1:1"], "--candidates FILE is missing"),
        (["--url", "http://127.0.0.1:1", "--candidates", "x.csv"], "--key is missing"),
        ([], "name a RUN, or --url"),
        (["x", "--candidates", "x.csv", "--rounds", "1"], "leave them out"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["attack", *arguments])
    assert result.exit_code == 2 and said in result.output


def test_persons_that_do_not_fit_are_named(
    run: RunDirectory, files: tuple[Path, Path], tmp_path: Path
) -> None:
    schema = read_schema(run.path)
    people = pd.read_csv(files[0])
    wrong = tmp_path / "wrong.csv"
    for change, said in [
        (people.drop(columns="ward"), "column 'ward' is missing"),
        (people.assign(ill="perhaps"), "record 1: column 'ill' is none of the classes no, yes"),
        (people.assign(age="old"), "record 1: column 'age' takes a finite number"),
        (people.assign(member=7), "record 1: column 'member' takes"),
    ]:
        change.to_csv(wrong, index=False)
        with pytest.raises(InputError, match=said):
            read_persons(wrong, schema, "member")
    target = outsider.of_run(run)
    with pytest.raises(InputError, match=r"record 1 is record 1 of .*; leave it out"):
        outsider.question(target, files[0], files[0])
