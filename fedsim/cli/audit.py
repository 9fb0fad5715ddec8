"""`fedsim audit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fedsim.cli.common import (
    busy,
    data_dir_option,
    dp_option,
    err,
    json_option,
    line,
    out,
    print_json,
    read_scenario,
    set_option,
)

if TYPE_CHECKING:
    from fedsim.audit.settings import Audit


@click.command()
@click.argument("scenario", type=click.Path(path_type=Path))
@click.option("--party", help="Whose DP. [default: the first party with DP]")
@set_option
@dp_option
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
    help="Many canaries at once, or a run for each guess: tighter, and slower. [default: one-run; "
    "many-run with --worst-case]",
)
@click.option(
    "--worst-case",
    is_flag=True,
    help="A participant's audit with crafted initial weights and a crafted canary: the tightest from its "
    "seat, and no adversary of real life.",
)
@click.option("--canaries", type=int, help="Of one-run. [default: 4000 white-box, 400 participant]")
@click.option("--runs", type=int, help="Of many-run. [default: 400 white-box, 100 participant]")
@click.option(
    "--records",
    type=int,
    help="Of each canary, where dp.<party>.unit = 'person'. [default: 4, or records_per_person if fewer]",
)
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of the lower bound.")
@data_dir_option
@click.option("--out", "folder", type=click.Path(path_type=Path), help="Keep the audit's own run here.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes.")
@json_option
@click.pass_context
def audit(
    context: click.Context,
    scenario: Path,
    party: str | None,
    overrides: tuple[str, ...],
    dp: tuple[str, ...],
    vantage: str,
    data_dir: Path | None,
    folder: Path | None,
    workers: int,
    as_json: bool,
    worst_case: bool,
    **how: Any,
) -> None:
    """Audit a party's DP in SCENARIO (a TOML file, or the folder of a run): the ε that can be shown to be
    spent, beside what the accountant guarantees.

    It makes runs of its own, with canaries. What it finds of a run's scenario as it stands is kept in that
    run's folder, and shown on its page. Where all guesses of the
    one-run method are right it has reached what its size can show, and the many-run method follows. It ends
    with exit code 3 where the lower bound lies above the upper one: the implementation, or its accounting, is
    broken.

    \b
    Examples:
      fedsim audit experiments/hospitals.toml --dp all=8
      fedsim audit runs/hospitals-dp-all-8 --vantage both
      fedsim audit experiments/hospitals.toml --dp all=8 --party hospital-3 --vantage both
      fedsim audit experiments/heart.toml --dp all=1 --method many-run --runs 400 --workers 4
      fedsim audit experiments/hospitals.toml --dp hospital-2=10 --vantage participant --worst-case --runs 200
    """
    from fedsim.audit import audit, settings
    from fedsim.runs import prepare
    from fedsim.terminal import audit_tables, live

    with busy("Reading the records…"):
        prepared = prepare.check(read_scenario(scenario, overrides, dp), data_dir)
    vantages: Sequence[Any] = settings.VANTAGES if vantage == "both" else [vantage]
    if worst_case and context.get_parameter_source("vantage") is ParameterSource.DEFAULT:
        vantages = ["participant"]
    plans = [
        settings.settings_for(
            prepared,
            party=party,
            vantage=name,
            worst_case=worst_case and (name == "participant" or len(vantages) == 1),
            **how,
        )
        for name in vantages
    ]
    audits = []
    for plan in plans:
        with (
            live.bar(f"{plan.vantage} runs", err()) as progress,
            settings.folder(folder, plan) as path,
        ):
            audits.append(audit.audit(prepared, plan, path, workers, progress))
    plans = [plan for plan, result in zip(plans, audits, strict=True) if _needs_follow_up(result)]
    for plan in (dataclasses.replace(plan, method="many-run") for plan in plans):
        line(
            f"{plan.party}: all guesses of the {plan.vantage} were right; a run for each guess follows", err()
        )
        with live.bar(f"{plan.vantage} runs", err()) as progress, settings.folder(None, plan) as path:
            audits.append(audit.audit(prepared, plan, path, workers, progress))
    if scenario.is_dir() and not overrides and not dp:
        _keep(scenario, audits)
    if as_json:
        print_json(audits)
    else:
        out().print(audit_tables.audits(audits))
    for result in [] if as_json else audits:
        line(audit_tables.audit_words(result), style="red" if result.violated else None)
    context.exit(3 if any(result.violated for result in audits) else 0)


def _keep(folder: Path, audits: list[Audit]) -> None:
    """Keep the audits in the run that they are of, and write its page again."""
    from fedsim import report
    from fedsim.audit import kept
    from fedsim.core.run_directory import RunDirectory

    run = RunDirectory.open(folder)
    kept.keep(run, audits)
    if run.manifest.get("complete") and not run.manifest.get("pruned"):
        line(f"The bounds stand in {report.write(run)}, beside the accountant's ε.", err())


def _needs_follow_up(result: Audit) -> bool:
    return result.method == "one-run" and result.saturated and not result.violated
