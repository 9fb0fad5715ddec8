"""The strong attacks and their rivals in every world: makes `experiments/results/attacks.md`.

    python experiments/studies/every_attack.py --jobs 2 [--data-dir data] [--only hospitals]
    python experiments/studies/every_attack.py --only location --games location=3 --shadows location=128

Every game is a run of its own, with fresh pools and a fresh w_0, kept below --out: a second call goes on
where the first one stopped, and with more games adds those that are missing. The federation of a game is
trained once and attacked in four worlds: by the strong attacks and their rivals, on the hospitals by the
whole suite. A data set's section of the page is replaced when it is made again; the others stay.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

# As in a run, and before NumPy is imported: on matrices this small threads wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import click
import numpy as np
import pandas as pd

from attacks import registry
from attacks.declaration import Attack
from attacks.rounds import decoding
from attacks.shadows import budget
from attacks.shadows.suite import EARLY
from attacks.views import observations
from attacks.views.rounds import as_assumed
from attacks.views.worlds import load_worlds
from fedsim.core import rng
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.adversary import OWNS
from fedsim.core.scenario.reading import load
from fedsim.evaluation import comparison, estimates, leakage, ratios
from fedsim.evaluation.comparison import Comparison, Scored
from fedsim.evaluation.results import in_world
from fedsim.evaluation.truth import read_truth
from fedsim.runs import observers, play, prepare

EXPERIMENTS = Path(__file__).resolve().parents[1]
GAMES = {"hospitals": 12, "heart": 12, "digits": 6, "location": 3}
SHADOWS = {"hospitals": 256, "heart": 256, "digits": 256, "location": 128}
WORLDS = ("all", "half", "few", "none")
STRONG = (
    "loss", "update-regression", "glir", "covariance", "round-decoding", "lira", "lira-offline",
    "lira-rounds", "lira-projected", "lira-projected-offline", "rmia", "rmia-offline", "informia",
    "informia-offline", "bavaria", "bavaria-offline", "pmia", "cmia", "combined", "joint",
)  # fmt: skip
SUITE = ("hospitals", "all")
"""Data set and world of which the page has every attack of the suite."""
BASELINES = ("lira", "lira-offline")
"""The first of them that runs in a world is what others are compared with."""
AIMED_AT = ("half", "round-decoding")
"""World and attack that the first sentence of a section is about."""
RATE, DRAWS = 0.01, 1000


def finished_run(
    name: str, out: Path, data_dir: Path | None, workers: int, overrides: list[str], folder: str = ""
) -> RunDirectory:
    """Return the run of experiments/NAME.toml below ``out``, as far as it is not there made or gone on with.

    Raises:
        click.ClickException: the folder holds a run of other settings.
    """
    path, scenario = out / (folder or name), load(EXPERIMENTS / f"{name}.toml", overrides)
    if (path / "manifest.json").exists():
        run = RunDirectory.open(path)
        asked, kept = scenario.adversary, run.scenario.adversary
        for key in ("attacks", "shadows", "worlds"):
            if getattr(asked, key) != getattr(kept, key):
                raise click.ClickException(
                    f"{path}: made with adversary.{key} = {getattr(kept, key)}, and {getattr(asked, key)} is "
                    "asked for; name another folder with --out, or remove it"
                )
    else:
        run = prepare.prepare(prepare.check(scenario, data_dir), path)
    if not run.manifest.get("complete"):
        play.federate(run, workers=workers)
    return run


# ------------------------------------------------------------------------------------------ the games
@dataclass(frozen=True)
class Plan:
    """The games of one data set."""

    name: str
    games: int
    shadows: int
    attacks: tuple[str, ...]
    out: Path
    data_dir: Path | None
    workers: int

    def play(self, game: int) -> Path:
        """Play one game, of a seed of its own, and return its run folder."""
        seed = load(EXPERIMENTS / f"{self.name}.toml").seed + game
        told = {"worlds": list(WORLDS), "attacks": list(self.attacks), "shadows": self.shadows}
        overrides = [
            "games=1",
            f"seed={seed}",
            *(f"adversary.{key}={value}" for key, value in told.items()),
        ]
        folder = f"{self.name}/game-{game:02d}"
        return finished_run(self.name, self.out, self.data_dir, self.workers, overrides, folder).path


def played(plan: Plan, jobs: int, say: Callable[[str], object] = click.echo) -> list[RunDirectory]:
    """Return the runs of all games, ``jobs`` of them played at a time."""
    started, paths = time.monotonic(), {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        left: dict[Future[Path], int] = {pool.submit(plan.play, game): game for game in range(plan.games)}
        while left:
            for done in wait(left, return_when=FIRST_COMPLETED).done:
                paths[left.pop(done)] = done.result()
            took = time.monotonic() - started
            still = took / len(paths) * len(left)
            say(f"{plan.name}: {len(paths)} of {plan.games} games, {took:.0f} s, about {still:.0f} s left")
    return [RunDirectory.open(paths[game]) for game in range(plan.games)]


# ------------------------------------------------------------------------------------------ their figures
def judged(runs: Sequence[RunDirectory], world: str) -> pd.DataFrame:
    """Return a world's scores of all games beside the truth, as `leakage.joined` does."""
    return leakage.joined(*_tables(runs, world))


def _tables(runs: Sequence[RunDirectory], world: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return scores, thresholds and truth of the participant, a game a run."""
    scores = pd.concat(
        [in_world(run, run.table("scores"), world).assign(game=game) for game, run in enumerate(runs)],
        ignore_index=True,
    )
    scores = scores[scores["observer"] == "participant"]
    thresholds = scores[["game", "observer", "attack", "world", "threshold"]].drop_duplicates()
    truth = pd.concat([read_truth(run.path).assign(game=game) for game, run in enumerate(runs)])
    return scores.drop(columns="threshold"), thresholds, truth


def costs(runs: Sequence[RunDirectory], world: str) -> dict[str, float]:
    """Return what each attack of a world simulates in a game, in whole federations.

    Shadows that several attacks share count for each of them.
    """
    run = runs[0]
    settings, rounds = run.scenario.adversary, run.scenario.federation.rounds
    weights = budget.parameters(run.scenario.model, run.manifest)
    early = budget.early(settings, weights) if weights else settings.shadows
    of_shadows = {"whole": settings.shadows, "early": early * min(EARLY, rounds) / rounds}
    of_rounds = _cost_of_decoding(run, world)

    def cost(attack: Attack) -> float:
        simulated = attack.simulates or decoding.NAME in attack.beside
        return sum(of_shadows[kind] for kind in attack.compares_with) + simulated * of_rounds

    return {attack.name: cost(attack) for attack in registry.known() if "participant" in attack.observers}


def _cost_of_decoding(run: RunDirectory, world: str) -> float:
    folder = run.observations(0)
    candidates = observations.load_candidates(folder).take(load_worlds(folder)[world].asked)
    view = observers.sight(run, 0, "participant", world=world)
    return decoding.planned_cost(as_assumed(view), candidates)  # type: ignore[arg-type]


def interval(row: pd.Series, scale: float = 1.0, digits: int = 3) -> str:
    if not np.isfinite(row["value"]):
        return "n too small"
    value, low, high = (scale * row[name] for name in ("value", "low", "high"))
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def signed(result: Comparison, scale: float, digits: int) -> str:
    numbers = (f"{scale * value:+.{digits}f}" for value in (result.value, result.low, result.high))
    return "{} ({} to {})".format(*numbers)


def times(result: Comparison) -> str:
    """Return a ratio in words, '∞' where it has no end."""
    value, low, high = (
        "∞" if np.isinf(number) else f"{number:.1f}" for number in (result.value, result.low, result.high)
    )
    return f"neither finds any ({low} to {high})" if np.isnan(result.value) else f"{value} ({low} to {high})"


def paired(found: pd.DataFrame, attack: str, baseline: str) -> list[Scored]:
    keys = [("participant", attack), ("participant", baseline)]
    return comparison.scored(comparison.of_attacks(found, keys), keys)


def ratio(games: Sequence[Scored], attack: str) -> Comparison | None:
    """Return the ratio of the TPRs at `RATE`, None where n is too small for one."""
    if not estimates.bounded_below(sum(int((~game.member).sum()) for game in games), RATE):
        return None
    return ratios.ratio_of_tpr(games, RATE, rng.generator(0, "study", party=attack), draws=DRAWS)


def table(runs: Sequence[RunDirectory], world: str) -> list[str]:
    scores, thresholds, truth = _tables(runs, world)
    overall = leakage.evaluate(scores, thresholds, truth)
    overall = overall[(overall["party"] == "all") & (overall["game"] == "all")]
    found, cost = leakage.joined(scores, thresholds, truth), costs(runs, world)
    whole = (runs[0].scenario.name, world) == SUITE
    names = [name for name in dict.fromkeys(overall["attack"]) if whole or name in STRONG]
    baseline = next((name for name in BASELINES if name in names), names[0])
    sizes = overall.iloc[0]
    lines = [
        f"### {runs[0].scenario.name}, world '{world}'",
        "",
        f"The adversary owns {OWNS[world]}. {sizes['n_members']:.0f} members and "
        f"{sizes['n_nonmembers']:.0f} held-out candidates in all games; {seconds(runs, world)}",
        "",
        f"| attack | AUC | TPR at 1 % FPR, in % | AUC above {baseline} | times {baseline}'s TPR at 1 % "
        f"| simulates, in % of {baseline}'s federations |",
        "|---|---|---|---|---|---|",
    ]
    for attack in names:
        by_metric = overall[overall["attack"] == attack].set_index("metric")
        cells = [interval(by_metric.loc["auc"]), interval(by_metric.loc["tpr_at_fpr_0.01"], 100, 1)]
        cells += ["", ""] if attack == baseline else differences(paired(found, attack, baseline), attack)
        lines.append(f"| {attack} | {' | '.join(cells)} | {100 * cost[attack] / cost[baseline]:.0f} |")
    return [*lines, "", *left_out(runs, world)]


def differences(games: Sequence[Scored], attack: str) -> list[str]:
    """Return the paired difference of the AUCs and the ratio of the TPRs; '' where n is too small for one."""
    of_rates = ratio(games, attack)
    return [signed(comparison.compare_auc(games), 1, 3), "" if of_rates is None else times(of_rates)]


def left_out(runs: Sequence[RunDirectory], world: str) -> Iterator[str]:
    """Yield what could not be run, and why."""
    tables = [run.table("not_run") for run in runs if run.has("not_run")]
    rows = pd.concat(tables) if tables else pd.DataFrame({"world": [], "attack": [], "reason": []})
    rows = rows[rows["world"] == world].drop_duplicates(["attack", "reason"])
    for attack, reason in zip(rows["attack"], rows["reason"], strict=True):
        yield from (f"'{attack}' was not run: {reason}.", "")


def seconds(runs: Sequence[RunDirectory], world: str) -> str:
    took = [run.manifest["world_seconds"]["0"].get(world, np.nan) for run in runs]
    return f"all attacks of this world took {np.nanmean(took):.0f} s a game."


def headline(runs: Sequence[RunDirectory]) -> str:
    """Say what our attack adds to LiRA where half of the members are unknown, and what it costs."""
    world, attack = AIMED_AT
    found = judged(runs, world)
    names = set(found["attack"])
    baseline = next((name for name in BASELINES if name in names), "")
    if not {attack, baseline} <= names:
        return ""
    games, cost = paired(found, attack, baseline), costs(runs, world)
    of_rates = ratio(games, attack)
    of_areas = signed(comparison.compare_auc(games), 1, 3)
    rates = "(too few non-members for a ratio of rates)"
    if of_rates is not None:
        rates = f"and {times(of_rates)} times its TPR at 1 % FPR"
    return (
        f"In world '{world}' {attack} has {of_areas} of AUC above {baseline} {rates}, "
        f"for {100 * cost[attack] / cost[baseline]:.0f} % of its simulation."
    )


# ------------------------------------------------------------------------------------------ the page
TITLE = [
    "# What a participant finds, world by world and attack by attack",
    "",
    "From a participant's view. Each federation is trained once and attacked by adversaries that own less",
    "and less. All of them know the parties' sizes, w_0 and the training's settings, and assume that half of",
    "those they ask about are members; what each of these is worth stands in `ladder.md`. Every game has",
    "pools and a w_0 of its own. Intervals are 95 %, differences and ratios paired; of few games they say",
    "little about how games differ. Beside ours stand their nearest published rivals on the same shadows:",
    "CMIA without those that the paper trains anew; InfoRMIA, which orders one model's records as RMIA does",
    "by the same p(x). Of the hospitals in world 'all' the whole suite is shown. Made by",
    "`python experiments/studies/every_attack.py`, a data set at a time.",
]


def section(runs: Sequence[RunDirectory]) -> list[str]:
    scenario = runs[0].scenario
    adversary, rounds = scenario.adversary, scenario.federation.rounds
    weights = budget.parameters(scenario.model, runs[0].manifest)
    games = f"{len(runs)} games" if len(runs) > 1 else "1 game, of which alone intervals speak"
    lines = [
        f"## {scenario.name}",
        "",
        f"{games}, {rounds} rounds; {budget.in_words(adversary, weights)}.",
        "",
    ]
    first = headline(runs)
    lines += [first, ""] if first else []
    for world in adversary.ladder:
        lines += table(runs, world)
    return lines


def replaced(page: str, name: str, lines: Sequence[str]) -> str:
    """Return the page with this data set's section in the place of what it had, in the order of `GAMES`."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    sections: Mapping[str, str] = dict(zip(parts[1::2], parts[2::2], strict=True))
    bodies = {**sections, name: "\n" + "\n".join(lines[1:])}
    order = [*(each for each in GAMES if each in bodies), *(each for each in bodies if each not in GAMES)]
    texts = [f"## {each}\n\n{bodies[each].strip()}\n" for each in order]
    return "\n".join(["\n".join(TITLE) + "\n", *texts])


def by_name(values: Sequence[str], usual: Mapping[str, int], least: int) -> dict[str, int]:
    """Return a number for each data set from texts such as '4' (for all) and 'location=2'.

    Raises:
        click.BadParameter: it is none of these.
    """
    numbers = dict(usual)
    for text in values:
        name, _, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < least or (name and name not in usual):
            raise click.BadParameter(
                f"'{text}': it must be a number from {least} on, or NAME=NUMBER, with a NAME of "
                f"{', '.join(usual)}"
            )
        numbers |= {name: int(number)} if name else dict.fromkeys(usual, int(number))
    return numbers


@click.command()
@click.option("--out", default="runs/attacks", show_default=True, type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), envvar="FEDSIM_DATA")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Games at a time.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Cores of a game.")
@click.option("--games", multiple=True, metavar="[NAME=]K", help=f"Instead of {GAMES}.")
@click.option("--shadows", multiple=True, metavar="[NAME=]S", help=f"Instead of {SHADOWS}.")
@click.option("--only", multiple=True, type=click.Choice(list(GAMES)), help="Only these data sets.")
@click.option(
    "--table", "page", default=EXPERIMENTS / "results" / "attacks.md", type=click.Path(path_type=Path)
)
def main(
    out: Path,
    data_dir: Path | None,
    jobs: int,
    workers: int,
    games: tuple[str, ...],
    shadows: tuple[str, ...],
    only: tuple[str, ...],
    page: Path,
) -> None:
    counts, budgets = by_name(games, GAMES, 1), by_name(shadows, SHADOWS, 16)
    for name in only or GAMES:
        attacks = ("all",) if name == SUITE[0] else STRONG
        plan = Plan(name, counts[name], budgets[name], attacks, out, data_dir, workers)
        runs = played(plan, jobs)
        before = page.read_text(encoding="utf-8") if page.exists() else ""
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(replaced(before, name, section(runs)), encoding="utf-8")
        click.echo(f"{name}: its section of {page} is made")


if __name__ == "__main__":
    main()
