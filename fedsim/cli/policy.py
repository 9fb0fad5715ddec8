"""`fedsim policy` and `fedsim recommend`: the gate of a pipeline, and the cheapest setting that passes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedsim.cli.common import (
    busy,
    data_dir_option,
    err,
    json_option,
    line,
    out,
    print_json,
    read_scenario,
    set_option,
)
from fedsim.cli.streams import VERBOSITY
from fedsim.core.errors import InputError

if TYPE_CHECKING:
    from fedsim.core.run_directory import RunDirectory
    from fedsim.core.scenario.policy import PolicySettings

FAILED = 4
"""Exit code where a policy is not passed."""

_NONE = "there is no [policy]; set one in the scenario or with --set, such as --set policy.max_auc=0.6"


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@set_option
@json_option
def policy(folder: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Judge RUN by its policy: exit code 0 where it passes, 4 where it does not; writes policy.json.

    A figure is the end of its interval that speaks against the run; one that cannot be told does not pass.

    \b
    Examples:
      fedsim policy runs/hospitals
      fedsim policy runs/hospitals --set policy.max_auc=0.6 --set policy.min_accuracy=0.65
    """
    from fedsim.runs.integrity import open_results

    run = open_results(folder)
    settings = read_scenario(folder, overrides).policy
    if settings is None or not settings.thresholds():
        raise InputError(f"{folder}: {_NONE}")
    if not run.has("leakage"):
        raise InputError(f"{folder} has no leakage yet; finish it with `fedsim run {folder} --resume`")
    if not gate_passes(run, settings, as_json):
        raise SystemExit(FAILED)


def gate_passes(run: RunDirectory, settings: PolicySettings, as_json: bool = False) -> bool:
    """Judge a run, write policy.json, show it, and return whether it passes."""
    from fedsim.report import gate
    from fedsim.terminal import gate_table

    found = gate.judge(run, settings)
    document = gate.write(run, found)
    if as_json:
        print_json(document)
    else:
        out().print(gate_table.checks(found))
    return bool(document["passes"])


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@set_option
@data_dir_option
@click.option(
    "--epsilon", "epsilons", multiple=True, type=click.FloatRange(0, min_open=True),
    help="ε to try at all parties, beside no DP-SGD. [default: 8, 4, 2, 1]",
)  # fmt: skip
@click.option("--out", "place", type=click.Path(path_type=Path), help="Folder. [default: runs/recommend]")
@click.option("--workers", type=click.IntRange(1), help="Cores for the shadows. [default: all up to 4]")
@json_option
def recommend(
    scenario: Path,
    overrides: tuple[str, ...],
    data_dir: Path | None,
    epsilons: tuple[float, ...],
    place: Path | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Try DP-SGD settings of SCENARIO, and name the cheapest that meets its [policy], with what it costs.

    Cheapest: the highest held-out accuracy among those that pass. Exit code 4 where none does.

    \b
    Examples:
      fedsim recommend clinics.toml --set policy.max_auc=0.6
      fedsim recommend clinics.toml --epsilon 8 --epsilon 3
    """
    from fedsim.report.cards import switch
    from fedsim.report.gate import judge
    from fedsim.terminal import gate_table

    settings = read_scenario(scenario, overrides)
    if settings.policy is None or not settings.policy.thresholds():
        raise InputError(f"{scenario}: {_NONE}")
    asked = sorted(epsilons or (8.0, 4.0, 2.0, 1.0), reverse=True)
    folder = place or Path("runs") / "recommend"
    runs = _runs(scenario, overrides, asked, data_dir, folder, workers)
    rows = sorted(
        ((switch(run, 0.1), judge(run, settings.policy)) for run in runs),
        key=lambda row: -(row[0].epsilon or float("inf")),
    )
    passing = [k for k, (_, found) in enumerate(rows) if all(check.passes for check in found)]
    chosen = max(passing, key=lambda k: rows[k][0].accuracy.value) if passing else None
    if as_json:
        print_json({
            "recommended": None if chosen is None else rows[chosen][0].label,
            "settings": [{**vars(row), "policy": [vars(check) for check in found]} for row, found in rows],
        })  # fmt: skip
    else:
        out().print(gate_table.frontier(rows, chosen))
        line(_advice([row for row, _ in rows], chosen))
    if chosen is None:
        raise SystemExit(FAILED)


def _runs(
    scenario: Path,
    overrides: tuple[str, ...],
    epsilons: list[float],
    data_dir: Path | None,
    folder: Path,
    workers: int | None,
) -> list[RunDirectory]:
    """Run the scenario without DP-SGD and with each ε at all parties."""
    from fedsim.core.run_directory import new_run_path
    from fedsim.runs import play, prepare
    from fedsim.runs.twins import SHADOWS
    from fedsim.terminal import live

    runs = []
    for switch in ["all=off", *(f"all={epsilon:g}" for epsilon in epsilons)]:
        settings = read_scenario(scenario, overrides, (switch,))
        shadows = min(SHADOWS, settings.adversary.shadows)
        settings = read_scenario(scenario, (*overrides, f"adversary.shadows={shadows}"), (switch,))
        with busy("Reading the records…"):
            prepared = prepare.check(settings, data_dir)
        run = prepare.prepare(prepared, new_run_path(folder, settings.name))
        line(f"DP-SGD {switch.removeprefix('all=')}: {run.path}", err())
        with live.follow(run, err(), VERBOSITY.verbose):
            play.federate(run, workers=workers)
        runs.append(run)
    return runs


def _advice(rows: list, chosen: int | None) -> str:
    if chosen is None:
        return "No setting that was tried meets the policy; try a smaller ε, or other training."
    row, off = rows[chosen], rows[0]
    cost = off.accuracy.value - row.accuracy.value
    return (
        f"Recommended: DP-SGD {row.label}. It costs {100 * cost:.1f} points of accuracy against none "
        f"({off.accuracy.value:.3f} to {row.accuracy.value:.3f}, interval {row.accuracy.low:.3f} to "
        f"{row.accuracy.high:.3f}), and leaves an AUC of {row.leak.value:.3f} ({row.leak.low:.3f} to "
        f"{row.leak.high:.3f}) for {row.leak.attack}. Choosing by these results is outside the guarantee."
    )
