"""A run's figures in the places where teams keep theirs: TensorBoard, MLflow.

What is written are the tables' own numbers: per round and party accuracy, loss, AUC and ε; of a finished run
every attack's AUC in the headline's world with its interval. No record, score or model leaves the
run's folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.settings import Scenario
from fedsim.evaluation.results import in_world

Scalar = tuple[str, int, float]
"""Name, round, value."""


def scalars(run: RunDirectory) -> Iterator[Scalar]:
    """Yield a run's figures: of each round, mean over games, and the leakage at the last round."""
    rounds = run.table("rounds")
    metrics = ["accuracy", "loss", "auc", "epsilon"]
    means = rounds.groupby(["party", "round"], sort=False)[metrics].mean()
    for metric in metrics:
        known = means[metric].reset_index()
        for party, t, value in zip(known["party"], known["round"], known[metric], strict=True):
            if math.isfinite(value):
                yield f"{metric}/{party}", int(t), float(value)
    if run.has("leakage"):
        last = int(rounds["round"].max())
        for row in _auc(in_world(run, run.table("leakage"))).itertuples():
            for end, value in (("", row.value), ("/low", row.low), ("/high", row.high)):
                if math.isfinite(value):  # type: ignore[arg-type]
                    yield f"leakage/{row.observer}/{row.attack}/{row.party}{end}", last, float(value)  # type: ignore[arg-type]


def _auc(leakage: pd.DataFrame) -> pd.DataFrame:
    return leakage[(leakage["metric"] == "auc") & (leakage["game"] == "all")]


def settings(scenario: Scenario) -> dict[str, str]:
    """Return the scenario's settings by dotted key; paths of private tables are left out."""
    flat: dict[str, str] = {}

    def add(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), inner)
        elif prefix not in ("data.path", "data.public") and not prefix.endswith(".folder"):
            flat[prefix] = str(value)

    document = scenario.model_dump(exclude_none=True)
    document["data"].pop("path", None)
    add("", document)
    return flat


def to_tensorboard(run: RunDirectory, folder: Path) -> None:
    """Write a run's figures as TensorBoard events below ``folder``, in a folder of the run's name.

    Raises:
        InputError: TensorBoard is not there.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs TensorBoard: pip install 'fedsim[tensorboard]'") from None
    with SummaryWriter(str(folder / run.path.name)) as writer:
        for name, t, value in scalars(run):
            writer.add_scalar(name, value, t)
        text = "\n".join(f"    {key} = {value}" for key, value in settings(run.scenario).items())
        writer.add_text("scenario", text)


def to_mlflow(run: RunDirectory, uri: str) -> None:
    """Log a run's settings and figures to the MLflow server or store at ``uri``, experiment 'fedsim'.

    Raises:
        InputError: MLflow is not there, or nothing can be logged at ``uri``.
    """
    try:
        import mlflow
        from mlflow.entities import Metric, Param
    except ImportError:
        raise InputError("--mlflow needs MLflow: pip install 'fedsim[mlflow]'") from None
    try:
        client = mlflow.MlflowClient(uri)
        known = client.get_experiment_by_name("fedsim")
        experiment = known.experiment_id if known else client.create_experiment("fedsim")
        logged = client.create_run(experiment, run_name=run.path.name)
        params = [Param(key, value[:500]) for key, value in settings(run.scenario).items()]
        metrics = [Metric(_plain(name), value, 0, t) for name, t, value in scalars(run)]
        client.log_batch(logged.info.run_id, params=params[:100])
        for start in range(0, len(metrics), 1000):  # MLflow takes a thousand at a time
            client.log_batch(logged.info.run_id, metrics=metrics[start : start + 1000])
        client.set_terminated(logged.info.run_id)
    except Exception as error:  # of the store's own making: a database, HTTP, a file
        raise InputError(
            f"--mlflow {uri}: nothing can be logged there: {str(error).splitlines()[0]}"
        ) from error


def _plain(name: str) -> str:
    """Return a name as MLflow takes it."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)
