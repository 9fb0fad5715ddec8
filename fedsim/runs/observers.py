"""What each observer of a scenario saw of a finished game, and its attacks on that (DESIGN §5).

A game leaves a folder for each observer. `sight` reads it, `mount` runs the observer's attacks on it and
keeps what they find. No one here reads the truth.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from attacks import execution, registry
from attacks.declaration import Attack
from attacks.execution import Sight, Task
from attacks.shadows.suite import Laboratory
from attacks.signals import outputs
from attacks.views import observations
from attacks.views.coalition import load_accomplice, unite
from attacks.views.outsider import ReleasedModel
from attacks.views.participant import ParticipantView
from attacks.views.server import ServerView, load_server_view
from attacks.views.worlds import in_world, load_worlds
from fedsim.core.run_directory import RunDirectory, by_round_table, not_run_table, scores_table
from fedsim.core.scenario.adversary import OBSERVERS, AdversarySettings, Observer

_ORDER: tuple[Observer, ...] = ("participant", *(o for o in OBSERVERS if o != "participant"))
"""Of tables: the participant, whom a run is about, comes first."""


def observers_of(settings: AdversarySettings) -> list[Observer]:
    """Return a scenario's observers; the participant always is one."""
    return [observer for observer in _ORDER if observer == "participant" or observer in settings.observers]


def victims_of(run: RunDirectory) -> tuple[int, ...]:
    """Return the partition ids of the parties that a candidate can be of."""
    together = {run.manifest["adversary"], *run.scenario.adversary.coalition}
    return tuple(k for k, name in enumerate(run.manifest["parties"]) if name not in together)


def sight(
    run: RunDirectory, game: int, observer: Observer, rounds: Sequence[int] = (), world: str | None = None
) -> Sight:
    """Read what an observer saw of a game.

    rounds: those whose models participant and coalition look at; default: adversary.rounds
    world: what these two own; default: all that the adversary owns in any

    Raises:
        InputError: a file is missing or corrupt.
    """
    folder = run.observations(game)
    view = observations.load_view(folder)
    if world is not None:
        candidates = observations.load_candidate_pool(folder)
        view = in_world(view, candidates, world, load_worlds(folder)[world])
    if rounds:
        assumed = view.assumptions.model_copy(update={"rounds": list(rounds)})
        view = replace(view, assumptions=assumed)
    if observer == "participant":
        return view
    if observer == "coalition":
        return _coalition(run, game, view)
    return _released(run, game, view) if observer == "outsider" else _server(run, game, view)


def _coalition(run: RunDirectory, game: int, view: ParticipantView) -> ParticipantView:
    accomplices = [
        load_accomplice(run.accomplice(game, k, name), k)
        for k, name in enumerate(run.manifest["parties"])
        if name in run.scenario.adversary.coalition
    ]
    return unite(view, accomplices)


def _released(run: RunDirectory, game: int, view: ParticipantView) -> ReleasedModel:
    from fedsim.core.models import released

    policy, classes = run.scenario.adversary.output, view.settings.classes
    made = released.load(run, game)
    backing = made.backing(policy, run)
    final = run.scenario.release.kind == "final"
    module = view.module(view.final_model) if final else made.module(policy)
    return ReleasedModel(lambda features: outputs.logits(module, features), classes, policy, backing)


def _server(run: RunDirectory, game: int, view: ParticipantView) -> ServerView:
    party = view.candidate_party
    if party is None:
        party = np.full(len(observations.load_candidates(run.observations(game))), -1)
    models = {t: run.read_model(game, t) for t in range(run.last_round(game) + 1)}
    folder = run.server_observations(game)
    return load_server_view(folder, view.settings, models, party, victims_of(run))


def mount(
    run: RunDirectory,
    game: int,
    observer: Observer,
    attacks: Sequence[Attack],
    laboratory: Laboratory | None = None,
    rounds: Sequence[int] = (),
) -> None:
    """Run an observer's attacks on what it saw of a game, and keep scores, sources and what could not run.

    Raises:
        InputError: a file is missing or corrupt, or there is no such round to look at.
    """
    if not attacks:
        return
    seconds = {}
    for world in worlds_of(run, observer):
        mounted = [a for a in attacks if registry.owned_in(world, a)]
        if world != run.scenario.adversary.ladder[0]:  # which party it was is asked in the headline's world
            mounted = [a for a in mounted if a.infers == "membership"]
        if not mounted:
            continue
        started = time.monotonic()
        _mount(run, game, observer, world, mounted, laboratory, rounds)
        seconds[world] = round(time.monotonic() - started, 3)
    if observer == "participant" and any(attack.infers == "membership" for attack in attacks):
        run.update_manifest(world_seconds={**run.manifest.get("world_seconds", {}), str(game): seconds})


def worlds_of(run: RunDirectory, observer: Observer) -> tuple[str, ...]:
    """Return the worlds in which an observer attacks: outsider and server own no records to simulate with."""
    ladder = run.scenario.adversary.ladder
    return ladder if observer in ("participant", "coalition") else ladder[:1]


def _mount(
    run: RunDirectory,
    game: int,
    observer: Observer,
    world: str,
    attacks: Sequence[Attack],
    laboratory: Laboratory | None,
    rounds: Sequence[int],
) -> None:
    candidates = observations.load_candidates(run.observations(game))
    asked = load_worlds(run.observations(game))[world].asked
    task = Task(candidates.take(asked), run.scenario.seed, game, laboratory, victims_of(run))
    results = execution.run(observer, sight(run, game, observer, rounds, world), attacks, task)
    scores = {name: finding.scores for name, finding in results.findings.items()}
    thresholds = {name: finding.threshold for name, finding in results.findings.items()}
    tables = {
        "scores": scores_table(observer, world, asked, scores, thresholds),
        "scores_by_round": by_round_table(observer, asked, results.by_round),
        "source_scores": _source_table(run, observer, asked, results.sources),
        "not_run": not_run_table(observer, world, results.not_run),
    }
    for name, fresh in tables.items():
        if "world" in fresh or world == run.scenario.adversary.ladder[0]:
            _replace(run, name, game, observer, world, attacks, fresh)


def note_attacks(run: RunDirectory, attacks: Mapping[Observer, Sequence[Attack]]) -> None:
    """Keep what is declared of the attacks, so that whoever reads the run need not import a user's code."""
    columns = ["observer", "attack", "sees", "needs", "assumes", "source", "shadows", "simulates"]
    rows = pd.DataFrame(
        [
            (observer, a.name, a.sees, a.needs, a.assumes, a.source, a.shadows, a.simulates)
            for observer, of_observer in attacks.items()
            for a in of_observer
        ],
        columns=columns,
    )
    if run.has("attacks"):
        rows = pd.concat([rows, run.table("attacks")], ignore_index=True)
    rows = rows.drop_duplicates(["observer", "attack"])
    run.write_table("attacks", _in_order(run, rows))


def _source_table(
    run: RunDirectory, observer: Observer, asked: np.ndarray, sources: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Return (m, V) scores of each rule as rows: observer, attack, candidate, party, score."""
    names = list(run.manifest["parties"])
    parties = np.array([names[k] for k in victims_of(run)], dtype=object)
    tables = [
        pd.DataFrame(
            {
                "observer": observer,
                "attack": name,
                "candidate": np.repeat(asked, len(parties)),
                "party": np.tile(parties, len(scores)),
                "score": scores.ravel(),
            }
        )
        for name, scores in sources.items()
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _replace(
    run: RunDirectory,
    table: str,
    game: int,
    observer: Observer,
    world: str,
    attacks: Sequence[Attack],
    fresh: pd.DataFrame,
) -> None:
    """Put ``fresh`` in the place of what a table holds of these attacks; other attacks' rows are kept."""
    rows = fresh
    if run.has(table):
        before = run.table(table)
        before = before[before["game"] == game].drop(columns="game")
        repeated = (before["observer"] == observer) & before["attack"].isin([a.name for a in attacks])
        if "world" in before:
            repeated &= before["world"] == world
        if not len(fresh) and not repeated.any():
            return
        others = before[~repeated]
        rows = pd.concat([part for part in (others, fresh) if len(part)] or [others], ignore_index=True)
    elif not len(fresh):
        return
    run.write_game(table, game, _in_order(run, rows))


def _in_order(run: RunDirectory, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by observer, then by world, then by attack in the registry's order."""
    settings = run.scenario.adversary
    attacks = registry.known(settings.attacks, settings.folder)
    pairs = [(observer, a.name) for observer in _ORDER for a in attacks if observer in a.observers]
    place = {pair: position for position, pair in enumerate(pairs)}
    keys = np.array(
        [place.get(pair, len(place)) for pair in zip(rows["observer"], rows["attack"], strict=True)], int
    )
    observers = rows["observer"].map(_ORDER.index).to_numpy(int)
    worlds = np.zeros(len(rows), int)
    if "world" in rows:
        worlds = rows["world"].map(settings.ladder.index).to_numpy(int)
    return rows.iloc[np.lexsort((keys, worlds, observers))].reset_index(drop=True)
