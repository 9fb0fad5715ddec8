"""How often the 95 % intervals of an AUC hold: makes `experiments/results/coverage.md`.

    python experiments/studies/interval_coverage.py [--draws 1000]

A game's members score N(d, 1) and its non-members N(0, 1); games differ by d ~ N(δ, τ²), δ such that the
mean of their AUCs is the truth. One game's interval has to hold that game's own AUC, of that one
federation.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from scipy.stats import norm

from fedsim.core import rng
from fedsim.evaluation import estimates

TRUTHS = (0.5, 0.7, 0.95, 0.995)
GAMES = (1, 2, 3, 4, 5, 8, 12)
SPREADS = (0.0, 0.3, 0.6)
SIZES = (44, 177)
TABLE = Path(__file__).resolve().parents[1] / "results" / "coverage.md"


def coverage(truth: float, spread: float, games: int, n: int, draws: int) -> float:
    """Return the share of ``draws`` in which the interval holds the truth."""
    stream = rng.generator(0, f"study/coverage/{truth}/{spread}/{games}/{n}")
    centre, held = float(norm.ppf(truth)) * (2 + spread**2) ** 0.5, 0
    for _ in range(draws):
        shifts = stream.normal(centre, spread, games)
        found = estimates.mean_auc(
            [estimates.auc(stream.normal(shift, 1, n), stream.normal(0, 1, n)) for shift in shifts]
        )
        aim = float(norm.cdf(shifts[0] / 2**0.5)) if games == 1 else truth
        held += found.low <= aim <= found.high
    return held / draws


TITLE = """# How often the intervals hold

Made by `python experiments/studies/interval_coverage.py`. Simulated coverage, in %, of the nominal 95 %
interval of an AUC: of one game (DeLong on the logit scale, for that one federation) and of the mean over
several (Student's t on the games' values, on the logit scale). τ: the standard deviation between games of the
shift of members' scores; n: members, and as many non-members, a game. {draws} draws each: a figure is
uncertain by ±{error:.1f}. With two games the interval is wider than it need be, and so wide that it says
little: run five.

| n | AUC | τ | {games} |
|---|---|---|{dashes}"""


@click.command()
@click.option("--draws", default=1000, show_default=True)
@click.option("--table", default=TABLE, type=click.Path(path_type=Path))
def main(draws: int, table: Path) -> None:
    lines = []
    for n in SIZES:
        for truth in TRUTHS:
            for spread in SPREADS:
                found = [100 * coverage(truth, spread, games, n, draws) for games in GAMES]
                lines.append(f"| {n} | {truth} | {spread} | " + " | ".join(f"{x:.1f}" for x in found) + " |")
                click.echo(lines[-1])
    heads = " | ".join(f"{games} game{'s' * (games > 1)}" for games in GAMES)
    error = 100 * 1.96 * float(np.sqrt(0.95 * 0.05 / draws))
    title = TITLE.format(draws=draws, error=error, games=heads, dashes="---|" * len(GAMES))
    table.write_text("\n".join([title, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
