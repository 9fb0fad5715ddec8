"""The same candidates, scored by others than the participant: outsider, coalition, server (DESIGN §5).

A finished game leaves a folder for each observer. `see` reads them into views, `score` runs each observer's
attacks on its view alone, `sources` asks which party holds each record. No one here reads the truth.
An attack's name says who mounted it: 'server/fedmia'; a bare name is the participant's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd

from attacks import registry
from attacks.membership import server as server_view
from attacks.membership.outsider import SUITE
from attacks.membership.server import ISOLATING, Measurements, applicable, measure
from attacks.shadows.laboratory import Laboratory, simulate
from attacks.signals import outputs as signals
from attacks.source import inference
from attacks.views import observations, outsider
from attacks.views.coalition import load_accomplice, pool
from attacks.views.participant import ParticipantView
from attacks.views.rounds import as_assumed
from attacks.views.server import load_server_view
from fedsim.core import rng
from fedsim.core.data.records import Records
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.settings import Scenario

_SOURCES = {
    "outsider/gap": "Yeom et al. 2018",
    "outsider/loss": "Yeom et al. 2018",
    "outsider/confidence": "Salem et al. 2019",
    "outsider/entropy": "Salem et al. 2019",
    "outsider/modified-entropy": "Song & Mittal 2021",
    "outsider/noise-robustness": "Choquette-Choo et al. 2021",
    "server/loss": "Nasr et al. 2019 (isolation)",
    "server/loss-series": "Zhu et al. 2025 (baseline)",
    "server/update-cosine": "Li et al. 2023",
    "server/update-regression": "ours: all candidates decoded together",
    "server/fedmia-loss": "Zhu et al. 2025 (FedMIA-I)",
    "server/fedmia": "Zhu et al. 2025 (FedMIA-II)",
}


def attacks() -> list[registry.Attack]:
    """Return what the list of attacks says of those that only an outsider or the server mounts."""
    fitted = "members are fitted better than records like them"
    alike = "parties are alike, so that others show how a record looks that is not there"
    asked = "the final model's answers, as its output policy lets them out"
    rows = []
    for name, origin in _SOURCES.items():
        sees = asked if name in SUITE else "every party's own update of every round"
        assumes = alike if name in ISOLATING else fitted
        score = cast(Any, SUITE.get(name) or server_view.SUITE[name])
        rows.append(registry.Attack(name, score, "features and label", sees, origin, assumes))
    return rows


@dataclass(frozen=True, eq=False)
class Seen:
    """One game as its observers saw it; None where the scenario does not ask for that observer.

    names: of all parties, by partition id; victims: partition ids that a candidate can be of
    """

    scenario: Scenario
    game: int
    names: tuple[str, ...]
    victims: tuple[int, ...]
    candidates: Records
    participant: ParticipantView
    coalition: ParticipantView | None
    server: Measurements | None


def see(run: RunDirectory, game: int) -> Seen:
    """Read what each observer of the scenario kept of a game.

    Raises:
        InputError: a file is missing or corrupt.
    """
    settings, folder = run.scenario.adversary, run.observations(game)
    names = tuple(run.manifest["parties"])
    together = {run.manifest["adversary"], *settings.coalition}
    victims = tuple(k for k, name in enumerate(names) if name not in together)
    candidates, view = observations.load_candidates(folder), observations.load_view(folder)
    coalition = None
    if settings.coalition:
        shared = [
            load_accomplice(run.accomplice(game, k, name), k)
            for k, name in enumerate(names)
            if name in settings.coalition
        ]
        coalition = pool(view, shared)
    server = _measured(run, game, view, candidates, victims) if "server" in settings.observers else None
    return Seen(run.scenario, game, names, victims, candidates, view, coalition, server)


def _measured(
    run: RunDirectory,
    game: int,
    view: ParticipantView,
    candidates: Records,
    victims: tuple[int, ...],
) -> Measurements:
    told = view.candidate_party
    party = np.full(len(candidates), -1) if told is None else told
    models = {t: run.read_model(game, t) for t in range(run.last_round(game) + 1)}
    folder = run.server_observations(game)
    seen = load_server_view(folder, view.settings, models, party, victims)
    return measure(seen, candidates)


def looking_at(seen: Seen, rounds: Sequence[int]) -> Seen:
    """Return the same game with participant and coalition looking at the models of these rounds alone."""
    views = (
        view and replace(view, assumptions=view.assumptions.model_copy(update={"rounds": list(rounds)}))
        for view in (seen.participant, seen.coalition)
    )
    participant, coalition = views
    assert participant is not None
    return replace(seen, participant=participant, coalition=coalition)


def score(
    seen: Seen, names: Sequence[str] | None = None, laboratory: Laboratory | None = None
) -> dict[str, registry.Finding]:
    """Run the attacks of every observer beside the participant.

    names: attacks of the coalition, default those of the scenario.
    Outsider and server own no records to calibrate on: they call the upper half of the candidates members,
    as a game of as many members as non-members suggests.
    """
    findings: dict[str, registry.Finding] = {}
    if "outsider" in seen.scenario.adversary.observers:
        findings |= _halved(_asked(seen))
    if seen.coalition is not None:
        wanted, seed = names or seen.scenario.adversary.attacks, seen.scenario.seed
        found = registry.run(seen.coalition, seen.candidates, wanted, seed, seen.game, laboratory)
        findings |= {f"coalition/{name}": finding for name, finding in found.items()}
    if seen.server is not None:
        attacks = applicable(seen.server.secure)
        findings |= _halved({name: attack(seen.server) for name, attack in attacks.items()})
    return findings


def _asked(seen: Seen) -> dict[str, np.ndarray]:
    """Let an outsider ask the final model; every attack has the whole query budget."""
    view, scenario = seen.participant, seen.scenario
    module = view.module(view.final_model)
    scores = {}
    for name, attack in SUITE.items():
        noise = rng.generator(scenario.seed, f"answers/{name}", game=seen.game)
        released = outsider.released(
            lambda features: signals.logits(module, features),
            view.settings.classes,
            scenario.adversary.output,
            noise,
        )
        stream = rng.generator(scenario.seed, f"attack/{name}", game=seen.game)
        with np.errstate(invalid="ignore"):  # NaN: beyond the query budget
            scores[name] = attack(released, seen.candidates, stream)
    return scores


def _halved(scores: Mapping[str, np.ndarray]) -> dict[str, registry.Finding]:
    """Add the threshold; a record about which nothing is known has the lowest score."""
    findings = {}
    for name, values in scores.items():
        known = np.isfinite(values)
        filled = np.where(known, values, values[known].min() if known.any() else 0.0)
        findings[name] = registry.Finding(filled, float(np.median(filled)))
    return findings


def sources(
    seen: Seen, names: Sequence[str] | None = None, laboratory: Laboratory | None = None
) -> pd.DataFrame:
    """Return who each observer believes holds each candidate: attack, candidate, party, score.

    Empty where there are fewer than two victims, or where the adversary is told whose each candidate is; a
    participant and a coalition need the shadows of an attack that the scenario asks for anyway.
    names: attacks that are repeated, None for all; a repetition of some leaves the table as it was.
    """
    parts: dict[str, np.ndarray] = {}
    told = seen.participant.candidate_party
    if len(seen.victims) < 2 or names is not None or (told is not None and (told >= 0).any()):
        return _source_table(seen, parts)
    if _simulates(seen.scenario):
        parts["source-shadows"] = _posterior(seen, seen.participant, laboratory)
        if seen.coalition is not None:
            parts["coalition/source-shadows"] = _posterior(seen, seen.coalition, laboratory)
    if seen.server is not None:
        parts |= inference.server(seen.server)
    return _source_table(seen, parts)


def _simulates(scenario: Scenario) -> bool:
    return any(attack.inside for attack in registry.attacks_of(scenario))


def _posterior(seen: Seen, view: ParticipantView, laboratory: Laboratory | None) -> np.ndarray:
    """Return the posterior of each victim, (n, V); the shadows are the other attacks', from the cache."""
    view = as_assumed(view)
    matrix = simulate(view, seen.candidates, seen.scenario.seed, seen.game, laboratory)
    return inference.from_shadows(matrix, np.array(seen.victims))[: len(seen.candidates), :-1]


def _source_table(seen: Seen, parts: Mapping[str, np.ndarray]) -> pd.DataFrame:
    parties = [seen.names[k] for k in seen.victims]
    tables = [
        pd.DataFrame(
            {
                "attack": name,
                "candidate": np.repeat(np.arange(len(scores)), len(parties)),
                "party": np.tile(np.array(parties, dtype=object), len(scores)),
                "score": scores.ravel(),
            }
        )
        for name, scores in parts.items()
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
