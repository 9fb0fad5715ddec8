"""Observers end to end: who keeps what, on whose candidates, and what each extra power adds."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from support.attacks import attacks_of
from support.runs import final_sha, finished_run, prepared_run
from support.truth import WATCH, flip

from attacks.shadows import suite
from attacks.views import coalition
from attacks.views.coalition import Accomplice
from attacks.views.observations import load_candidates
from attacks.views.participant import ParticipantView
from attacks.views.settings import PublicSettings
from fedsim.core import files
from fedsim.core.data.records import Pool, Records
from fedsim.core.errors import InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.training import ModelSettings, TrainingSettings
from fedsim.runs import observers
from fedsim.runs.attack import attack_again, evaluate
from fedsim.terminal import run_tables

ALL = {
    "observers": ["outsider", "participant", "coalition", "server"],
    "coalition": ["hospital-3"],
    "attacks": ["loss", "update-cosine", "lira"],
    "shadows": 32,
}
FOUR = {"parties": {"count": 4}, "n": 120}


@pytest.fixture(scope="module")
def everyone(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return finished_run(tmp_path_factory.mktemp("run"), adversary=ALL, games=2, **FOUR)


def auc(run: RunDirectory, attack: str, observer: str = "participant") -> float:
    leakage = run.table("leakage").set_index(["observer", "attack", "party", "game", "metric"])["value"]
    return float(leakage[observer, attack, "all", "all", "auc"])


def keys(table: pd.DataFrame) -> set[tuple[str, str]]:
    return set(table[["observer", "attack"]].itertuples(index=False, name=None))


def test_every_observer_scores_the_same_candidates(everyone: RunDirectory) -> None:
    scores = everyone.table("scores")
    asked_for = {(who, name) for who in ("participant", "coalition") for name in ALL["attacks"]}
    theirs = {(who, name) for who in ("outsider", "server") for name in attacks_of(who)}
    assert keys(scores) == asked_for | theirs
    assert list(scores["observer"].unique()) == ["participant", "outsider", "coalition", "server"]
    assert (
        scores.groupby(["game", "observer", "attack"])["candidate"]
        .apply(lambda c: tuple(sorted(c)))
        .groupby("game")
        .nunique()
        .eq(1)
        .all()
    )
    assert np.isfinite(scores["score"]).all() and np.isfinite(scores["threshold"]).all()
    measured = everyone.table("leakage")
    assert keys(measured) == keys(scores) and set(measured["party"]) == {"all", "hospital-2", "hospital-4"}


def test_nobody_of_the_coalition_is_a_candidate(everyone: RunDirectory) -> None:
    truth = files.read_table(everyone.path / "truth.parquet")
    assert set(truth["party"]) == {"hospital-2", "hospital-4"}


def test_observers_change_nothing_for_parties_and_model(tmp_path: Path, everyone: RunDirectory) -> None:
    alone = finished_run(tmp_path, adversary={"attacks": ["loss"]}, games=2, **FOUR)
    assert [final_sha(alone, game) for game in (0, 1)] == [final_sha(everyone, game) for game in (0, 1)]
    assert not (alone.path / "server_observations").exists() and not (alone.path / "accomplices").exists()


def test_attacking_again_offline_gives_the_same_tables(everyone: RunDirectory) -> None:
    scores, sources = everyone.table("scores"), everyone.table("source_scores")
    leakage = everyone.table("leakage")
    attack_again(everyone)
    pd.testing.assert_frame_equal(everyone.table("scores"), scores)
    pd.testing.assert_frame_equal(everyone.table("source_scores"), sources)
    pd.testing.assert_frame_equal(everyone.table("leakage"), leakage)


def test_one_attack_of_another_observer_is_repeated_by_its_name(everyone: RunDirectory) -> None:
    scores = everyone.table("scores")
    damaged = scores.assign(score=scores["score"].where(scores["observer"] != "server", 0.0))
    everyone.write_table("scores", damaged)
    attack_again(everyone, ["server:fedmia", "server:loss"])
    repeated = everyone.table("scores")
    mended = (scores["observer"] != "server") | scores["attack"].isin(["fedmia", "loss"])
    pd.testing.assert_frame_equal(repeated[mended], scores[mended])
    assert not repeated[~mended]["score"].any()
    attack_again(everyone, ["server:all"])
    pd.testing.assert_frame_equal(everyone.table("scores"), scores)


def test_an_attack_of_an_observer_that_the_run_does_not_have_is_refused(tmp_path: Path) -> None:
    run = finished_run(tmp_path, adversary={"attacks": ["loss"]})
    with pytest.raises(InputError, match=r"'server:loss'.*none of them is of an observer of .* participant"):
        attack_again(run, ["server:loss"])


def test_no_score_depends_on_the_truth(everyone: RunDirectory) -> None:
    scores, sources = everyone.table("scores"), everyone.table("source_scores")
    flip(everyone)
    attack_again(everyone)
    pd.testing.assert_frame_equal(everyone.table("scores"), scores)
    pd.testing.assert_frame_equal(everyone.table("source_scores"), sources)
    flip(everyone)
    evaluate(everyone)


def test_the_server_keeps_every_answer_and_no_party_opens_it(everyone: RunDirectory) -> None:
    kept = sorted(path.name for path in everyone.server_observations(0).iterdir())
    assert kept == [f"answer-{t:03d}-{k:03d}.safetensors" for t in (1, 2, 3) for k in range(4)]
    own = files.read_arrays(everyone.observations(0) / "reply-002.safetensors")
    seen = files.read_arrays(everyone.server_observations(0) / "answer-002-000.safetensors")
    assert {name: array.tobytes() for name, array in own.items()} == {
        name: array.tobytes() for name, array in seen.items()
    }
    watch = WATCH.replace("InProcessGrid(run, 0, 3)", "InProcessGrid(run, 0, 4)")
    command = [sys.executable, "-c", watch, str(everyone.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    opened = [str(Path(path).relative_to(everyone.path)) for path in json.loads(done.stdout)]
    assert opened and not [path for path in opened if path.startswith(("server_", "accomplices", "truth"))]


def test_secure_aggregation_leaves_the_server_nothing_but_sums(tmp_path: Path) -> None:
    run = finished_run(
        tmp_path, adversary={"observers": ["server"], "secure_aggregation": True, "attacks": ["loss"]}, **FOUR
    )
    kept = sorted(run.server_observations(0).iterdir())
    assert [path.name for path in kept] == [f"sum-{t:03d}.safetensors" for t in (1, 2, 3)]
    for t, path in enumerate(kept, start=1):  # plain averaging: the sum says no more than the model itself
        model = run.read_model(0, t)
        arrays = files.read_arrays(path)
        assert set(arrays) == set(model)
        for name, array in arrays.items():
            np.testing.assert_allclose(array, model[name], rtol=1e-5, atol=1e-6)
    found = {name for observer, name in keys(run.table("scores")) if observer == "server"}
    assert found == {"loss", "loss-series", "update-cosine", "update-regression"}
    assert not run.has("sources"), "nobody isolates a party, and nobody simulates"


def test_on_a_memorising_federation_each_power_adds_and_the_server_names_the_party(tmp_path: Path) -> None:
    run = finished_run(
        tmp_path,
        adversary={**ALL, "observers": ["outsider", "server"], "coalition": []},
        model={"name": "mlp", "hidden": [64]},
        federation={"rounds": 10},
        training={"epochs": 5, "batch": 4, "lr": 0.2},
        **FOUR,
    )
    server = auc(run, "update-regression", "server")
    others = (auc(run, "loss"), auc(run, "update-cosine"), auc(run, "loss", "outsider"))
    assert server > 0.75 and server > max(others)
    sources = run.table("sources").set_index(["observer", "attack", "game", "metric"])
    right = sources.loc[("server", "source-update-regression", "all", "accuracy")]
    assert right["low"] > 1 / 3 and right["n"] == 45
    participant = sources.loc[("participant", "source-shadows", "all", "accuracy")]
    assert participant["low"] < 1 / 3 < participant["high"]
    assert sources.loc[("participant", "source-shadows", "all", "chance"), "value"] == pytest.approx(1 / 3)


def test_told_parties_are_not_inferred(tmp_path: Path) -> None:
    run = finished_run(
        tmp_path, adversary={"observers": ["server"], "attacks": ["loss"], "knows_party": True}, **FOUR
    )
    assert not run.has("source_scores")
    assert ("server", "fedmia") in keys(run.table("scores"))


def test_partial_participation_and_a_killed_run(tmp_path: Path) -> None:
    settings = {
        "federation": {"rounds": 4, "fraction": 0.5},
        "adversary": {**ALL, "attacks": ["update-cosine"]},
        **FOUR,
    }
    whole = finished_run(tmp_path, out="a", **settings)
    kept = {path.stem for path in whole.server_observations(0).iterdir()}
    assert len(kept) == 8 and len({name[-3:] for name in kept}) > 2
    again = finished_run(tmp_path, out="b", **settings)
    for folder in ("server_observations", "accomplices"):
        assert digest(whole.path / folder) == digest(again.path / folder)
    pd.testing.assert_frame_equal(whole.table("scores"), again.table("scores"))


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


WRONG = {
    "accomplices": (
        {**ALL, "coalition": ["hospital-9"]},
        "'hospital-9' is no party beside the adversary; did you mean",
    ),
    "itself": ({**ALL, "coalition": ["hospital-1"]}, "'hospital-1' is no party beside the adversary"),
    "nobody left": (
        {**ALL, "coalition": [f"hospital-{k}" for k in (2, 3, 4)]},
        "leave at least one to attack",
    ),
    "no names": ({"observers": ["coalition"]}, "'coalition', go together"),
    "unused names": ({"coalition": ["hospital-3"]}, "'coalition', go together"),
    "unknown": ({"observers": ["serve"]}, "adversary.observers.0 = 'serve'"),
    "policy": ({"output": {"policy": "topk"}}, "adversary.output.policy = 'topk'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_observers_are_named_before_any_work(tmp_path: Path, case: str) -> None:
    adversary, sentence = WRONG[case]
    with pytest.raises(InputError, match=sentence):
        prepared_run(tmp_path, adversary=adversary, **FOUR)


def test_secure_aggregation_needs_a_strategy_of_sums(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"secure_aggregation: .*'krum' needs each party's own update"):
        prepared_run(
            tmp_path, adversary={"secure_aggregation": True}, federation={"strategy": "krum"}, **FOUR
        )


# --------------------------------------------------------------------------------------------- coalition
def test_the_coalition_takes_out_its_own_parts_exactly() -> None:
    """Four parties of unequal size: what is left of the step is the other two's part in the average."""
    stream, sizes = np.random.default_rng(0), (10, 20, 30, 40)
    before, *answers = [{"w": stream.normal(size=5).astype(np.float32)} for _ in range(5)]
    average = np.average([each["w"] for each in answers], axis=0, weights=sizes).astype(np.float32)
    settings = PublicSettings(
        ModelSettings(), (3,), 2, 1, 4, 4, TrainingSettings(), "fedavg", sizes=sizes, own=1
    )
    train, heldout, theirs = (records(stream, n) for n in (20, 6, 30))
    population = Pool(Records.concatenate([records(stream, 4), theirs]), np.arange(34))
    view = ParticipantView(
        settings, {0: before, 1: {"w": average}}, {1: answers[1]}, train, heldout, auxiliary=population
    )
    pooled = coalition.unite(view, [Accomplice(2, theirs, heldout, {1: answers[2]})])
    left = pooled.others_update(1)
    expected = sum(sizes[k] * (answers[k]["w"].astype(float) - before["w"]) for k in (0, 3)) / 100
    assert left is not None
    np.testing.assert_allclose(left["w"], expected, atol=1e-6)
    assert pooled.own_party is not None and pooled.own_party.tolist() == [1] * 20 + [2] * 30
    assert len(pooled.own_train) == 50 and len(pooled.own_heldout) == 12
    assert pooled.auxiliary is not None
    np.testing.assert_array_equal(pooled.auxiliary.party, np.arange(4))  # what it knows is no longer drawn
    assert view.own_replies[1] is answers[1]


def test_shadows_of_a_coalition_hold_every_members_records_where_they_are(everyone: RunDirectory) -> None:
    view = observers.sight(everyone, 0, "coalition")
    assert isinstance(view, ParticipantView) and view.candidate_party is not None
    candidates = load_candidates(everyone.observations(0))
    pool, fixed = suite._records_to_draw(view, Pool(candidates, view.candidate_party))
    assert {k: len(rows) for k, rows in fixed.items()} == {0: 15, 2: 15}
    shared = coalition.load_accomplice(everyone.accomplice(0, 2, "hospital-3"), 2)
    np.testing.assert_array_equal(pool.records.take(fixed[2]).features, shared.train.features)
    matrix = suite.simulate(view, candidates, everyone.scenario.seed)
    assert set(np.unique(matrix.inside)) == {-1, 1, 3}


def records(stream: np.random.Generator, n: int) -> Records:
    return Records(stream.normal(size=(n, 3)).astype(np.float32), stream.integers(0, 2, n))


def test_show_prints_the_observers(everyone: RunDirectory) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    run_tables.show(everyone, console)
    text = console.export_text()
    for words in (
        "Observers: the same candidates",
        "outsider",
        "coalition",
        "Which party? server",
        "chance 50%",
    ):
        assert words in text
