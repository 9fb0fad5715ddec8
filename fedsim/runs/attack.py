"""The attacks of a run, as its observers mount them or repeated offline, and their evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attacks import registry
from attacks.declaration import Attack
from attacks.shadows.cache import cache_folder
from attacks.shadows.simulate import Laboratory
from attacks.views.rounds import parse_rounds
from fedsim.core.cluster import on_cluster
from fedsim.core.errors import InputError
from fedsim.core.parallel import cores
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.adversary import Observer
from fedsim.evaluation import results
from fedsim.evaluation.leakage import tabled
from fedsim.runs import integrity
from fedsim.runs.observers import mount, note_attacks, observers_of


def evaluate(run: RunDirectory) -> None:
    """Join the scores with the truth; write the tables leakage, strongest, ladder, and sources if asked."""
    judged = results.everyones(run)
    run.write_table("leakage", tabled(judged))
    run.write_table("strongest", results.strongest(run, judged))
    run.write_table("ladder", results.ladder(run, judged))
    if run.has("scores_by_round"):
        run.write_table("leakage_by_round", results.leakage_by_round(run))
    if run.has("source_scores"):
        run.write_table("sources", results.sources(run))
    integrity.note_tables(run)


def observe(run: RunDirectory, game: int, laboratory: Laboratory) -> None:
    """Mount the attacks that the malicious party has not run itself: the other observers', and by source."""
    wanted = attacks_by_observer(run)
    note_attacks(run, wanted)
    for observer, attacks in wanted.items():
        if observer == "participant":
            attacks = [attack for attack in attacks if attack.infers == "source"]
        mount(run, game, observer, attacks, laboratory)


def attack_again(
    run: RunDirectory,
    names: list[str] | None = None,
    workers: int | None = 1,
    progress: Callable[[int, int], object] | None = None,
    rounds: str = "",
    cluster: str | None = None,
) -> None:
    """Repeat the attacks offline, from what the observers kept and nothing else, and evaluate them.

    Where it is stopped, or fails, the run's tables are what they were before.

    names: attacks to run ('server:fedmia', or bare: the adversary's), default all of the scenario's; other
        attacks' scores are kept.
    workers, progress: of the shadow federations (`Laboratory`); None: `parallel.cores`.
    rounds: those whose models attacks look at, such as '1,5,10-20,last'; default: adversary.rounds.
    cluster: address of a Ray cluster for the shadows (`cluster.check_address`); None: this machine.

    Raises:
        InputError: unknown attack or round, or a game whose observations are missing.
    """
    integrity.verify_attacked(run)
    wanted = attacks_by_observer(run, names)
    chosen = parse_rounds(rounds, run.scenario.federation.rounds) if rounds else []
    laboratory = Laboratory(workers or cores(), cache=cache_folder(), progress=progress, cluster=cluster)
    with on_cluster(cluster), integrity.all_or_nothing(run):
        note_attacks(run, wanted)
        _attack_games(run, wanted, laboratory, chosen)
        evaluate(run)


def _attack_games(
    run: RunDirectory,
    wanted: Mapping[Observer, Sequence[Attack]],
    laboratory: Laboratory,
    chosen: Sequence[int],
) -> None:
    for game in range(run.scenario.games):
        folder = run.observations(game)
        if not (folder / "candidates.safetensors").exists():
            raise InputError(
                f"{folder} holds no candidates: game {game} has not come to its attacks; "
                f"finish it with `fedsim run {run.path} --resume`"
            )
        for observer, attacks in wanted.items():
            mount(run, game, observer, attacks, laboratory, chosen)


def attacks_by_observer(run: RunDirectory, names: list[str] | None = None) -> dict[Observer, list[Attack]]:
    """Return the attacks that ``names`` ask for, or the scenario does, of each of the run's observers.

    Raises:
        InputError: a name is unknown, cannot be run, or is of an observer that the run does not have.
    """
    observers = observers_of(run.scenario.adversary)
    wanted = {observer: registry.attacks_of(run.scenario, observer, names) for observer in observers}
    if not any(wanted.values()):
        raise InputError(
            f"attacks {names}: none of them is of an observer of {run.path}; it has {', '.join(observers)}"
        )
    return wanted
