"""A run's scores, judged: the only way from a run's folder to who is a member (beside `fedsim.runs`)."""

from __future__ import annotations

import pandas as pd

from fedsim.core import rng
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation import comparison
from fedsim.evaluation.by_round import evaluate_by_round
from fedsim.evaluation.ladder import ladder as rungs
from fedsim.evaluation.leakage import joined
from fedsim.evaluation.sources import evaluate as evaluate_sources
from fedsim.evaluation.truth import read_truth


def judged(run: RunDirectory, world: str | None = None) -> pd.DataFrame:
    """Return a world's scores beside the truth: see `fedsim.evaluation.leakage.joined` for the columns.

    world: default: the headline's

    Raises:
        InputError: a file is missing or corrupt.
    """
    return in_world(run, everyones(run), world)


def everyones(run: RunDirectory) -> pd.DataFrame:
    """Return the scores of all worlds beside the truth, as `judged`, from which the tables below are made.

    Raises:
        InputError: a file is missing or corrupt.
    """
    return joined(*_tables(run))


def in_world(run: RunDirectory, table: pd.DataFrame, world: str | None = None) -> pd.DataFrame:
    """Return the rows of a run's table that are about one world; default: the headline's."""
    return table[table["world"] == (world or run.scenario.adversary.ladder[0])]


def strongest(run: RunDirectory, rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return each observer's strongest attack in the headline's world: see `comparison.strongest`.

    The participant's for all parties and for each of them; the other observers' for all parties together.

    rows: `everyones`, where they have been read

    Raises:
        InputError: a file is missing or corrupt.
    """
    scores = in_world(run, everyones(run) if rows is None else rows)
    parts = []
    for observer, own in scores.groupby("observer", sort=False):
        if observer == "participant":
            stream = rng.generator(run.scenario.seed, "report: simultaneous intervals")
        else:
            stream = rng.generator(run.scenario.seed, f"report: simultaneous intervals of {observer}")
            own = own.assign(party="all")
        table = comparison.strongest(own, stream)
        parts.append(table.iloc[:1] if observer != "participant" else table)
    return pd.concat(parts, ignore_index=True)


def leakage_by_round(run: RunDirectory) -> pd.DataFrame:
    """Return leakage round by round: see `fedsim.evaluation.by_round.evaluate_by_round`.

    Raises:
        InputError: a file is missing or corrupt.
    """
    return evaluate_by_round(run.table("scores_by_round"), read_truth(run.path))


def ladder(run: RunDirectory, rows: pd.DataFrame) -> pd.DataFrame:
    """Return what the strongest attack finds in each world: see `fedsim.evaluation.ladder`.

    rows: `everyones`
    """
    return rungs(rows, run.scenario.adversary.ladder, run.scenario.seed)


def sources(run: RunDirectory) -> pd.DataFrame:
    """Return how often each rule of source inference is right: see `fedsim.evaluation.sources.evaluate`.

    Raises:
        InputError: a file is missing or corrupt.
    """
    return evaluate_sources(run.table("source_scores"), read_truth(run.path))


def _tables(run: RunDirectory) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return scores, thresholds and truth.

    Raises:
        InputError: no attack of the headline's world has brought scores.
    """
    headline = run.scenario.adversary.ladder[0]
    scores = run.table("scores") if run.has("scores") else pd.DataFrame({"world": []})
    if not (scores["world"] == headline).any():
        failed = run.table("not_run") if run.has("not_run") else pd.DataFrame()
        why = f": '{failed['attack'].iloc[0]}': {failed['reason'].iloc[0]}" if len(failed) else ""
        raise InputError(f"{run.path}: no attack could be run in world '{headline}'{why}")
    thresholds = scores[["game", "observer", "attack", "world", "threshold"]].drop_duplicates(
        ignore_index=True
    )
    return scores.drop(columns="threshold"), thresholds, read_truth(run.path)
