"""`fedsim attack`: the attacks of a run again, or those of an outsider on a released model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedsim.cli import foreign
from fedsim.cli.common import err, json_option, line, out, print_json, ray_address_option
from fedsim.core.cluster import check_address
from fedsim.core.errors import InputError

if TYPE_CHECKING:
    from attacks.released.shadows import ShadowSettings
    from attacks.released.suite import Suite
    from fedsim.runs.outsider import Question, Target


@click.command()
@click.argument("folder", metavar="[RUN]", required=False, type=click.Path(path_type=Path))
@click.option("--attacks", help="Names, as loss,server:fedmia. [default: the scenario's]")
@click.option("--rounds", default="", help="Rounds whose models to look at, e.g. 1,5,10-20,last.")
@click.option("--workers", type=click.IntRange(1), help="Cores for the shadows. [default: all up to 4]")
@ray_address_option
@click.option("--url", help="Attack a served model as an outsider, at this address.")
@click.option("--predict", metavar="MODULE:CALLABLE", help="Attack a function of yours that answers.")
@click.option("--key", envvar="FEDSIM_KEY", help="The outsider's key. [env: FEDSIM_KEY]")
@click.option("--candidates", type=click.Path(path_type=Path), help="Persons whom the outsider asks about.")
@click.option(
    "--known-outsiders", type=click.Path(path_type=Path), help="Persons known not to be in the data."
)
@click.option("--truth", help="Column of the candidates that says who is a member: judges, helps no attack.")
@click.option("--budget", type=click.IntRange(1), help="Queries to spend at most. [default: the key's]")
@click.option(
    "--shadows", default=64, show_default=True, type=click.IntRange(0), help="Of the outsider; 0: none."
)
@click.option("--hidden", default="64,64", show_default=True, help="Hidden layers that it assumes.")
@click.option("--seed", default=0, show_default=True, help="Of the outsider's noise and shadows.")
@click.option(
    "--out",
    "place",
    type=click.Path(path_type=Path),
    help="Folder for what is found: CSV; with --models a run.",
)
@json_option
@foreign.options
def attack(
    folder: Path | None,
    attacks: str | None,
    rounds: str,
    workers: int | None,
    ray_address: str | None,
    url: str | None,
    predict: str | None,
    key: str | None,
    candidates: Path | None,
    known_outsiders: Path | None,
    truth: str | None,
    budget: int | None,
    shadows: int,
    hidden: str,
    seed: int,
    place: Path | None,
    as_json: bool,
    **keywords: Any,
) -> None:
    """Repeat the attacks of RUN offline, from what the adversary kept; or attack other models.

    With --candidates an outsider asks a served model (--url), or RUN's own behind its output policy, about
    the persons of a file: columns as the model takes them, and the label. Thresholds come from the known
    outsiders alone. --predict names a function of yours instead, of features (n, d) to probabilities
    (n, classes): scikit-learn, XGBoost, anything that answers.

    With --models the models of another software (Flower, NVFlare, plain PyTorch, …) become a run: saved
    weights by round, their architecture, and records of which you know whether they were trained on.

    \b
    Examples:
      fedsim attack runs/hospitals
      fedsim attack runs/hospitals --attacks loss,update-cosine,server:fedmia
      fedsim attack runs/hospitals --rounds 1,5,10-20,last
      fedsim attack runs/hospitals --ray-address auto
      fedsim attack --url http://127.0.0.1:8000 --candidates people.csv --known-outsiders others.csv
      fedsim attack runs/hospitals --candidates people.csv --known-outsiders others.csv --budget 1000
      fedsim attack --predict mine:forest --label ill --candidates people.csv --known-outsiders others.csv
      fedsim attack --models saved/ --model net:make --records people.csv --label ill --members own.csv
    """
    label = keywords["foreign_label"] if predict else None
    brought = foreign.given({**keywords, "foreign_label": None} if predict else keywords)
    if ray_address is not None:
        check_address(ray_address)
    if brought:
        _others(brought, folder, attacks, workers, ray_address, rounds, place, as_json)
        return
    if candidates is None:
        if url is not None or predict is not None or known_outsiders is not None:
            raise InputError("--candidates FILE is missing: persons whom the outsider asks about")
        _again(_folder(folder), attacks, workers, ray_address, rounds, as_json)
        return
    if attacks is not None or rounds:
        raise InputError(
            "--attacks and --rounds are of a run's own attacks; leave them out with --candidates"
        )
    options = _Options(
        candidates, known_outsiders, truth, shadows, hidden, seed, workers, ray_address, place, as_json
    )
    if predict is not None:
        _as_outsider(*_answering(predict, folder or url, label, budget, options), options)
        return
    target = _target(folder, url, key, budget, seed)
    _as_outsider(target, _question(target, options), options)


def _others(
    brought: dict[str, Any],
    folder: Path | None,
    attacks: str | None,
    workers: int | None,
    ray_address: str | None,
    rounds: str,
    place: Path | None,
    as_json: bool,
) -> None:
    from fedsim.cli.run import report_and_show
    from fedsim.runs import foreign_run
    from fedsim.terminal import live

    if folder is not None:
        raise InputError(f"{folder}: name a run of fedsim, or --models of another software, not both")
    directory = foreign.bring(brought, attacks, place)
    with live.bar("shadow federations", err()) as progress:
        foreign_run.attack(directory, workers, progress, rounds, ray_address)
    report_and_show(directory, as_json)


def _folder(folder: Path | None) -> Path:
    if folder is None:
        raise InputError("name a RUN, or --url and --candidates of a served model")
    return folder


def _again(
    folder: Path,
    attacks: str | None,
    workers: int | None,
    ray_address: str | None,
    rounds: str,
    as_json: bool,
) -> None:
    from fedsim.cli.run import report_and_show
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs.attack import attack_again
    from fedsim.terminal import live

    directory = RunDirectory.open(folder)
    names = [name.strip() for name in attacks.split(",")] if attacks else None
    with live.bar("shadow federations", err()) as progress:
        attack_again(directory, names, workers, progress, rounds, ray_address)
    report_and_show(directory, as_json)


@dataclass(frozen=True)
class _Options:
    candidates: Path
    known_outsiders: Path | None
    truth: str | None
    shadows: int
    hidden: str
    seed: int
    workers: int | None
    ray_address: str | None
    place: Path | None
    as_json: bool


def _target(folder: Path | None, url: str | None, key: str | None, budget: int | None, seed: int) -> Target:
    if (folder is None) == (url is None):
        raise InputError("name a RUN or --url of a served model, not both")
    try:
        from fedsim.runs import outsider
    except ImportError as error:
        raise _needs(error) from error
    if url is not None:
        if not key:
            raise InputError("--key is missing; its owner makes one with `fedsim keys add RUN NAME`")
        return outsider.remote(url, key, budget)
    from fedsim.core.run_directory import RunDirectory

    return outsider.of_run(RunDirectory.open(_folder(folder)), budget=budget, seed=seed)


def _needs(error: ImportError) -> InputError:
    return InputError(f"an outsider's attack needs {error.name}; pip install 'fedsim[serve]'")


def _answering(
    predict: str, other: Path | str | None, label: str | None, budget: int | None, options: _Options
) -> tuple[Target, Question]:
    try:
        from fedsim.runs import answering
    except ImportError as error:
        raise _needs(error) from error
    if other is not None:
        raise InputError(f"name {other}, or --predict a function of yours, not both")
    if label is None:
        raise InputError("--predict needs --label, the candidates' column that the model predicts")
    people, others = options.candidates, options.known_outsiders
    return answering.of_function(
        predict, people, others, label=label, truth=options.truth, folder=str(Path.cwd()), budget=budget
    )


def _question(target: Target, options: _Options) -> Question:
    from fedsim.runs import outsider

    return outsider.question(target, options.candidates, options.known_outsiders, options.truth)


def _as_outsider(target: Target, asked: Question, options: _Options) -> None:
    from attacks.shadows.cache import cache_folder
    from attacks.shadows.simulate import Laboratory
    from fedsim.core.parallel import cores
    from fedsim.runs import outsider
    from fedsim.terminal import live

    settings = _shadow_settings(options)
    _say_cost(target, asked)
    with live.bar("shadow models", err()) as trained, live.bar("queries", err()) as spent:
        workers = options.workers or cores()
        laboratory = Laboratory(workers, cache_folder(), trained, cluster=options.ray_address)
        found = outsider.attack(target, asked, options.seed, settings, laboratory, spent)
    if options.as_json:
        print_json(outsider.accusations(found))
    else:
        _show(target, asked, found)
    if options.place is not None:
        _write(options.place, found, asked)


def _shadow_settings(options: _Options) -> ShadowSettings | None:
    from attacks.released.shadows import ShadowSettings
    from fedsim.core.scenario.training import ModelSettings

    if options.shadows == 0 or options.known_outsiders is None:
        return None
    if options.shadows < 16:
        raise InputError(f"--shadows {options.shadows}: 16 or more tell something, 0 trains none")
    try:
        widths = [int(width) for width in options.hidden.split(",") if width.strip()]
        return ShadowSettings(options.shadows, ModelSettings(hidden=widths))
    except ValueError as error:
        raise InputError(f"--hidden {options.hidden}: widths of layers, as 64,64") from error


def _say_cost(target: Target, asked: Question) -> None:
    spending = asked.spending(target.queries)
    limit = "no limit" if target.queries is None else f"{target.queries} left"
    left_out = len(asked.candidates.records) - spending.candidates
    beyond = f"; {left_out} candidates are beyond it" if left_out else ""
    line(
        f"{spending.queries} queries ({limit}): {spending.outsiders} known outsiders, {spending.candidates} "
        f"candidates, {spending.copies} noisy copies of each{beyond}. Policy: {target.policy.policy}",
        err(),
    )
    if target.per_minute is not None and spending.queries > target.per_minute:
        minutes = -(-spending.queries // target.per_minute) - 1
        line(f"The key may ask {target.per_minute} a minute: this takes about {minutes} min", err())


def _show(target: Target, asked: Question, found: Suite) -> None:
    from fedsim.runs import outsider
    from fedsim.terminal import outsider_tables as tables

    known = int(found.answers.spending.outsiders)
    title = f"An outsider at {target.name}"
    out().print(tables.accused(outsider.summary(found), outsider.ALPHA, title))
    if 0 < known < round(1 / outsider.ALPHA) - 1:
        line(
            f"With {known} known outsiders nobody can be accused: {round(1 / outsider.ALPHA) - 1} are needed"
        )
    for name, reason in found.not_run.items():
        line(f"{name} could not be run: {reason}", err())
    if asked.candidates.truth is not None:
        table, points = outsider.judged(found, asked.candidates.truth)
        out().print(tables.judged(table))
        out().print(tables.curve(points))


def _write(place: Path, found: Suite, asked: Question) -> None:
    from fedsim.core.files import cannot_write
    from fedsim.runs import outsider

    try:
        place.mkdir(parents=True, exist_ok=True)
        outsider.accusations(found).to_csv(place / "accusations.csv", index=False)
        if asked.candidates.truth is not None:
            for name, table in zip(
                ("judged", "curve"), outsider.judged(found, asked.candidates.truth), strict=True
            ):
                table.to_csv(place / f"{name}.csv", index=False)
    except OSError as error:
        raise cannot_write(place, error) from error
    line(f"Findings: {place / 'accusations.csv'}")
