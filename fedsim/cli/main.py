"""The command line: a thin shell over `fedsim.runs.play`, without logic of its own."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from fedsim import __version__
from fedsim.cli import beyond
from fedsim.core.errors import FedsimError, InputError

# In a pipe there is no width to find out: 100 columns hold every table.
_out = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100)
_err = Console(stderr=True)


class _Commands(click.Group):
    """Turns fedsim's own errors into one line and an exit code; bugs keep their trace."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FedsimError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"fedsim: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("fedsim: stopped; go on with the same command and --resume", err=True)
            ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show stack traces.")
def main(debug: bool) -> None:
    """Measure what a participant of a federation could learn about who is in your data.

    \b
    Examples:
      fedsim run experiments/hospitals.toml
      fedsim run experiments/heart.toml --dp all=8 --set federation.rounds=20
      fedsim show runs/heart
    """


_data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    envvar="FEDSIM_DATA",
    help="Folder with data sets, used instead of downloads. [env: FEDSIM_DATA]",
)


@main.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override any key.")
@click.option("--dp", multiple=True, metavar="PARTY=ε", help="DP-SGD of a party; 'all=8', 'x=off'.")
@_data_dir
@click.option("--out", type=click.Path(path_type=Path), help="Run folder. [default: runs/<name>]")
@click.option("--engine", default="inprocess", show_default=True, help="inprocess or ray.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes for the parties, cores for the shadows. [default: 1, and all up to 4]",
)
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
def run(
    scenario: Path,
    overrides: tuple[str, ...],
    dp: tuple[str, ...],
    data_dir: Path | None,
    out: Path | None,
    engine: str,
    workers: int | None,
    resume: bool,
) -> None:
    """Run SCENARIO (a TOML file, or the folder of an earlier run) and show the result.

    \b
    Examples:
      fedsim run experiments/hospitals.toml
      fedsim run experiments/hospitals.toml --dp all=8 --dp hospital-2=3
      fedsim run experiments/banks.toml --data-dir data --workers 4
      fedsim run runs/banks --resume
    """
    from fedsim.runs import play
    from fedsim.terminal import live, run_tables

    play.check_engine(engine)
    if resume:
        if overrides or dp:
            raise InputError("--resume goes on with the run's own scenario; leave out --set and --dp")
        folder = _resumable(scenario, out)
    else:
        folder = _prepare(scenario, overrides, dp, data_dir, out)
    _header(folder)
    with live.follow(folder, _err):
        play.federate(folder, engine, workers)
    run_tables.show(folder, _out)
    _write_report(folder)


def _prepare(
    path: Path, overrides: tuple[str, ...], dp: tuple[str, ...], data_dir: Path | None, out: Path | None
) -> Any:
    from fedsim.core.run_directory import new_run_path
    from fedsim.core.scenario.reading import load
    from fedsim.runs import prepare

    file = path / "scenario.toml" if path.is_dir() else path
    scenario = load(file, overrides, dp)
    with _err.status("Reading the records…"):
        prepared = prepare.check(scenario, data_dir)
        return prepare.prepare(prepared, out or new_run_path(Path("runs"), scenario.name))


def _resumable(scenario: Path, out: Path | None) -> Any:
    from fedsim.core.run_directory import RunDirectory
    from fedsim.core.scenario.reading import load
    from fedsim.runs import play

    if out is not None or scenario.is_dir():
        return RunDirectory.open(out or scenario)
    return play.latest_unfinished(Path("runs"), load(scenario).name)


def _header(folder: Any) -> None:
    manifest, scenario = folder.manifest, folder.scenario
    sizes = ", ".join(f"{name} ({n})" for name, n in manifest["parties"].items())
    source = scenario.data.name or scenario.data.path
    _err.print(f"{scenario.name}: {source}; {sizes}", markup=False, highlight=False)
    _err.print(
        f"Adversary: {manifest['adversary']}; run folder: {folder.path}", markup=False, highlight=False
    )
    for notice in manifest["notices"]:
        _err.print(notice, style="yellow", markup=False, highlight=False)


@main.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
def show(folder: Path) -> None:
    """Show the tables of a run: utility, guarantee and leakage side by side.

    \b
    Example:
      fedsim show runs/hospitals
    """
    from fedsim.core.run_directory import RunDirectory
    from fedsim.terminal import run_tables

    run_tables.show(RunDirectory.open(folder), _out)


@main.command("report")
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
def write_report(folder: Path, others: tuple[Path, ...], priors: tuple[float, ...]) -> None:
    """Write RUN's report.html, one page that needs no network, and its figures.

    \b
    Examples:
      fedsim report runs/hospitals
      fedsim report runs/hospitals --prior 0.05
      fedsim report runs/hospitals --with runs/hospitals-2
    """
    from fedsim.core.run_directory import RunDirectory

    _write_report(RunDirectory.open(folder), [RunDirectory.open(other) for other in others], priors)


def _write_report(folder: Any, others: Sequence[Any] = (), priors: Sequence[float] = ()) -> None:
    from fedsim import report

    with _err.status("Writing the report…"):
        page = report.write(folder, others, priors) if priors else report.write(folder, others)
    _out.print(f"Report: [bold]{page}[/bold]", highlight=False, soft_wrap=True)


@main.command()
@click.argument("parent", default="runs", type=click.Path(path_type=Path))
def runs(parent: Path) -> None:
    """List the runs in PARENT (default: runs)."""
    from fedsim.core.run_directory import runs_in
    from fedsim.terminal import run_tables

    _out.print(run_tables.runs(runs_in(parent)))


@main.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--attacks", help="Comma-separated names. [default: those of the scenario]")
@click.option("--rounds", default="", help="Rounds whose models to look at, e.g. 1,5,10-20,last.")
@click.option("--workers", type=click.IntRange(1), help="Cores for the shadows. [default: all up to 4]")
def attack(folder: Path, attacks: str | None, rounds: str, workers: int | None) -> None:
    """Repeat the attacks of RUN offline, from what the adversary kept.

    \b
    Examples:
      fedsim attack runs/hospitals
      fedsim attack runs/hospitals --attacks loss,update-cosine
      fedsim attack runs/hospitals --rounds 1,5,10-20,last
    """
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs.attack import attack_again
    from fedsim.terminal import live, run_tables

    run = RunDirectory.open(folder)
    names = [name.strip() for name in attacks.split(",")] if attacks else None
    with live.bar("shadow federations", _err) as progress:
        attack_again(run, names, workers, progress, rounds)
    run_tables.show(run, _out)
    _write_report(run)


@main.command("sweep")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key everywhere.")
@_data_dir
@click.option("--out", type=click.Path(path_type=Path), help="Folder. [default: runs/sweeps/<name>]")
@click.option("--cells", type=click.Path(path_type=Path), help="Folder of runs. [default: <out>/cells]")
@click.option("--workers", type=click.IntRange(1), help="Cells at a time. [default: one per core]")
@click.option("--engine", default="inprocess", show_default=True, help="inprocess or ray.")
@click.option("--ray-address", envvar="RAY_ADDRESS", help="Cluster of --engine ray. [env: RAY_ADDRESS]")
@click.option("--show", is_flag=True, help="Run nothing; show what is finished.")
def run_sweep(
    file: Path,
    overrides: tuple[str, ...],
    data_dir: Path | None,
    out: Path | None,
    cells: Path | None,
    workers: int | None,
    engine: str,
    ray_address: str | None,
    show: bool,
) -> None:
    """Run every combination of the settings in FILE (a TOML file), and make one table of all.

    A sweep that was stopped, in whatever way, goes on with the same command.

    \b
    Examples:
      fedsim sweep experiments/sweeps/epsilon.toml
      fedsim sweep experiments/sweeps/epsilon.toml --workers 8 --out runs/frontier
      fedsim sweep experiments/sweeps/epsilon.toml --set games=1 --set adversary.shadows=16
      fedsim sweep experiments/sweeps/epsilon.toml --engine ray --ray-address auto
      fedsim sweep experiments/sweeps/epsilon.toml --show
    """
    from fedsim.runs import play
    from fedsim.sweeps import file as sweeps_file
    from fedsim.sweeps import points as sweeps_points
    from fedsim.sweeps import table
    from fedsim.sweeps.points import complaint, plan
    from fedsim.terminal import live, sweep_tables

    play.check_engine(engine)
    settings = sweeps_file.load(file)
    name = settings.name
    out = (out or Path("runs") / "sweeps" / name).resolve()
    with live.bar("checking", _err) as progress:
        points = plan(file, (cells or out / "cells").resolve(), data_dir, overrides, progress)
    distinct = sweeps_points.distinct(points)
    failed: dict[str, str] = {}
    if not show:
        done, workers = sum(cell.finished for cell in distinct), workers or os.cpu_count() or 1
        _err.print(f"{name}: {len(points)} points, {len(distinct)} cells, {done} finished; folder: {out}")
        with live.sweep(points, workers, _err) as watch:
            failed = sweeps_points.run(points, workers, engine, ray_address, watch)
    found = table.write(points, out, failed)
    if len(found):
        _out.print(sweep_tables.sweep(table.compact(found, settings.headline), name))
    _out.print(f"Table: [bold]{out / 'sweep.parquet'}[/bold]", highlight=False, soft_wrap=True)
    if failed:
        raise FedsimError(complaint(points, failed))


@main.command("audit")
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--party", help="Whose DP. [default: the first party with DP]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override any key.")
@click.option("--dp", multiple=True, metavar="PARTY=ε", help="DP-SGD of a party; 'all=8', 'x=off'.")
@click.option(
    "--vantage",
    type=click.Choice(["white-box", "participant", "both"]),
    default="white-box",
    show_default=True,
    help="Who sees what: every step of the training, or the models that a participant is sent.",
)
@click.option(
    "--method",
    type=click.Choice(["one-run", "many-run"]),
    default="one-run",
    show_default=True,
    help="Many canaries at once, or a run for each guess: tighter, and slower.",
)
@click.option("--canaries", type=int, help="Of one-run. [default: 4000 white-box, 400 participant]")
@click.option("--runs", type=int, help="Of many-run. [default: 400 white-box, 100 participant]")
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of the lower bound.")
@_data_dir
@click.option("--out", type=click.Path(path_type=Path), help="Keep the audit's own run here.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes.")
@click.pass_context
def run_audit(
    context: click.Context,
    scenario: Path,
    party: str | None,
    overrides: tuple[str, ...],
    dp: tuple[str, ...],
    vantage: str,
    data_dir: Path | None,
    out: Path | None,
    workers: int,
    **how: Any,
) -> None:
    """Audit a party's DP in SCENARIO (a TOML file, or the folder of a run): the ε that can be shown to be
    spent, beside what the accountant guarantees.

    It makes runs of its own, with canaries, and leaves every other run alone. It ends with exit code 3 where
    the lower bound lies above the upper one: the implementation, or its accounting, is broken.

    \b
    Examples:
      fedsim audit experiments/hospitals.toml --dp all=8
      fedsim audit experiments/hospitals.toml --dp all=8 --party hospital-3 --vantage both
      fedsim audit experiments/heart.toml --dp all=1 --method many-run --runs 400 --workers 4
    """
    from fedsim.audit import audit
    from fedsim.audit import settings as audit_settings
    from fedsim.audit.settings import VANTAGES, settings_for
    from fedsim.core.scenario.reading import load
    from fedsim.runs import prepare
    from fedsim.terminal import audit_tables, live

    with _err.status("Reading the records…"):
        file = scenario / "scenario.toml" if scenario.is_dir() else scenario
        prepared = prepare.check(load(file, overrides, dp), data_dir)
    wanted: Sequence[Any] = VANTAGES if vantage == "both" else [vantage]
    chosen = [settings_for(prepared, party=party, vantage=each, **how) for each in wanted]
    found = []
    for settings in chosen:
        with (
            live.bar(f"{settings.vantage} runs", _err) as progress,
            audit_settings.folder(out, settings) as folder,
        ):
            found.append(audit.audit(prepared, settings, folder, workers, progress))
    _out.print(audit_tables.audits(found))
    for each in found:
        _out.print(audit_tables.audit_words(each), style="red" if each.violated else None, highlight=False)
    context.exit(3 if any(each.violated for each in found) else 0)


@main.group()
def attacks() -> None:
    """The attacks there are."""


@attacks.command("list")
def attacks_list() -> None:
    """List the attacks: what each needs, sees, assumes, and its source."""
    from attacks.registry import SUITE
    from fedsim.runs import observers
    from fedsim.terminal import data_tables

    _out.print(data_tables.attack_list([*SUITE.values(), *observers.attacks()]))


@main.group()
def scenario() -> None:
    """Scenario files: check one, or print the schema."""


@scenario.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override any key.")
@_data_dir
def check(file: Path, overrides: tuple[str, ...], data_dir: Path | None) -> None:
    """Check FILE and its data without running anything, and say what it would do."""
    from fedsim.core.scenario.reading import load
    from fedsim.runs import prepare

    prepared = prepare.check(load(file, overrides), data_dir)
    for notice in prepared.encoded.notices:
        _err.print(notice, style="yellow", markup=False, highlight=False)
    sizes = ", ".join(f"{name} ({len(index)})" for name, index in prepared.rows.items())
    click.echo(f"{file} is valid: {len(prepared.rows)} parties: {sizes}")


@scenario.command()
def schema() -> None:
    """Print the JSON Schema of scenario files, for editors."""
    from fedsim.core.scenario.settings import Scenario

    click.echo(json.dumps(Scenario.model_json_schema(), indent=2))


@main.group()
def data() -> None:
    """The named data sets."""


@data.command("list")
def data_list() -> None:
    """List the named data sets."""
    from fedsim.core.data import catalogue
    from fedsim.terminal import data_tables

    _out.print(data_tables.data_list([catalogue.get(name) for name in catalogue.names()]))


@data.command("show")
@click.argument("name")
def data_show(name: str) -> None:
    """Show origin, licence, files and columns of NAME.

    \b
    Example:
      fedsim data show heart-disease
    """
    from fedsim.core.data import catalogue
    from fedsim.terminal import data_tables

    data_tables.data_set(catalogue.get(name), _out)


@data.command("fetch")
@click.argument("name")
@_data_dir
def data_fetch(name: str, data_dir: Path | None) -> None:
    """Download NAME, or find it in --data-dir, and check it against its hash."""
    from fedsim.core.data import catalogue

    with _err.status(f"Fetching {name}…"):
        paths = catalogue.fetch(name, data_dir)
    for path, file in zip(paths, catalogue.get(name).files, strict=True):
        click.echo(f"{path}: {'SHA-256 as published' if file.sha256 else 'no published SHA-256'}")
    if not paths:
        click.echo(f"{name} comes with scikit-learn; there is nothing to fetch")


main.add_command(beyond.attribute)
main.add_command(beyond.invert)
main.add_command(beyond.reconstruct)
main.add_command(beyond.count)


if __name__ == "__main__":
    sys.exit(main())
