"""`fedsim poison`: what an adversary does with whom it calls members."""

from __future__ import annotations

from pathlib import Path

import click

from fedsim.cli.common import err, json_option, line, out, print_json


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--targets", default=8, show_default=True, type=click.IntRange(2), help="People aimed at.")
@click.option("--copies", default=2, show_default=True, type=click.IntRange(1), help="Poisoned records each.")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1), help="Last rounds poisoned.")
@click.option(
    "--defence", "defences", multiple=True, help="fedavg, fedmedian, fedtrimmedavg, krum. [default: all]"
)
@json_option
def poison(
    folder: Path, targets: int, copies: int, rounds: int, defences: tuple[str, ...], as_json: bool
) -> None:
    """Replay RUN's last rounds with poison aimed at people called members, and at as many drawn at random.

    The damage is how much less the model believes a target's label than without poison. Robust strategies are
    tried as defences.

    \b
    Examples:
      fedsim poison runs/hospitals
      fedsim poison runs/heart --targets 20 --copies 4 --defence fedavg --defence krum
    """
    from fedsim.core.errors import InputError, suggestion
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs import poison as replayed
    from fedsim.terminal import live
    from fedsim.terminal.beyond_tables import results

    for name in defences:
        if name not in replayed.DEFENCES:
            raise InputError(f"--defence {name}: no such defence{suggestion(name, replayed.DEFENCES)}")
    run = RunDirectory.open(folder)
    budget = replayed.Budget(targets, copies, rounds)
    with live.bar("replays", err()) as progress:
        table = replayed.poison(run, budget, defences or replayed.DEFENCES, progress)
    if as_json:
        print_json(table)
        return
    keys = {"kind": "poison", "update": "update", "aim": "aimed at"}
    metrics = {
        "damage": "damage",
        "gain": "gain over\nrandom",
        "turned": "turned\naround",
        "accuracy": "lost\naccuracy",
        "norm": "norm",
    }
    caption = (
        f"n = {table['n'].max()} targets. Damage: p of the label without poison minus with it; its gain is "
        "that of aiming at people called members. Turned around: right without, wrong with poison. Lost "
        "accuracy: on all held-out records. Norm: of the adversary's update over the others' median, more "
        "than its honest one. Intervals 95 %."
    )
    for strategy, rows in table.replace({"aim": {"called members": "members"}}).groupby(
        "defence", sort=False
    ):
        out().print(results(rows, keys, metrics, f"Poison aimed by membership, strategy {strategy}"))
    line(caption)
    line(f"fedsim report {folder}  puts this on the run's page.", err())
