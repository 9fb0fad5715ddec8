"""`fedsim deploy`: a federation between organisations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fedsim.cli.common import (
    busy,
    data_dir_option,
    dp_option,
    err,
    json_option,
    line,
    print_json,
    read_scenario,
    set_option,
)
from fedsim.core.errors import InputError

_NODE = click.argument(
    "folder", metavar="NODE", type=click.Path(path_type=Path, exists=True, file_okay=False)
)


@click.group()
def deploy() -> None:
    """Run a federation between organisations: TLS, a key for each node, each party's records at home.

    \b
    Examples:
      fedsim deploy init clinics.toml --dp all=8 --host fl.example.org --out federation
      fedsim deploy server federation/server       at the organiser's
      fedsim deploy node north                     at each party's
    """


@deploy.command("init")
@click.argument("scenario", type=click.Path(path_type=Path))
@set_option
@dp_option
@data_dir_option
@click.option("--out", "folder", required=True, type=click.Path(path_type=Path), help="A new folder.")
@click.option("--host", "hosts", multiple=True, help="Name or address of the server; repeatable.")
@click.option("--port", default=9092, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--days",
    default=365.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="How long the certificates are valid.",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="PARTY=ε",
    help="A node's own budget of ε, which it keeps to whatever the server asks; repeatable.",
)
@click.option("--malicious", metavar="PARTY", help="A node that keeps what it is sent.")
@click.option("--with-records", is_flag=True, help="A trial: each party's rows of the table into its folder.")
def init(
    scenario: Path,
    overrides: tuple[str, ...],
    dp: tuple[str, ...],
    data_dir: Path | None,
    folder: Path,
    hosts: tuple[str, ...],
    budgets: tuple[str, ...],
    **wanted: Any,
) -> None:
    """Write a folder for the server of SCENARIO and one for each party, with keys, settings and a README.

    The scenario's table needs no real record: it says which columns there are. What is not declared in it is
    learnt from its public records and fixed for everyone.

    \b
    Examples:
      fedsim deploy init experiments/heart.toml --dp all=8 --out federation --with-records
      fedsim deploy init clinics.toml --host fl.example.org --budget north=3 --out federation
    """
    from fedsim.core.scenario.reading import dp_switch
    from fedsim.deploy import folders
    from fedsim.runs import prepare

    with busy("Reading the table…"):
        prepared = prepare.check(read_scenario(scenario, overrides, dp), data_dir)
    own = dict(dp_switch(text) for text in budgets)
    plan = folders.Wanted(hosts=hosts or folders.ALWAYS, budgets=own, **wanted)
    written = folders.write(prepared, folder, plan, data_dir)
    for name, path in written.items():
        line(f"{name}: {path}")
    line("Each has a README.md for its administrator. Start the server, then the nodes:", err())
    line(f"  fedsim deploy server {written['server']}", err())
    line(f"  fedsim deploy node {list(written.values())[1]}", err())


@deploy.command()
@click.argument("folder", metavar="SERVER", type=click.Path(path_type=Path, exists=True, file_okay=False))
def server(folder: Path) -> None:
    """Run the federation of the server's folder SERVER: wait for its nodes, train, keep the models.

    \b
    Example:
      fedsim deploy server federation/server
    """
    from fedsim.deploy import running

    run = running.serve(folder, lambda text: line(text, err()))
    rounds = run.final_rounds()
    for row in rounds.to_dict("records"):
        spent = (
            f", ε = {row['epsilon']:.3g}" if row["epsilon"] == row["epsilon"] and row["epsilon"] < 1e9 else ""
        )
        line(f"{row['party']}: accuracy {row['accuracy']:.3f}, loss {row['loss']:.3f}{spent}")
    line(f"Models and rounds: {run.path}", err())


@deploy.command()
@_NODE
def node(folder: Path) -> None:
    """Run the node of a party's folder NODE until it is stopped.

    \b
    Example:
      fedsim deploy node north
    """
    from fedsim.deploy import running

    running.join(folder, lambda text: line(text, err()))


@deploy.command()
@_NODE
@json_option
def check(folder: Path, as_json: bool) -> None:
    """Show what becomes of a node's table, and what DP-SGD will cost there; nothing is sent.

    \b
    Example:
      fedsim deploy check north
    """
    from fedsim.deploy import checking

    facts = checking.facts(folder)
    if as_json:
        print_json(facts)
        return
    for word, said in facts.items():
        for text in said if isinstance(said, list) else [said]:
            line(f"{word}: {text}")


@deploy.command()
@_NODE
@click.option("--candidates", required=True, type=click.Path(path_type=Path), help="Records of people.")
@click.option("--attacks", default="", help="Names, as loss,update-cosine. [default: all without shadows]")
@click.option("--truth", help="A column that says who was trained on: judges, helps no attack.")
@click.option("--out", "target", type=click.Path(path_type=Path), help="Write the scores here, as CSV.")
@json_option
def attack(
    folder: Path, candidates: Path, attacks: str, truth: str | None, target: Path | None, as_json: bool
) -> None:
    """Ask, at a malicious node, which of the candidates the other parties trained on.

    \b
    Example:
      fedsim deploy attack north --candidates people.csv --truth trained
    """
    from fedsim.deploy import offline

    names = [name.strip() for name in attacks.split(",") if name.strip()]
    asked = offline.read_candidates(folder, candidates, truth)
    scores, results = offline.attack(folder, asked, names)
    for name, reason in results.not_run.items():
        line(f"'{name}' is left out: {reason}", err())
    if target is not None:
        try:
            scores.to_csv(target, index=False)
        except OSError as error:
            raise InputError(f"cannot write {target}: {error.strerror}") from error
    judged = None if asked.truth is None else offline.judge(scores, asked.truth)
    if as_json:
        print_json(scores if judged is None else judged)
        return
    for attacked, of_attack in scores.groupby("attack", sort=False):
        line(f"{attacked}: {of_attack['member'].sum()} of {len(of_attack)} called members")
    for auc in [] if judged is None else judged.to_dict("records"):
        line(
            f"{auc['attack']}: AUC {auc['auc']:.3f} ({auc['low']:.3f} to {auc['high']:.3f}), "
            f"{auc['n_members']} members and {auc['n_nonmembers']} others"
        )
