"""How sure each round's global model is of the candidates' labels, kept as ``confidence.parquet``."""

from __future__ import annotations

import numpy as np
import pandas as pd

from attacks.calibration import calibrate
from attacks.signals import outputs
from attacks.views import observations
from fedsim.core.models.shapes import LANGUAGE
from fedsim.core.run_directory import RunDirectory
from fedsim.evaluation import confidence
from fedsim.evaluation.confidence import Seen
from fedsim.evaluation.truth import read_truth

MOST_ROUNDS = 40
"""Rounds that are looked at beside round 0, spread evenly, the last one among them."""


def write(run: RunDirectory) -> None:
    """Write ``confidence.parquet`` and ``confidence_rounds.parquet``: see `fedsim.evaluation.confidence`."""
    if run.scenario.model.name in LANGUAGE:
        return  # a letter has no label to be sure of
    truth = read_truth(run.path)
    histograms, rounds = [], []
    for game in range(run.scenario.games):
        member = truth[truth["game"] == game].sort_values("candidate")["member"].to_numpy(dtype=bool)
        if not (member.any() and not member.all()):
            continue
        seen = look(run, game)
        histograms.append(confidence.histogram(seen, member).assign(game=game))
        rounds.append(confidence.by_round(seen, member).assign(game=game))
    if histograms:
        run.write_table("confidence", pd.concat(histograms, ignore_index=True))
        run.write_table("confidence_rounds", pd.concat(rounds, ignore_index=True))


def look(run: RunDirectory, game: int) -> list[Seen]:
    """Return how sure the models of a game were, by round, as the participant saw them."""
    view = observations.load_view(run.observations(game))
    candidates = observations.load_candidates(run.observations(game))
    seen = []
    for t in spread(sorted(view.models)):
        sides = (candidates, view.own_train, view.own_heldout)
        phi, inside, outside = (outputs.scaled_logit(view.logits(t, one), one.labels) for one in sides)
        phi = np.nan_to_num(phi, nan=0.0, posinf=50.0, neginf=-50.0)
        seen.append(Seen(t, phi, calibrate(np.nan_to_num(inside), np.nan_to_num(outside))))
    return seen


def spread(rounds: list[int], most: int = MOST_ROUNDS) -> list[int]:
    """Return at most ``most`` + 1 of the rounds, evenly, the first and the last among them."""
    places = np.unique(np.linspace(0, len(rounds) - 1, min(len(rounds), most + 1)).round().astype(int))
    return [rounds[place] for place in places]
