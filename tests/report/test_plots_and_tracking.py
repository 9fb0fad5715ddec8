"""A run's figures in a notebook, in TensorBoard and in MLflow are those of its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.runs import finished_run

import fedsim
from fedsim.api import Run
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation.results import in_world
from fedsim.report import tracking


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    sections = {"federation": {"rounds": 2}, "adversary": {"attacks": ["loss", "gap"]}}
    return finished_run(tmp_path_factory.mktemp("run"), **sections, dp={"all": {"epsilon": 8}})


@pytest.fixture(autouse=True)
def _no_window() -> None:
    pytest.importorskip("matplotlib").use("Agg")


def test_curves_are_the_tables(run: RunDirectory) -> None:
    plot = Run(run.path).plot
    accuracy = run.table("rounds").query("party == 'all'").sort_values("round")["accuracy"]
    drawn = next(line for line in plot.rounds("accuracy").lines if line.get_label() == "all")
    np.testing.assert_allclose(np.asarray(drawn.get_ydata(), dtype=float), accuracy)
    auc = in_world(run, run.table("leakage")).query(
        "metric == 'auc' and game == 'all' and attack == 'loss' and party != 'all'"
    )
    axes = plot.leakage(["loss"])
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata(), dtype=float), auc["value"])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == auc["party"].tolist()
    curves = {line.get_label(): line for line in plot.roc().lines}
    assert set(curves) == {"loss", "gap", "guessing"}
    rate = np.asarray(curves["loss"].get_ydata(), dtype=float)
    assert (np.diff(rate) >= -1e-12).all() and rate[-1] == 1


def test_an_unknown_attack_or_metric_is_a_sentence(run: RunDirectory) -> None:
    with pytest.raises(InputError, match=r"attack 'los' has no scores in .*did you mean 'loss'"):
        Run(run.path).plot.roc(["los"])
    with pytest.raises(InputError, match="metric 'accurcy' is none of a round's; did you mean 'accuracy'"):
        Run(run.path).plot.rounds("accurcy")


def test_scalars_are_the_tables_and_name_no_file(run: RunDirectory) -> None:
    found = {(name, t): value for name, t, value in tracking.scalars(run)}
    rounds = run.table("rounds").set_index(["party", "round"])
    assert found["epsilon/hospital-2", 2] == rounds.loc[("hospital-2", 2), "epsilon"]
    leakage = in_world(run, run.table("leakage")).set_index(["attack", "party", "game", "metric"])
    assert found["leakage/participant/loss/all", 2] == leakage.loc[("loss", "all", "all", "auc"), "value"]
    assert all(np.isfinite(value) for value in found.values())
    said = tracking.settings(run.scenario)
    assert said["dp.all.epsilon"] == "8.0" and not any("patients.csv" in value for value in said.values())


def test_tensorboard_reads_what_was_written(run: RunDirectory, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking.to_tensorboard(run, tmp_path)
    events = EventAccumulator(str(tmp_path / run.path.name))
    events.Reload()
    read = [(e.step, e.value) for e in events.Scalars("accuracy/all")]
    expected = [(t, value) for name, t, value in tracking.scalars(run) if name == "accuracy/all"]
    np.testing.assert_allclose(read, expected, rtol=1e-6)


def test_dp_may_be_written_as_on_the_command_line() -> None:
    from fedsim.api import _switches

    assert _switches("all=8, hospital-2=off") == {"all": 8.0, "hospital-2": np.inf}
    with pytest.raises(fedsim.InputError, match="expected party=ε"):
        _switches("8")


@pytest.mark.slow
def test_mlflow_reads_what_was_logged(run: RunDirectory, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking.to_mlflow(run, uri)
    client = mlflow.MlflowClient(uri)
    (logged,) = client.search_runs([client.get_experiment_by_name("fedsim").experiment_id])
    assert logged.data.params["federation.rounds"] == "2"
    last = {name: value for name, _, value in tracking.scalars(run)}
    assert logged.data.metrics["accuracy/all"] == pytest.approx(last["accuracy/all"])
    with pytest.raises(InputError, match="--mlflow nowhere://x: nothing can be logged there"):
        tracking.to_mlflow(run, "nowhere://x")
