"""`fedsim run`, and what is done with finished runs: `show`, `report`, `runs`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsim.cli.common import (
    busy,
    data_dir_option,
    dp_option,
    engine_option,
    err,
    json_option,
    line,
    notices,
    out,
    print_json,
    ray_address_option,
    read_scenario,
    set_option,
)
from fedsim.cli.streams import VERBOSITY
from fedsim.core.errors import InputError
from fedsim.core.parallel import Workers, cores

if TYPE_CHECKING:
    from fedsim.core.run_directory import RunDirectory
    from fedsim.core.scenario.settings import Scenario


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@set_option
@dp_option
@data_dir_option
@click.option("--out", "folder", type=click.Path(path_type=Path), help="Run folder. [default: runs/<name>]")
@engine_option
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes for the parties, cores for the shadows. [default: 1, and all up to 4]",
)
@ray_address_option
@click.option(
    "--ray-cpus",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processors of a party under Ray.",
)
@click.option(
    "--ray-gpus", type=click.FloatRange(0), default=0.0, show_default=True, help="GPUs of a party under Ray."
)
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@click.option(
    "--twin",
    "twins",
    multiple=True,
    metavar="PARTY=ε",
    help="Also run it with this DP-SGD and 64 shadows at most; one report shows both.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Leave out attacks that simulate: a first answer in seconds. Five games where that is cheap.",
)
@click.option(
    "--tensorboard", type=click.Path(path_type=Path), help="Write the figures there, for TensorBoard."
)
@click.option("--mlflow", metavar="URI", help="Log settings and figures to this MLflow server or store.")
@json_option
def run(
    scenario: Path,
    overrides: tuple[str, ...],
    dp: tuple[str, ...],
    data_dir: Path | None,
    folder: Path | None,
    engine: str,
    workers: int | None,
    ray_address: str | None,
    ray_cpus: int,
    ray_gpus: float,
    resume: bool,
    twins: tuple[str, ...],
    quick: bool,
    tensorboard: Path | None,
    mlflow: str | None,
    as_json: bool,
) -> None:
    """Run SCENARIO (a TOML file, or the folder of an earlier run) and show the result.

    \b
    Examples:
      fedsim run experiments/hospitals.toml
      fedsim run experiments/hospitals.toml --quick
      fedsim run experiments/hospitals.toml --twin all=8 --twin all=1
      fedsim run experiments/hospitals.toml --dp all=8 --dp hospital-2=3
      fedsim run experiments/banks.toml --data-dir data --workers 4
      fedsim run experiments/hospitals.toml --engine superlink
      fedsim run runs/banks --resume
    """
    with _processes(len(twins), engine, workers) as processes:
        from fedsim.core.scenario.reading import scenario_file
        from fedsim.engines.settings import EngineOptions
        from fedsim.runs import play
        from fedsim.runs import twins as twin_runs
        from fedsim.runs.resume import ready
        from fedsim.terminal import live

        options = EngineOptions(ray_address, ray_cpus, ray_gpus)
        play.check_engine(engine, options)
        _check_trackers(tensorboard, mlflow)
        if resume and (overrides or dp or quick):
            raise InputError(
                "--resume goes on with the run's own scenario; leave out --set, --dp and --quick"
            )
        twin_runs.check(scenario_file(scenario), overrides, twins)
        if resume:
            directory = ready(_resumable(scenario, folder), data_dir)
        else:
            directory = _prepare(read_scenario(scenario, overrides, dp), data_dir, folder, quick)
        _header(directory)
        if engine == "superlink":
            line(_time_of_superlink(directory), err())
        others = [twin_runs.prepared(directory, switch, data_dir) for switch in twins]
        with twin_runs.federated(others, processes, engine, workers, options) as wait:
            with live.follow(directory, err(), VERBOSITY.verbose):
                play.federate(directory, engine, workers, options)
            _ask_for_secrets(directory)
            for switch, twin in zip(twins, others, strict=True):
                line(f"The same with --dp {switch}:", err())
                with live.follow(twin, err(), VERBOSITY.verbose):
                    wait(twin)
                write_report(twin)
    report_and_show(directory, as_json)
    _track(directory, tensorboard, mlflow)
    _gate(directory)


@contextlib.contextmanager
def _processes(twins: int, engine: str, workers: int | None) -> Iterator[Workers | None]:
    """Start processes that federate twins beside the run, as many as there are cores for; None for none.

    They import while this process does, and reads and deals the records.
    """
    count = min(twins, (workers or cores()) - 1)
    if count == 0 or engine != "inprocess":  # other engines have processes of their own
        yield None
        return
    with Workers(count, functools.partial(importlib.import_module, "fedsim.engines.inprocess")) as processes:
        processes.begin()
        yield processes


def _prepare(scenario: Scenario, data_dir: Path | None, folder: Path | None, quick: bool) -> RunDirectory:
    from fedsim.core.run_directory import new_run_path
    from fedsim.runs import prepare
    from fedsim.runs.quick import CHEAP, several_games, without_simulations
    from fedsim.terminal import check_table, live

    if quick:
        scenario = without_simulations(scenario)
    with busy("Reading the records…"):
        prepared = prepare.check(scenario, data_dir)
        several = several_games(prepared) if quick else prepared
        if check_table.estimate(several)[0] <= CHEAP:
            prepared = several
        notices(prepared.encoded.owner_notices)  # of private records: said, and written nowhere
    cost = f"{check_table.cost(prepared)}; less where shadows are kept from before"
    place = folder or new_run_path(Path("runs"), prepared.scenario.name)
    if prepared.scenario.model.pretrain is None:
        with busy("Dealing the records…"):
            run = prepare.prepare(prepared, place)
        line(cost, err())  # not before the folder is known to be free: a refusal is one sentence
        return run
    line(cost, err())
    with live.bar("epochs of pretraining", err()) as progress:
        return prepare.prepare(prepared, place, progress)


def _gate(directory: RunDirectory) -> None:
    """Judge a run by its policy, where it has one, and end with the gate's exit code where it fails."""
    settings = directory.scenario.policy
    if settings is not None and settings.thresholds():
        from fedsim.cli.policy import FAILED, gate_passes

        if not gate_passes(directory, settings):
            raise SystemExit(FAILED)


def _resumable(scenario: Path, folder: Path | None) -> RunDirectory:
    from fedsim.core.run_directory import RunDirectory
    from fedsim.core.scenario.reading import load
    from fedsim.runs import play

    if folder is not None or scenario.is_dir():
        return RunDirectory.open(folder or scenario)
    return play.latest_unfinished(Path("runs"), load(scenario).name)


def _header(directory: RunDirectory) -> None:
    manifest, scenario = directory.manifest, directory.scenario
    sizes = ", ".join(f"{name} ({n})" for name, n in manifest["parties"].items())
    source = scenario.data.name or scenario.data.path or scenario.data.text
    line(f"{scenario.name}: {source}; {sizes}", err())
    line(f"Adversary: {manifest['adversary']}; run folder: {directory.path}", err())
    notices(manifest["notices"])


def _check_trackers(tensorboard: Path | None, mlflow: str | None) -> None:
    """Refuse before the run, not after it, what the run's figures cannot be given to."""
    for wanted, package, extra in ((tensorboard, "tensorboard", "tensorboard"), (mlflow, "mlflow", "mlflow")):
        if wanted is not None and importlib.util.find_spec(package) is None:
            raise InputError(f"--{extra} needs {package}: pip install 'fedsim[{extra}]'")


def _track(directory: RunDirectory, tensorboard: Path | None, mlflow: str | None) -> None:
    from fedsim.report import tracking

    if tensorboard is not None:
        tracking.to_tensorboard(directory, tensorboard)
        line(f"TensorBoard: tensorboard --logdir {tensorboard}", err())
    if mlflow is not None:
        tracking.to_mlflow(directory, mlflow)
        line(f"MLflow: experiment fedsim at {mlflow}", err())


def _time_of_superlink(directory: RunDirectory) -> str:
    """Say what a deployment costs before its first round: each piece of a message is a request of its own."""
    scenario, parties = directory.scenario, len(directory.manifest["parties"])
    seconds = scenario.games * (20 + scenario.federation.rounds * parties / 2)
    return (
        f"Starting a SuperLink and {parties} SuperNodes with TLS and keys of their own; "
        f"at about .5 s a round and party this takes {max(1, round(seconds / 60))} min or more."
    )


def _ask_for_secrets(directory: RunDirectory) -> None:
    """Ask the language models of a run on letters for the secrets in them, where there are any."""
    from fedsim.evaluation.secrets import holds_secrets

    if not holds_secrets(directory.path):
        return
    from fedsim.runs import letters
    from fedsim.terminal import live

    with live.bar("models asked for secrets", err()) as progress:
        letters.memorise(directory, progress=progress)


def report_and_show(directory: RunDirectory, as_json: bool = False) -> None:
    """Write the report, then print the tables: what is kept does not depend on who looks on."""
    page = write_report(directory)
    _show(directory, False, as_json)
    line(f"Report: {page}", err() if as_json else out())


def _show(directory: RunDirectory, everything: bool, as_json: bool) -> None:
    from fedsim.terminal import letter_tables, run_tables, summary

    if as_json:
        print_json(summary.document(directory))
        return
    run_tables.show(directory, out(), everything)
    if directory.has("memorisation"):
        letter_tables.show(directory, out())


def write_report(
    directory: RunDirectory, others: Sequence[RunDirectory] = (), priors: Sequence[float] = ()
) -> Path:
    """Write a run's page and return its path; see `fedsim.report.write`."""
    from fedsim.report import write

    with busy("Writing the report…"):
        return write(directory, others, priors)


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--all", "everything", is_flag=True, help="All attacks, and each of them on each party.")
@json_option
def show(folder: Path, everything: bool, as_json: bool) -> None:
    """Show a run: the verdict, the strongest attacks, and leakage, guarantee and utility of each party.

    \b
    Examples:
      fedsim show runs/hospitals
      fedsim show runs/hospitals --all
      fedsim show runs/hospitals --json
    """
    from fedsim.runs.integrity import open_results

    _show(open_results(folder), everything, as_json)


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--with",
    "others",
    multiple=True,
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="A run with another adversary, for the matrix adversary × victim.",
)
@click.option(
    "--prior",
    "priors",
    multiple=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of members among those asked about. [default: 0.1, 0.01, 0.001]",
)
def report(folder: Path, others: tuple[Path, ...], priors: tuple[float, ...]) -> None:
    """Write RUN's report.html, one page that needs no network, and its figures.

    \b
    Examples:
      fedsim report runs/hospitals
      fedsim report runs/hospitals --prior 0.05
      fedsim report runs/hospitals --with runs/hospitals-2
    """
    from fedsim.runs.integrity import check_whole, open_results

    directory, beside = open_results(folder), [open_results(other) for other in others]
    for whole in (directory, *beside):
        check_whole(whole)
    line(f"Report: {write_report(directory, beside, priors)}")
