"""What a notebook imports, and what it can do without a private name."""

from __future__ import annotations

import dataclasses
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w
from support.runs import document, final_sha, finished_run

import fedsim
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import parse

PUBLIC = ["FedsimError", "InputError", "Run", "Scenario", "__version__", "load", "run"]
OF_A_RUN = [
    "adversary", "attack", "leakage", "manifest", "parties", "path", "plot", "report", "rounds", "scenario",
    "scores", "sources",
]  # fmt: skip
TINY = {"federation": {"rounds": 2}, "adversary": {"attacks": ["loss", "gap"]}}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tiny(folder: Path, **sections: object) -> dict[str, object]:
    return document(folder, **{**TINY, **sections})


def test_the_public_names_are_these() -> None:
    assert sorted(fedsim.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(fedsim))
    for name in PUBLIC:
        assert getattr(fedsim, name) is not None
    names = {*dir(fedsim.Run), *(field.name for field in dataclasses.fields(fedsim.Run))}
    assert sorted(name for name in names if not name.startswith("_")) == OF_A_RUN
    with pytest.raises(AttributeError, match="has no attribute 'runn'"):
        fedsim.runn  # noqa: B018


def test_everything_public_says_what_it_is() -> None:
    for thing in [fedsim, fedsim.run, fedsim.load, fedsim.Run, fedsim.Scenario, fedsim.InputError]:
        assert thing.__doc__
    for name in OF_A_RUN:
        assert name == "path" or getattr(fedsim.Run, name).__doc__
    for thing in [fedsim.run, fedsim.load, fedsim.Run]:
        assert ">>>" in (thing.__doc__ or "")


def test_importing_fedsim_imports_nothing_heavy() -> None:
    heavy = {"torch", "flwr", "pandas", "numpy", "pydantic", "rich"}
    code = f"import sys, fedsim; print(fedsim.__version__, {heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [fedsim.__version__, "set()"]


def test_a_run_from_a_dict_and_all_there_is_to_see(tmp_path: Path) -> None:
    run = fedsim.run(tiny(tmp_path), set={"training.lr": 0.05}, out="one", progress=False)
    assert isinstance(run, fedsim.Run) and run.path == tmp_path / "one"
    assert run.scenario.training.lr == 0.05 and run.manifest["complete"]
    assert run.parties == {"hospital-1": 20, "hospital-2": 20, "hospital-3": 20}
    assert run.adversary == "hospital-1"
    for table in (run.rounds, run.scores, run.leakage):
        assert isinstance(table, pd.DataFrame) and len(table)
    assert set(run.scores["attack"]) == {"loss", "gap"}
    with pytest.raises(fedsim.InputError, match="has no table 'sources': this scenario does not ask for it"):
        run.sources  # noqa: B018
    assert (tmp_path / "one" / "report.html").exists(), "as after `fedsim run`"
    assert run.report() == tmp_path / "one" / "report.html"
    assert fedsim.load("one") == run


def test_one_scenario_however_it_is_named(tmp_path: Path) -> None:
    sections = tiny(tmp_path)
    (tmp_path / "tiny.toml").write_text(tomli_w.dumps(sections))
    runs = [
        fedsim.run(source, out=f"run-{number}", workers=1, progress=False)
        for number, source in enumerate(
            [sections, parse(sections), "tiny.toml", tmp_path / "tiny.toml", "run-0"]
        )
    ]
    assert len({final_sha(RunDirectory.open(run.path)) for run in runs}) == 1
    assert "name" in sections and sections["federation"] == {"rounds": 2}, "the caller's dict is the caller's"
    default = fedsim.run("tiny.toml", progress=False)
    assert default.path == tmp_path / "runs" / "tiny"
    assert fedsim.run("tiny.toml", progress=False).path == tmp_path / "runs" / "tiny-2"


def test_it_is_the_run_of_the_command_line(tmp_path: Path) -> None:
    run = fedsim.run(tiny(tmp_path), progress=False)
    twin = finished_run(tmp_path, out="twin", **TINY)
    assert final_sha(RunDirectory.open(run.path)) == final_sha(twin)
    pd.testing.assert_frame_equal(run.leakage, twin.table("leakage"))


def test_dp_is_switched_on_and_off(tmp_path: Path) -> None:
    run = fedsim.run(tiny(tmp_path), dp={"all": 8, "hospital-2": "off", "hospital-3": None}, progress=False)
    spent = run.rounds[run.rounds["round"] == 2].set_index("party")["epsilon"]
    assert 7.9 < spent["hospital-1"] <= 8
    assert math.isinf(spent["hospital-2"]) and math.isinf(spent["hospital-3"])


def test_attacks_are_repeated(tmp_path: Path) -> None:
    run = fedsim.run(tiny(tmp_path), progress=False)
    before = run.scores
    assert run.attack("loss", progress=False) is run
    pd.testing.assert_frame_equal(run.scores, before)
    run.attack(names=["confidence", "loss"], rounds=[1], progress=False)
    assert set(run.scores["attack"]) == {"loss", "gap", "confidence"}
    after = run.scores.set_index("attack").loc["loss", "score"].to_numpy()
    assert not np.array_equal(after, before.set_index("attack").loc["loss", "score"].to_numpy())
    text = fedsim.run(tiny(tmp_path), progress=False).attack("loss", rounds="1").scores
    assert np.array_equal(text.set_index("attack").loc["loss", "score"].to_numpy(), after)


def test_a_notebook_shows_a_table(tmp_path: Path) -> None:
    run = fedsim.run(tiny(tmp_path), dp={"hospital-2": 5}, progress=False)
    shown = run._repr_html_()
    assert shown.count("<tr>") == 4 and "hospital-1 (adversary)" in shown and "ε = 4.99, δ = 1e-05" in shown
    auc = run.leakage.query("metric == 'auc' and party == 'hospital-3' and game == 'all' and world == 'all'")[
        "value"
    ].max()
    assert f"{auc:.3f} (" in shown and "errs upwards" in shown and "adversary.worlds" in shown
    (run.path / "leakage.parquet").unlink()
    (run.path / "rounds.parquet").unlink()
    assert "hospital-3" in run._repr_html_(), "also of a run that has not come that far"


def test_progress_goes_to_standard_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fedsim.run(tiny(tmp_path), progress=False)
    assert capfd.readouterr() == ("", "")
    fedsim.run(tiny(tmp_path))
    out, err = capfd.readouterr()
    assert out == "" and "round 2/2" in err


def test_a_new_run_in_a_deleted_folder_is_new(tmp_path: Path) -> None:
    """Its parties live in the same process as the old one's, and must not go on with their settings."""
    plain = fedsim.run(tiny(tmp_path), out="run", progress=False)
    before = plain.rounds
    shutil.rmtree("run")
    private = fedsim.run(
        tiny(tmp_path, training={"epochs": 1, "batch": 4}), dp={"all": 2}, out="run", progress=False
    )
    spent = private.rounds.query("round == 2 and party != 'all'")["epsilon"]
    assert len(spent) == 3 and ((spent > 1.9) & (spent <= 2)).all(), "not ∞, as in the first run"
    shutil.rmtree("run")
    again = fedsim.run(tiny(tmp_path), out="run", progress=False).rounds
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), before.drop(columns="seconds"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"set": {"training.lrr": 1}}, "unknown key 'lrr' in \\[training\\]; did you mean 'lr'"),
        ({"set": {"name.lr": 1}}, "set name.lr: 'name' is a value, not a section"),
        ({"dp": {"all": "on"}}, "dp all = 'on': ε must be a number above 0, 'off' or None"),
        ({"dp": {"all": True}}, "dp all = True"),
        ({"dp": {"all": 0}}, "dp.all.epsilon = 0"),
        ({"dp": {"hospital-9": 1}}, "dp.hospital-9: no such party; did you mean"),
        ({"engine": "rai"}, "did you mean 'ray'"),
        ({"data_dir": "nowhere", "set": {"data": {"name": "heart-disease"}}}, "nowhere"),
    ],
)
def test_wrong_arguments_are_one_sentence(tmp_path: Path, arguments: dict, sentence: str) -> None:
    with pytest.raises(fedsim.InputError, match=sentence):
        fedsim.run(tiny(tmp_path), progress=False, **arguments)
    assert not (tmp_path / "runs").exists(), "nothing was started"


def test_wrong_sources_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(fedsim.InputError, match="a scenario is a path, a dict or a Scenario, not int"):
        fedsim.run(3)  # type: ignore[arg-type]
    with pytest.raises(fedsim.InputError, match="there is no such file"):
        fedsim.run("absent.toml")
    with pytest.raises(fedsim.InputError, match="File name too long"):
        fedsim.run("a" * 5000)
    with pytest.raises(fedsim.InputError, match="is not a run of fedsim"):
        fedsim.load("absent")
    with pytest.raises(fedsim.FedsimError):
        fedsim.load(tmp_path)


def test_a_script_needs_no_main_guard_with_one_worker(tmp_path: Path) -> None:
    sections = tiny(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(
        f"import fedsim\nrun = fedsim.run({sections!r}, set={{'adversary.attacks': ['lira'], "
        "'adversary.shadows': 16}, workers=1, progress=False)\nprint(len(run.leakage) > 0)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True", done.stderr
