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

from attacks import observer, outsider, server_view, signals, simulation, source, suite, trajectory
from fedsim import rng
from fedsim.data.records import Records
from fedsim.errors import InputError, suggestion
from fedsim.results import RunDirectory
from fedsim.scenario import Scenario

# What secure aggregation can compute is a sum: these strategies need nothing else of a round.
_SUMS = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedadagrad", "fedyogi")


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


def attacks() -> list[suite.Attack]:
    """Return what the list of attacks says of those that only an outsider or the server mounts."""
    fitted = "members are fitted better than records like them"
    alike = "parties are alike, so that others show how a record looks that is not there"
    asked = "the final model's answers, as its output policy lets them out"
    rows = []
    for name, origin in _SOURCES.items():
        sees = asked if name in outsider.SUITE else "every party's own update of every round"
        assumes = alike if name in server_view.ISOLATING else fitted
        score = cast(Any, outsider.SUITE.get(name) or server_view.SUITE[name])
        rows.append(suite.Attack(name, score, "features and label", sees, origin, assumes))
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
    participant: observer.ParticipantView
    coalition: observer.ParticipantView | None
    server: server_view.Measurements | None


def check(scenario: Scenario, names: Sequence[str], adversary: str) -> None:
    """Check before any work starts that the observers named can be.

    Raises:
        InputError: an accomplice is no other party, nobody is left to attack, or the strategy needs more than
            sums.
    """
    settings = scenario.adversary
    for name in settings.coalition:
        if name not in names or name == adversary:
            others = [other for other in names if other != adversary]
            raise InputError(
                f"adversary.coalition: '{name}' is no party beside the adversary{suggestion(name, others)}"
            )
    if len({adversary, *settings.coalition}) == len(names):
        raise InputError("adversary.coalition names every other party; leave at least one to attack")
    strategy = scenario.federation.strategy
    if settings.secure_aggregation and strategy not in _SUMS:
        raise InputError(
            f"adversary.secure_aggregation: federation.strategy = '{strategy}' needs each party's own update"
            + suggestion(strategy, _SUMS)
        )
    central = scenario.federation.central_dp
    if settings.secure_aggregation and central is not None and central.where == "server":
        raise InputError(
            "adversary.secure_aggregation: federation.central_dp.where = 'server' clips each party's own "
            "update; let the parties clip with 'client'"
        )


def notices(scenario: Scenario) -> tuple[str, ...]:
    """Return what a person has to know of a scenario's protections: against whom they do nothing."""
    said = []
    if scenario.adversary.secure_aggregation:
        said.append(
            "Secure aggregation hides each party's update from the server alone. From a participant, who "
            "receives the aggregate either way, it hides nothing of any record."
        )
    central = scenario.federation.central_dp
    if central is not None:
        said.append(
            "Central DP protects whole parties against whoever sees aggregates, and trusts the server, which "
            "adds the noise, with every update. From a participant, who receives the aggregate, it hides "
            "nothing of a record beyond what that noise hides. Its ε is a party's, not a record's."
        )
        left_out = {attack.name for attack in suite.select(scenario.adversary.attacks)}
        left_out -= {attack.name for attack in suite.attacks_of(scenario)}
        if any(suite.SUITE[name].shadows for name in left_out):
            said.append("Attacks on shadow federations are left out: shadows do not follow central DP.")
    return tuple(said)


def see(run: RunDirectory, game: int) -> Seen:
    """Read what each observer of the scenario kept of a game.

    Raises:
        InputError: a file is missing or corrupt.
    """
    settings, folder = run.scenario.adversary, run.observations(game)
    names = tuple(run.manifest["parties"])
    together = {run.manifest["adversary"], *settings.coalition}
    victims = tuple(k for k, name in enumerate(names) if name not in together)
    candidates, view = observer.load_candidates(folder), observer.load_view(folder)
    coalition = None
    if settings.coalition:
        shared = [
            observer.load_accomplice(run.accomplice(game, k, name), k)
            for k, name in enumerate(names)
            if name in settings.coalition
        ]
        coalition = observer.pool(view, shared)
    server = _measured(run, game, view, candidates, victims) if "server" in settings.observers else None
    return Seen(run.scenario, game, names, victims, candidates, view, coalition, server)


def _measured(
    run: RunDirectory,
    game: int,
    view: observer.ParticipantView,
    candidates: Records,
    victims: tuple[int, ...],
) -> server_view.Measurements:
    told = view.candidate_party
    party = np.full(len(candidates), -1) if told is None else told
    models = {t: run.read_model(game, t) for t in range(run.last_round(game) + 1)}
    folder = run.server_observations(game)
    seen = observer.load_server_view(folder, view.settings, models, party, victims)
    return server_view.measure(seen, candidates)


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
    seen: Seen, names: Sequence[str] | None = None, laboratory: simulation.Laboratory | None = None
) -> dict[str, suite.Finding]:
    """Run the attacks of every observer beside the participant.

    names: attacks of the coalition, default those of the scenario.
    Outsider and server own no records to calibrate on: they call the upper half of the candidates members,
    as a game of as many members as non-members suggests.
    """
    findings: dict[str, suite.Finding] = {}
    if "outsider" in seen.scenario.adversary.observers:
        findings |= _halved(_asked(seen))
    if seen.coalition is not None:
        wanted, seed = names or seen.scenario.adversary.attacks, seen.scenario.seed
        found = suite.run(seen.coalition, seen.candidates, wanted, seed, seen.game, laboratory)
        findings |= {f"coalition/{name}": finding for name, finding in found.items()}
    if seen.server is not None:
        attacks = server_view.applicable(seen.server.secure)
        findings |= _halved({name: attack(seen.server) for name, attack in attacks.items()})
    return findings


def _asked(seen: Seen) -> dict[str, np.ndarray]:
    """Let an outsider ask the final model; every attack has the whole query budget."""
    view, scenario = seen.participant, seen.scenario
    module = view.module(view.final_model)
    scores = {}
    for name, attack in outsider.SUITE.items():
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


def _halved(scores: Mapping[str, np.ndarray]) -> dict[str, suite.Finding]:
    """Add the threshold; a record about which nothing is known has the lowest score."""
    findings = {}
    for name, values in scores.items():
        known = np.isfinite(values)
        filled = np.where(known, values, values[known].min() if known.any() else 0.0)
        findings[name] = suite.Finding(filled, float(np.median(filled)))
    return findings


def sources(
    seen: Seen, names: Sequence[str] | None = None, laboratory: simulation.Laboratory | None = None
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
        parts |= source.server(seen.server)
    return _source_table(seen, parts)


def _simulates(scenario: Scenario) -> bool:
    return any(attack.inside for attack in suite.attacks_of(scenario))


def _posterior(
    seen: Seen, view: observer.ParticipantView, laboratory: simulation.Laboratory | None
) -> np.ndarray:
    """Return the posterior of each victim, (n, V); the shadows are the other attacks', from the cache."""
    view = trajectory.as_assumed(view)
    matrix = simulation.simulate(view, seen.candidates, seen.scenario.seed, seen.game, laboratory)
    return source.from_shadows(matrix, np.array(seen.victims))[: len(seen.candidates), :-1]


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
