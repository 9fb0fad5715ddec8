"""Early stopping of the federation: where it ends, what it releases, and what it looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.runs import document, finished_run, prepared_run, write_table

from fedsim.core.errors import InputError
from fedsim.core.models import released
from fedsim.core.models.weights import weights_of
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.runs import play
from fedsim.server import server_app, stopping

LONG = {
    "training": {"lr": 2.0, "epochs": 3, "batch": 8, "private": {"lr": 3.0}},
    "adversary": {"attacks": ["loss"]},
}
"""Steps so large that the loss on held-out records soon rises."""


def losses(run: RunDirectory, column: str = "loss") -> list[float]:
    rounds = run.table("rounds")
    return rounds[(rounds["party"] == "all") & (rounds["round"] > 0)].sort_values("round")[column].tolist()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("stopped")
    return finished_run(folder, federation={"rounds": 30, "patience": 3}, **LONG)


def test_it_ends_when_the_loss_has_not_fallen_and_releases_the_best_round(
    stopped: RunDirectory, tmp_path: Path
) -> None:
    loss = losses(stopped)
    best = int(np.argmin(loss)) + 1
    assert len(loss) == best + 3 < 30
    assert stopped.last_round(0) == len(loss)
    assert stopped.released_round(0) == best
    final = stopped.final_rounds().set_index("party")
    assert final.loc["all", "loss"] == min(loss)
    assert final.loc["all", "round"] == len(loss)  # what was spent and seen is of all rounds
    module = released.load(stopped, 0).module(OutputPolicy())
    expected = stopped.read_model(0, best)
    assert all(np.array_equal(array, expected[name]) for name, array in weights_of(module).items())
    assert any("choose the round" in notice for notice in stopped.manifest["notices"])

    whole = finished_run(tmp_path, federation={"rounds": len(loss)}, **LONG)
    assert whole.released_round(0) == len(loss)
    for t in range(len(loss) + 1):  # up to there it is the run that does not stop
        assert whole.model_path(0, t).read_bytes() == stopped.model_path(0, t).read_bytes()


def test_an_interrupted_run_stops_where_the_whole_one_does(
    stopped: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared_run(tmp_path, federation={"rounds": 30, "patience": 3}, **LONG)
    for interrupted_after in (2, stopped.last_round(0)):
        end_round = server_app._end_round

        def interrupted(federation, round, last=interrupted_after, write=end_round) -> None:
            write(federation, round)
            if round == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(server_app, "_end_round", interrupted)
            with pytest.raises(KeyboardInterrupt):
                play.federate(run)
    play.federate(run)
    assert losses(run) == losses(stopped)
    assert run.manifest["released"] == stopped.manifest["released"]
    assert (
        run.manifest["games"]["0"]["final_model_sha256"]
        == (stopped.manifest["games"]["0"]["final_model_sha256"])
    )


def test_public_records_decide_and_privacy_is_spent_for_the_rounds_made(tmp_path: Path) -> None:
    data = dict(document(tmp_path)["data"])  # type: ignore[call-overload]
    data["public"] = str(write_table(tmp_path / "public.csv", 40, seed=9))
    run = finished_run(
        tmp_path,
        data=data,
        federation={"rounds": 25, "patience": 2, "stop_on": "public"},
        dp={"hospital-2": {"noise_multiplier": 0.3, "accountant": "rdp"}},
        **LONG,
    )
    public = losses(run, "public_loss")
    assert run.released_round(0) == int(np.argmin(public)) + 1 == len(public) - 2 < 23
    assert public != losses(run)
    spent = run.final_rounds().set_index("party").loc["hospital-2", "epsilon"]
    assert 0 < spent < run.manifest["dp"]["hospital-2"]["epsilon"]
    assert any("federation.patience was used up" in notice for notice in run.manifest["notices"])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"dp": {"hospital-2": {"epsilon": 3}}}, r"stop_on = 'held-out': .*dp\.hospital-2 .*use 'public'"),
        ({"federation": {"patience": 2, "stop_on": "public"}}, r"stop_on = 'public': there are no public"),
    ],
)
def test_what_it_cannot_look_at_is_refused(sections: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepared_run(tmp_path, **{"federation": {"patience": 2}, **sections})


def test_a_loss_that_is_no_number_is_never_the_lowest() -> None:
    assert stopping.best_round([float("nan"), 0.4, float("inf"), 0.4]) == 2
    assert stopping.best_round([float("nan"), float("nan")]) == 2
