"""The attacks of a run, repeated offline, and their evaluation."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from attacks import registry
from attacks.shadows import cache
from attacks.shadows import laboratory as simulation
from attacks.shadows.laboratory import Laboratory
from attacks.views.rounds import parse_rounds
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory, scores_table
from fedsim.evaluation import leakage as evaluation
from fedsim.evaluation import sources as source_evaluation
from fedsim.evaluation.truth import read_truth
from fedsim.runs import observers


def evaluate(run: RunDirectory) -> None:
    """Join the scores with the truth and write ``leakage.parquet``, and ``sources.parquet`` where asked."""
    scores = run.table("scores")
    thresholds = scores[["game", "attack", "threshold"]].drop_duplicates(ignore_index=True)
    truth = read_truth(run.path)
    leakage = evaluation.evaluate(scores[["game", "attack", "candidate", "score"]], thresholds, truth)
    run.write_table("leakage", leakage)
    if run.has("source_scores"):
        run.write_table("sources", source_evaluation.evaluate(run.table("source_scores"), truth))


def attack_again(
    run: RunDirectory,
    names: list[str] | None = None,
    workers: int | None = 1,
    progress: Callable[[int, int], object] | None = None,
    rounds: str = "",
) -> None:
    """Repeat the attacks offline, from what the adversary kept and nothing else, and evaluate them.

    names: attacks to run, default those of the scenario; other attacks' scores are kept.
    workers, progress: of the shadow federations (`simulation.Laboratory`); None: `simulation.cores`.
    rounds: those whose models attacks look at, such as '1,5,10-20,last'; default: adversary.rounds.

    Raises:
        InputError: unknown attack or round, or a game whose observations are missing.
    """
    wanted = names or run.scenario.adversary.attacks
    registry.attacks_of(run.scenario, wanted)
    chosen = parse_rounds(rounds, run.scenario.federation.rounds) if rounds else None
    cores = workers or simulation.cores()
    laboratory = Laboratory(cores, cache=cache.cache_folder(), progress=progress)
    for game in range(run.scenario.games):
        folder = run.observations(game)
        if not (folder / "candidates.safetensors").exists():
            raise InputError(
                f"{folder} holds no candidates: game {game} has not come to its attacks; "
                f"finish it with `fedsim run {run.path} --resume`"
            )
        seen = observers.see(run, game)
        seen = seen if chosen is None else observers.looking_at(seen, chosen)
        findings = registry.run(
            seen.participant, seen.candidates, wanted, run.scenario.seed, game, laboratory
        )
        _keep_findings(run, game, findings)
        observe(run, seen, names, laboratory)
    evaluate(run)


def observe(run: RunDirectory, seen: observers.Seen, names: list[str] | None, laboratory: Laboratory) -> None:
    """Score the same candidates as the scenario's other observers, and ask who holds them."""
    findings = observers.score(seen, names, laboratory)
    if findings:
        _keep_findings(run, seen.game, findings)
    sources = observers.sources(seen, names, laboratory)
    if len(sources):
        run.write_game("source_scores", seen.game, sources)


def _keep_findings(run: RunDirectory, game: int, findings: dict[str, registry.Finding]) -> None:
    fresh = scores_table(
        {name: finding.scores for name, finding in findings.items()},
        {name: finding.threshold for name, finding in findings.items()},
    )
    if run.has("scores"):
        before = run.table("scores")
        mine = before[(before["game"] == game) & ~before["attack"].isin(list(findings))]
        fresh = pd.concat([mine.drop(columns="game"), fresh], ignore_index=True)
        known = {name: position for position, name in enumerate(registry.SUITE)}
        order = fresh["attack"].map(lambda name: known.get(name, len(known)))
        fresh = fresh.iloc[order.argsort(kind="stable")].reset_index(drop=True)
    run.write_game("scores", game, fresh)
