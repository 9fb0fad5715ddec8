"""Attacks on the model of one round after the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.runs import finished_run

from attacks import by_round
from attacks.matrix import lira
from attacks.matrix.signal_matrix import SignalMatrix
from attacks.signals import outputs
from attacks.views import observations
from fedsim.core.run_directory import RunDirectory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("by_round")
    return finished_run(folder, games=2, adversary={"attacks": ["loss", "lira"], "shadows": 16})


def test_the_loss_of_every_round_is_that_of_its_model(run: RunDirectory) -> None:
    scores = run.table("scores_by_round")
    for game in (0, 1):
        view = observations.load_view(run.observations(game))
        candidates = observations.load_candidates(run.observations(game))
        for t in (1, 2, 3):
            rows = scores.query("game == @game and attack == 'loss' and round == @t")
            answers = outputs.logits(view.module(run.read_model(game, t)), candidates.features)
            expected = -outputs.loss(answers.astype(np.float32).astype(float), candidates.labels)
            np.testing.assert_allclose(rows.sort_values("candidate")["score"], expected, rtol=1e-9)


def test_the_last_round_is_the_attack_itself(run: RunDirectory) -> None:
    by_round, whole = run.table("scores_by_round"), run.table("scores")
    key = ["game", "attack", "candidate"]
    last = by_round[by_round["round"] == 3].merge(whole, on=key, suffixes=("_round", ""))
    assert len(last) == len(whole) and set(last["attack"]) == {"loss", "lira"}
    np.testing.assert_array_equal(last["score_round"], last["score"])
    tables = [run.table("leakage_by_round").query("round == 3"), run.table("leakage").query("party == 'all'")]
    columns = ["attack", "game", "metric", "value", "low", "high", "n_members", "n_nonmembers"]
    pair = [table[table["metric"] == "auc"][columns].sort_values(columns[:3]) for table in tables]
    pd.testing.assert_frame_equal(*[table.reset_index(drop=True) for table in pair])


def test_an_earlier_round_is_compared_with_the_shadows_of_that_round() -> None:
    stream = np.random.default_rng(0)
    whole = SignalMatrix(
        target=stream.normal(size=(3, 7)).astype(np.float32),
        shadows=stream.normal(size=(40, 3, 7)).astype(np.float32),
        inside=np.where(stream.random((40, 7)) < 0.5, 1, -1),
        rounds=np.array([2, 4, 6]),
        labels=np.zeros(7, int),
        party=np.full(7, -1),
    )
    for i, (t, cut) in enumerate(by_round.matrices(whole)):
        assert t == whole.rounds[i]
        alone = replace(
            whole, target=whole.target[[i]], shadows=whole.shadows[:, [i]], rounds=whole.rounds[[i]]
        )
        np.testing.assert_array_equal(lira.online(cut, stream), lira.online(alone, stream))


def test_repeating_an_attack_offline_replaces_its_rounds(run: RunDirectory, tmp_path: Path) -> None:
    from fedsim.runs.attack import attack_again

    before = run.table("scores_by_round")
    attack_again(run, ["loss"])
    key = ["game", "attack", "round", "candidate"]
    again = run.table("scores_by_round").sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(again, before.sort_values(key, ignore_index=True)[again.columns])
