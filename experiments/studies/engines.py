"""One result on every engine: makes `experiments/results/engines.md`.

    python experiments/studies/engines.py --rounds 20

Runs `hospitals.toml` plain, under DP-SGD and with partial participation, in this process, with three workers,
under Ray and on a SuperLink, and writes down the SHA-256 of each final model's file and how long it took.
"""

from __future__ import annotations

import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from fedsim.core.scenario.reading import load
from fedsim.runs import play, prepare

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = ROOT / "experiments" / "hospitals.toml"
RESULT = ROOT / "experiments" / "results" / "engines.md"

VARIANTS = {
    "plain": (),
    "ε = 8 at every hospital": ("dp.all.epsilon=8",),
    "three of five in a round": ("federation.fraction=0.6",),
}
ENGINES: dict[str, tuple[str, int]] = {
    "in this process": ("inprocess", 1),
    "in this process, again": ("inprocess", 1),
    "3 workers": ("inprocess", 3),
    "ray": ("ray", 2),
    "superlink": ("superlink", 1),
}


def final_model(engine: str, workers: int, settings: tuple[str, ...], folder: Path) -> tuple[str, float]:
    """Return the SHA-256 of the final model's file, and the seconds of the game with its one attack."""
    scenario = load(SCENARIO, (*settings, 'adversary.attacks=["loss"]'))
    run = prepare.prepare(prepare.check(scenario, None), folder)
    started = time.monotonic()
    play.federate(run, engine=engine, workers=workers)
    entry: Any = run.manifest["games"]["0"]
    return entry["final_model_sha256"], time.monotonic() - started


def table(rounds: int) -> tuple[list[str], bool]:
    """Return the rows, and whether every variant has one model on all engines."""
    rows, same = [], True
    for variant, settings in VARIANTS.items():
        models = set()
        for name, (engine, workers) in ENGINES.items():
            with tempfile.TemporaryDirectory() as folder:
                sha, seconds = final_model(
                    engine, workers, (f"federation.rounds={rounds}", *settings), Path(folder) / "run"
                )
            click.echo(f"{variant}, {name}: {sha[:16]} in {seconds:.0f} s", err=True)
            models.add(sha)
            rows.append(f"| {variant} | {name} | `{sha}` | {seconds:.0f} |")
        same = same and len(models) == 1
    return rows, same


@click.command()
@click.option("--rounds", default=20, show_default=True, help="Of hospitals.toml, instead of its own.")
def main(rounds: int) -> None:
    rows, same = table(rounds)
    verdict = "One model per variant, on every engine and from run to run." if same else "**They differ.**"
    lines = [
        "# One result on every engine",
        "",
        f"`hospitals.toml` with {rounds} rounds and one attack (`loss`). The hash is that of the final",
        "model's file; seconds are of the whole game, start-up included, on a machine that others used too,",
        f"flwr {version('flwr')}. Made by `python experiments/studies/engines.py --rounds {rounds}`.",
        "",
        verdict,
        "",
        "| scenario | engine | SHA-256 | s |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    RESULT.write_text("\n".join(lines), encoding="utf-8")
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
