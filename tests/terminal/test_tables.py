"""What the terminal says of protections, against the functions that account for them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from support.runs import finished_run, prepared_run

from attacks.views import observations
from fedsim.core.files import write_json
from fedsim.core.privacy import gaussian
from fedsim.core.run_directory import RunDirectory
from fedsim.runs import play
from fedsim.terminal import live, run_tables, summary


def shown(run: RunDirectory, everything: bool = False) -> str:
    stream = io.StringIO()
    run_tables.show(run, Console(file=stream, width=400), everything)
    return stream.getvalue()


def test_what_answers_cost_an_outsider_is_shown(tmp_path: Path) -> None:
    output = {"policy": "laplace", "epsilon": 0.25, "queries": 50}
    adversary = {"attacks": ["loss"], "observers": ["outsider", "participant"], "output": output}
    text = shown(finished_run(tmp_path, adversary=adversary))
    assert "an answer costs ε = 0.25" in text
    candidates = 40
    assert f"the {candidates} answers of" in text and f"cost ε = {candidates * 0.25:g} a game" in text


def test_no_cost_is_shown_where_none_is_stated(tmp_path: Path) -> None:
    adversary = {"attacks": ["loss"], "observers": ["outsider", "participant"]}
    assert "answer costs" not in shown(finished_run(tmp_path, adversary=adversary))


def test_a_partys_epsilon_under_central_dp_is_named_so(tmp_path: Path) -> None:
    federation = {"rounds": 2, "central_dp": {"noise_multiplier": 3.0, "delta": 1e-4}}
    text = shown(finished_run(tmp_path, federation=federation, adversary={"attacks": ["loss"]}))
    spent = gaussian.epsilon_of(1e-4, 3.0, 2)
    assert f"party-level ε = {spent:.3g}, δ = 1e-04: a promise about whole parties" in text


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Seven attacks that simulate nothing."""
    names = ["gap", "loss", "confidence", "entropy", "modified-entropy", "loss-series", "update-cosine"]
    return finished_run(tmp_path_factory.mktemp("small"), adversary={"attacks": names})


def test_the_verdict_comes_first_and_five_attacks_follow(small: RunDirectory) -> None:
    text, leakage = shown(small), small.table("leakage")
    assert text.strip().startswith("What could hospital-1 learn of who is in the data? ")
    auc = leakage.query("metric == 'auc' and party == 'all' and game == 'all'")
    ranked = auc.sort_values("value", ascending=False, kind="stable")["attack"].tolist()
    rows = [line.split()[0] for line in text.splitlines() if line.split()[:1] and line.split()[0] in ranked]
    assert rows == ranked[:5]
    assert "The other 2 attacks" in text and "--all" in text
    everything = shown(small, True)
    assert all(name in everything for name in ranked) and "The other" not in everything


def test_figures_that_few_records_cannot_resolve_are_named_once(small: RunDirectory) -> None:
    text = " ".join(shown(small, True).split())
    assert text.count("Too few held-out records (20) for TPR at 1 % FPR, TPR at .1 % FPR.") == 1


def test_only_what_the_attacks_shown_assume_is_said(small: RunDirectory) -> None:
    declared = small.table("attacks").set_index("attack")["assumes"]
    said = summary.assumptions(small, ["gap"])
    assert declared["gap"] in said
    others = set(declared) - {declared["gap"], ""}
    assert others and not any(text in said for text in others)


def test_the_verdict_is_the_table_strongest(small: RunDirectory) -> None:
    table = small.table("strongest").set_index("party")
    leaks = summary.strongest(small)
    assert set(leaks) == set(table.index) == {"all", "hospital-2", "hospital-3"}
    for party, leak in leaks.items():
        assert (leak.value, leak.low, leak.high) == tuple(table.loc[party, ["value", "low", "high"]])
    document = summary.document(small)
    assert document["verdict"]["words"] in shown(small)


def test_an_unfinished_run_says_what_ran(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, games=2, adversary={"attacks": ["loss"]})
    assert "0 of 2 games are done (no attack has been run); game 1 has come to 0 of 3 rounds" in shown(run)
    play.federate(run)
    (run.path / "leakage.parquet").unlink()
    run.update_manifest(complete=False)
    assert "every game was trained and attacked, but not evaluated" in shown(run)


# ------------------------------------------------------------------ progress
def note(done: int, total: int, first: int, seconds: float) -> dict[str, float]:
    return {"done": done, "total": total, "first": first, "seconds": seconds}


def test_the_time_left_is_reckoned_from_the_start_of_the_work() -> None:
    assert "30 s left" in live.time_left(note(60, 90, 0, 60.0))
    assert "30 s left" in live.time_left(note(560, 590, 500, 60.0)), "what the cache held took no time"
    assert live.time_left(note(500, 590, 500, 3.0)) == ""


def test_a_new_simulation_begins_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 11.0, 100.0, 110.0])
    monkeypatch.setattr(observations.time, "monotonic", lambda: next(clock))
    say = observations.progress_note(tmp_path)
    noted = []
    for done, total in ((0, 100), (100, 100), (41, 2048), (1065, 2048)):
        say(done, total)
        noted.append(json.loads((tmp_path / observations.PROGRESS).read_text()))
    assert [entry["seconds"] for entry in noted] == [0, 10, 0, 10]
    assert [entry["first"] for entry in noted] == [0, 0, 41, 41]
    assert "10 s left" in live.time_left(noted[-1])


def test_no_line_is_repeated_where_nobody_looks_on(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, federation={"rounds": 40}, adversary={"attacks": ["loss"]})
    stream = io.StringIO()
    with live.follow(run, Console(file=stream, width=200)):
        play.federate(run)
    lines = stream.getvalue().splitlines()
    assert len(lines) == len(set(lines)) == 11
    assert lines[0].startswith("round 0/40") and lines[-1].startswith("round 40/40")
    watcher = live._Watcher(run, Console(file=stream, width=200), lambda text: None)
    write_json(run.observations(0) / observations.PROGRESS, note(10, 100, 0, 2.0))
    before = stream.getvalue()
    for _ in range(5):
        watcher.look()
    assert stream.getvalue().removeprefix(before).count("100 shadow federations, 10 % simulated") == 1
