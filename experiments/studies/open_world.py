"""Round decoding beside LiRA and joint inference in the open world.

Makes `experiments/results/open_world.md`:

    python experiments/studies/open_world.py --workers 2 [--data-dir data] [--only hospitals]

Half of the other parties' records are unknown to the adversary. Each scenario is run with several games; LiRA
and joint inference share 256 shadow federations, round decoding simulates rounds of single parties. Runs,
scores and costs are kept below --out, so that a second call goes on where the first one stopped.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

# As in a run, and before NumPy is imported: on matrices this small threads wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import click
import numpy as np
from every_attack import finished_run

from attacks import execution, registry
from attacks.execution import Task
from attacks.rounds import decoding
from attacks.shadows.suite import Laboratory
from attacks.views import observations
from fedsim.core import rng
from fedsim.core.files import write_json
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation import comparison, estimates
from fedsim.evaluation.comparison import Comparison, Scored
from fedsim.evaluation.truth import read_truth
from fedsim.runs import observers

EXPERIMENTS = Path(__file__).resolve().parents[1]
GAMES = {"hospitals": 12, "heart": 12, "digits": 8, "location": 4}
BASELINE, OURS = "lira", "round-decoding"
ATTACKS = (BASELINE, "joint", OURS)
PARTS = {"paired": "of it, paired signatures", "gradient": "of it, gradient signatures"}
RATES = (0.01, 0.001)


def decoded(run: RunDirectory, game: int) -> dict[str, object]:
    """Scores of round decoding in one game, by each kind of signature too, and its cost; kept on disk."""
    file = run.path / f"round-decoding-{game:03d}.json"
    if not file.exists():
        view, seed = observers.sight(run, game, "participant"), run.scenario.seed
        candidates = observations.load_candidates(run.observations(game))
        stream = rng.generator(seed, f"attack/{OURS}", game=game)
        started = time.process_time()
        outcome = decoding.decode(view, candidates, int(stream.integers(2**62)))
        seconds = time.process_time() - started
        scores = {kind: parts.tolist() for kind, parts in outcome.ratios.items()}
        entry = {"scores": {OURS: outcome.scores.tolist(), **scores}}
        calibration = {
            kind: parts[0].standardised(0.5).tolist()
            for kind, parts in outcome.readings.items()
            if len(parts) == 1
        }
        costs = {"seconds": seconds, "federations": outcome.cost, "rounds": outcome.rounds}
        write_json(file, entry | costs | {"standardised": calibration})
    return json.loads(file.read_text(encoding="utf-8"))


def shadow_seconds(run: RunDirectory) -> float:
    """Seconds of a core that LiRA alone takes on the first game, its shadows included; kept on disk."""
    file = run.path / "lira-seconds.json"
    if not file.exists():
        view, started = observers.sight(run, 0, "participant"), time.process_time()
        candidates = observations.load_candidates(run.observations(0))
        task = Task(candidates, run.scenario.seed, 0, Laboratory(1))
        execution.run("participant", view, registry.attacks_of(run.scenario, names=[BASELINE]), task)
        write_json(file, time.process_time() - started)
    return float(json.loads(file.read_text(encoding="utf-8")))


def games_of(run: RunDirectory, found: list[dict]) -> tuple[list[str], list[Scored]]:
    """Names of the attacks, and every game's scores beside the truth, attacks in that order."""
    truth, table = read_truth(run.path), run.table("scores")
    kinds = [kind for kind in PARTS if all(kind in entry["scores"] for entry in found)]
    names = [*ATTACKS, *kinds]
    games = []
    for game, entry in enumerate(found):
        known = truth[truth["game"] == game].sort_values("candidate")
        scores = table[table["game"] == game].pivot(index="candidate", columns="attack", values="score")
        rows = [scores[name] for name in (BASELINE, "joint")] + [entry["scores"][n] for n in (OURS, *kinds)]
        games.append(Scored(np.array(rows, float), known["member"].to_numpy(bool)))
    return names, games


def interval(low: float, value: float, high: float, scale: float = 1.0, digits: int = 3) -> str:
    if not np.isfinite(value):
        return "n too small"
    return f"{scale * value:.{digits}f} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"


def cells(games: list[Scored], i: int, name: str) -> str:
    """AUC, TPR at both rates, and the paired differences to LiRA, as cells of a table."""
    stream = rng.generator(0, "study", party=name)
    sides = ((game.scores[i][game.member], game.scores[i][~game.member]) for game in games)
    auc = estimates.mean([estimates.auc(*side) for side in sides])
    texts = [interval(auc.low, auc.value, auc.high)]
    negatives = sum(int((~game.member).sum()) for game in games)
    rates = [rate for rate in RATES if estimates.resolvable(negatives, rate)]
    for rate in RATES:
        texts.append(f"{100 * mean_tpr(games, i, rate):.1f}" if rate in rates else "n too small")
    if name == BASELINE:
        return " | ".join([*texts, "", ""])
    pairs = [Scored(game.scores[[i, 0]], game.member) for game in games]
    area = comparison.compare_auc(pairs)
    rate_ = comparison.compare_tpr(pairs, RATES[0], stream, draws=1000)
    return " | ".join([*texts, signed(area, 1, 3), signed(rate_, 100, 1)])


def signed(result: Comparison, scale: float, digits: int) -> str:
    numbers = (f"{scale * value:+.{digits}f}" for value in (result.value, result.low, result.high))
    return "{} ({} to {})".format(*numbers)


def mean_tpr(games: list[Scored], i: int, rate: float) -> float:
    """TPR at the pooled cut: games are pooled, as in the tables of a run."""
    scores = np.concatenate([game.scores[i] for game in games])
    member = np.concatenate([game.member for game in games])
    negatives = np.sort(scores[~member])[::-1]
    return float((scores[member] > negatives[int(rate * len(negatives))]).mean())


def section(run: RunDirectory, found: list[dict], seconds: float) -> list[str]:
    names, games = games_of(run, found)
    members = sum(int(game.member.sum()) for game in games)
    nonmembers = sum(int((~game.member).sum()) for game in games)
    rounds = ", ".join(str(t) for t in found[0]["rounds"])
    several = "s" * (len(found[0]["rounds"]) > 1)
    ours = f"{np.mean([entry['federations'] for entry in found]):.1f} | "
    ours += f"{np.mean([entry['seconds'] for entry in found]):.0f}"
    costs = {BASELINE: f"{run.scenario.adversary.shadows} | {seconds:.0f}", OURS: ours}
    lines = [
        f"## {run.scenario.name}",
        "",
        f"{len(games)} games; {members} members and {nonmembers} held-out candidates in all games; "
        f"round decoding reads round{several} {rounds} of {run.scenario.federation.rounds}.",
        "",
        "| attack | AUC | TPR at 1 % FPR, in % | at 0.1 % | AUC above LiRA | points above LiRA at 1 % "
        "| federations | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for i, name in enumerate(names):
        lines.append(f"| {PARTS.get(name, name)} | {cells(games, i, name)} | {costs.get(name, ' | ')} |")
    return [*lines, "", calibration(games, found), ""]


def calibration(games: list[Scored], found: list[dict]) -> str:
    """Mean and deviation of the non-members' standardised amplitudes, 0 and 1 where the channel is true."""
    texts = []
    for kind in found[0]["standardised"]:
        pairs = zip(games, found, strict=True)
        values = np.concatenate(
            [np.array(entry["standardised"][kind])[~game.member] for game, entry in pairs]
        )
        texts.append(f"{kind} {values.mean():.2f} and {values.std():.2f}")
    return "Non-members' standardised amplitudes, mean and deviation: " + "; ".join(texts) + "."


TITLE = [
    "# The open world: half of the members are unknown to the adversary",
    "",
    "From a participant's view. LiRA and joint inference simulate whole federations, round decoding rounds",
    "of single parties; its cost is given in whole federations too. Intervals are 95 %, differences paired.",
    "Seconds are of one core, of the attack alone with what it simulates. Made by",
    "`python experiments/studies/open_world.py`.",
    "",
]


@click.command()
@click.option("--out", default="runs/open-world", show_default=True, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--workers", default=2, show_default=True)
@click.option("--games", type=int, help="Instead of each scenario's own number.")
@click.option("--shadows", default=256, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(GAMES)), help="Only these scenarios.")
@click.option("--table", default=EXPERIMENTS / "results" / "open_world.md", type=click.Path(path_type=Path))
def main(
    out: Path,
    data_dir: Path | None,
    workers: int,
    games: int | None,
    shadows: int,
    only: tuple[str, ...],
    table: Path,
) -> None:
    sections: list[str] = []
    for name in only or GAMES:
        started = time.monotonic()
        overrides = [f"games={games or GAMES[name]}", f"adversary.shadows={shadows}"]
        run = finished_run(name, "open", out, data_dir, workers, [*overrides, "adversary.attacks=['all']"])
        found = [decoded(run, game) for game in range(run.scenario.games)]
        sections += section(run, found, shadow_seconds(run))
        click.echo(f"{name}: {time.monotonic() - started:.0f} s")
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("\n".join([*TITLE, *sections][:-1]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
