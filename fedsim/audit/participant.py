"""An audit from the malicious participant's seat."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from attacks.views import observations
from fedsim.audit import canaries, worst_case
from fedsim.audit.party import plan_of, units
from fedsim.audit.settings import Audit, AuditSettings
from fedsim.audit.verdict import audit_of, best_of, guessed, learnt, nearly_all, upper
from fedsim.audit.white_box import Progress
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.data.store import PartyRecords, read_party, write_party
from fedsim.core.run_directory import RunDirectory
from fedsim.engines import inprocess


def participant_audit(
    settings: AuditSettings, run: RunDirectory, names: list[str], workers: int, progress: Progress | None
) -> Audit:
    """Audit from what the malicious participant keeps of the federation, one game or several."""
    one_run, games = settings.method == "one-run", run.scenario.games
    m = settings.canaries if one_run else 1
    stream = rng.generator(settings.seed, "audit coins", party=settings.party)
    inside = stream.random((1, m)) < 0.5 if one_run else (np.arange(games) % 2 == 0)[:, None]
    scores_by_game: list[Mapping[str, np.ndarray]] = []
    plans = []
    crafted = _craft(run, names, settings) if settings.worst_case else None
    for game in range(games):
        planted, n = _plant(run, game, names, settings, inside[game], crafted)
        plans.append(plan_of(run.scenario, settings.party, n))
        inprocess.run_game(run, game, workers)
        view = observations.load_view(run.observations(game))
        if crafted is None:
            scores_by_game.append(canaries.participant_scores(view, planted))
        else:
            scores_by_game.append(worst_case.scores(view, planted, plans[-1].clipping_norm))
        if progress:
            progress(game + 1, games)
    plan = max(plans, key=lambda plan: plan.epsilon)
    delta = plan.delta if settings.delta is None else settings.delta
    scores = {
        name: np.concatenate([of_game[name] for of_game in scores_by_game]) for name in scores_by_game[0]
    }
    error = settings.error / len(scores)
    if one_run:
        numbers = [settings.guesses] if settings.guesses else [max(2, m // 4), nearly_all(m)]
        tests = [
            guessed(score, inside.ravel(), guesses, error / len(numbers), delta)
            for score in scores.values()
            for guesses in numbers
        ]
    else:
        tests = [learnt(score, inside.ravel(), error, delta, plan) for score in scores.values()]
    return audit_of(settings, "participant", best_of(tests), upper(plan, delta), delta)


def _craft(run: RunDirectory, names: list[str], settings: AuditSettings) -> Records:
    """Return the crafted canary, for the plan of a party that holds it; the run gets its initial weights."""
    folder = run.party_folder(0, names.index(settings.party), settings.party)
    n = units(read_party(folder)[0], run.scenario.dp_of(settings.party)) + 1
    return worst_case.craft(run, names, settings.party, plan_of(run.scenario, settings.party, n))


def _plant(
    run: RunDirectory,
    game: int,
    names: list[str],
    settings: AuditSettings,
    inside: np.ndarray,
    crafted: Records | None,
) -> tuple[Records, int]:
    """Put the canaries of ``inside`` among the party's training records.

    crafted: the canary of a worst case; otherwise they are drawn at the edges of the party's columns

    The numbers of training records and of persons are public, and known to every party.

    Returns: all canaries, one record each, and how many units of its DP the party then has.
    """
    where = names.index(settings.party)
    folder = run.party_folder(game, where, settings.party)
    records, info = read_party(folder)
    stream = rng.generator(settings.seed, "audit canaries", party=settings.party)
    edges = canaries.edge_records(records.heldout, info.classes, len(inside), stream)
    known = edges if crafted is None else crafted
    held = _with_canaries(records, known, canaries.planted(inside, settings.records))
    write_party(folder, held, info)
    sizes, persons = list(info.sizes), list(info.persons)
    sizes[where] = len(held.train)
    if held.train_person is not None:
        persons[where] = len(np.unique(held.train_person))
    for partition, name in enumerate(names):
        folder = run.party_folder(game, partition, name)
        records, info = read_party(folder)
        write_party(folder, records, dataclasses.replace(info, sizes=tuple(sizes), persons=tuple(persons)))
    return known, units(held, run.scenario.dp_of(settings.party))


def _with_canaries(records: PartyRecords, known: Records, planted: np.ndarray) -> PartyRecords:
    """Return a party's records with those of canaries; planted: (n,) int, the canary that each is of."""
    train, person = Records.concatenate([records.train, known.take(planted)]), records.train_person
    if person is not None:  # no canary is a person of the table's
        person = np.concatenate([person, -1 - planted])
    return dataclasses.replace(records, train=train, train_person=person)
