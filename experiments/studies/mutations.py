"""The mutation proof as a table: makes `experiments/results/mutations.md`.

    python experiments/studies/mutations.py

Plants each bug of `tests/mutations/bugs.py` in the real code, runs all unit checks and the white-box audit
of a party on all paths of its training, and writes down what each of them found.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from mutations import audited, checks  # noqa: E402
from mutations.bugs import BUGS, Bug  # noqa: E402
from mutations.planting import planted  # noqa: E402
from mutations.world import PATHS  # noqa: E402

HEADS = ["bug", "caught by unit check", "caught by audit", *(f"audit, {path}" for path in PATHS)]


def row(bug: Bug) -> list[str]:
    with planted(bug.edits):
        said = [checks.problems(path) for path in PATHS]
        found = [audited.audit(path) for path in PATHS]
    by_all = [name for name in checks.CHECKS if all(name in problems for problems in said)]
    by_audit = "yes" if all(finding.caught for finding in found) else "no"
    return [bug.name, ", ".join(in_words(name) for name in by_all), by_audit, *map(compared, found)]


def in_words(check: str) -> str:
    return (
        check.replace("_", " ").replace("epsilon", "ε").replace("sigma c", "σC").replace(" by c ", " by C ")
    )


def compared(found: audited.Finding) -> str:
    return f"{found.lower:.2f} {'>' if found.caught else '≤'} {found.claimed:.2f}"


def lines() -> list[str]:
    target, training = audited.TARGET, audited.TRAINING
    correct = [audited.audit(path) for path in PATHS]
    table = [HEADS, ["---"] * len(HEADS), ["none", "", "no", *map(compared, correct)], *map(row, BUGS)]
    return [
        "# Planted bugs: what catches them",
        "",
        "Each bug is planted in the real code (`tests/mutations/bugs.py`), on every path of `clients/dp.py`",
        "that it can be made on. A unit check is listed where it fails on all of them. Made by",
        "`python experiments/studies/mutations.py`.",
        "",
        f"Audit: white box, one run, {audited.SETTINGS.canaries} gradient canaries, "
        f"{audited.SETTINGS.guesses} guesses; the larger of the bounds by",
        f"Steinke et al. and f-DP at {audited.SETTINGS.confidence:.0%}, against the least ε that the party "
        "planned or answered with,",
        f"in a run of {audited.ROUNDS} rounds of {training.steps} steps, q = {training.batch / audited.N:g}, "
        f"C = {target.clipping_norm:g}, planned for ε = {target.epsilon:g} (δ = {target.delta:g}).",
        "It looks at one party's gradient sums along its canaries, with flat clipping: what leaks beside",
        "them it cannot see.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in table),
        "",
        "| bug | what goes wrong | who made it, or warns of it |",
        "| --- | --- | --- |",
        *(f"| {bug.name} | {bug.what} | {bug.source} |" for bug in BUGS),
    ]


@click.command()
@click.option("--table", default=ROOT / "experiments/results/mutations.md", type=click.Path(path_type=Path))
def main(table: Path) -> None:
    table.write_text("\n".join(lines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
