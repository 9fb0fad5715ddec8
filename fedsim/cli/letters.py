"""`fedsim extract`: what a finished run's language models give away."""

from __future__ import annotations

from pathlib import Path

import click

from fedsim.cli.common import err, json_option, out, print_json


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--rounds", default="", help="Rounds whose models are asked, as 0,5,10. [default: 0, middle, last]"
)
@click.option(
    "--samples", default=64, show_default=True, type=click.IntRange(2), help="Numbers drawn a secret."
)
@click.option(
    "--temperature", default=0.0, show_default=True, type=click.FloatRange(0), help="0: the likeliest."
)
@click.option("--top-k", default=0, type=click.IntRange(0), help="Of this many tokens alone. [default: all]")
@click.option("--show-secrets", is_flag=True, help="Print what came out without a mask.")
@json_option
def extract(
    folder: Path, rounds: str, samples: int, temperature: float, top_k: int, show_secrets: bool, as_json: bool
) -> None:
    """Ask the language models of RUN for the secrets of the other parties' letters.

    Exposure: how many bits of a number the model gives away behind its prefix (1 of one that was never
    there). Extracted: the number comes out verbatim.

    \b
    Examples:
      fedsim extract runs/letters
      fedsim extract runs/letters --rounds 0,1,2,4,10
      fedsim extract runs/letters --temperature 0.7 --top-k 40
    """
    from attacks.text.extraction import Policy
    from attacks.views.rounds import parse_rounds
    from fedsim.core.run_directory import RunDirectory
    from fedsim.runs import letters
    from fedsim.terminal import letter_tables, live

    run = RunDirectory.open(folder)
    chosen = parse_rounds(rounds, run.scenario.federation.rounds) if rounds else None
    with live.bar("models asked", err()) as progress:
        table = letters.memorise(run, chosen, samples, Policy(temperature, top_k), progress)
    if as_json:
        print_json(table)
        return
    letter_tables.show(run, out(), show_secrets)
