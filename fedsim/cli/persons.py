"""`fedsim persons`: whether a person is in a run's data, and what DP promises her."""

from __future__ import annotations

from pathlib import Path

import click

from fedsim.cli.common import err, json_option, line, out, print_json


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--unknown", multiple=True, metavar="COLUMN", help="A column that is not known; repeatable.")
@click.option(
    "--off",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="By how much of its range a known number may be off.",
)
@click.option(
    "--points", default=6, show_default=True, type=click.IntRange(1), help="Points drawn from each range."
)
@json_option
def persons(folder: Path, unknown: tuple[str, ...], off: float, points: int, as_json: bool) -> None:
    """Ask whether each person is in RUN's data: by all of her records, or by one that is known only nearly.

    Also says what the parties' DP promises a person with several records there.

    \b
    Examples:
      fedsim persons runs/diabetes-130
      fedsim persons runs/heart --unknown thal --unknown ca --off 0.1
      fedsim persons runs/letters      patients, by all of their letters
    """
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs import persons as asked
    from fedsim.terminal import live
    from fedsim.terminal.beyond_tables import promises, results

    run = RunDirectory.open(folder)
    with live.bar("scores", err()) as progress:
        table = asked.persons(run, unknown, off, points, progress)
    promised = asked.promises(run)
    if as_json:
        print_json({"persons": table, "promises": promised})
        return
    first = table.iloc[0]
    what = f"{first['n_members']} persons in the data and {first['n_others']} others; intervals 95 %."
    metrics = {"auc": "AUC\n", "tpr": "found, at its\nthreshold", "fpr": "accused\nwrongly"}
    several = "number of records" in set(table["knows"])
    alone = "No person has several records (data.person names the column of persons)."
    summed = "Her records' scores as their mean, their largest or their sum." if several else alone
    captions = {
        "person": f"{summed} {what}",
        "range": f"Numbers to within {off:g} of their range"
        + (f", {', '.join(unknown)} unknown. " if unknown else ". ")
        + f"One guess: the middle of the range. Exact: the record itself. {what}",
    }
    titles = {
        "person": "Is she in the data? All of her records",
        "range": "Is a record near this in the data?",
    }
    for part, caption in captions.items():
        rows = table[table["asked"] == part].sort_values("score", kind="stable")
        if rows.empty:  # of letters, no range is asked
            continue
        out().print(results(rows, {"score": "score", "knows": "from"}, metrics, titles[part], caption))
    out().print(promises(promised))
    line(f"fedsim report {folder}  puts this on the run's page.", err())
