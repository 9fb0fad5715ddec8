"""Attacks and strategies of the user's own, from a module beside the scenario to tables and report."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
from support.runs import document

from attacks import registry
from attacks.declaration import Attack, attack
from fedsim import report
from fedsim.core import trust
from fedsim.core.errors import FedsimError, InputError
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.reading import load
from fedsim.core.scenario.settings import Scenario
from fedsim.engines import inprocess
from fedsim.runs import integrity, play, prepare
from fedsim.runs.attack import attack_again
from fedsim.server import server_app
from fedsim.server.federation import Federation
from fedsim.terminal import run_tables

EXAMPLES = Path(__file__).resolve().parents[2] / "experiments" / "own"

ATTACKS = """
import numpy as np
from attacks import attack

def first_feature(view, candidates, rng):
    return candidates.features[:, 0]

@attack("raises", assumes="nothing")
def raises(view, candidates, rng):
    raise RuntimeError("cannot\\nsecond line")

@attack("too-few")
def too_few(view, candidates, rng):
    return np.zeros(3)

@attack("server-noise", observers=("server",))
def server_noise(seen, rng):
    return rng.random(seen.phi.shape[2])

@attack("loss")
def another_loss(view, candidates, rng):
    return np.zeros(len(candidates))

def two_arguments(view, candidates):
    return candidates.features[:, 0]

number = 3
"""

STRATEGIES = """
from flwr.serverapp.strategy import FedAvg

def make(**options):
    return FedAvg(**options)

def nothing():
    return 3

class Failing(FedAvg):
    def aggregate_train(self, server_round, replies):
        raise ValueError("no mean\\nsecond line")

def failing():
    return Failing()

class Half(FedAvg):
    def state_dict(self):
        return {}

def half():
    return Half()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own_attacks.py").write_text(ATTACKS)
    (tmp_path / "own_strategies.py").write_text(STRATEGIES)
    return tmp_path


def scenario(folder: Path, **sections: Any) -> Scenario:
    """The tiny scenario as a file, so that modules are looked for beside it."""
    path = folder / "scenario.toml"
    path.write_text(tomli_w.dumps(document(folder, **sections)))
    return load(path)


def finished(folder: Path, out: str = "run", **sections: Any) -> RunDirectory:
    run = prepare.prepare(prepare.check(scenario(folder, **sections), None), folder / out)
    play.federate(run)
    return run


def test_own_attacks_are_scored_shown_and_reported_beside_one_that_raises(folder: Path) -> None:
    own = [f"own_attacks:{name}" for name in ("first_feature", "raises", "too_few", "server_noise")]
    run = finished(folder, adversary={"attacks": ["loss", *own], "observers": ["server"]})
    scores = run.table("scores")
    keys = set(scores[["observer", "attack"]].itertuples(index=False, name=None))
    assert {("participant", "loss"), ("participant", "first-feature"), ("server", "server-noise")} <= keys
    assert not {"raises", "too-few"} & set(scores["attack"])
    ours = scores[scores["attack"] == "first-feature"]["score"].to_numpy()
    np.testing.assert_array_equal(ours, run.read_candidates(0).records.features[:, 0].astype(float))
    n = len(ours)
    reasons = run.table("not_run").set_index("attack")["reason"].to_dict()
    assert reasons == {
        "raises": "RuntimeError: cannot", "too-few": f"ValueError: it returned shape (3,); it must be ({n},)",
    }  # fmt: skip
    page = report.write(run).read_text(encoding="utf-8")
    assert "Attacks that were not run" in page and "RuntimeError: cannot" in page
    assert "first-feature" in page and "server-noise" in page
    assert run_tables._not_run(run)[0] == "Not run: raises of the participant: RuntimeError: cannot"
    attack_again(run)
    pd.testing.assert_frame_equal(run.table("scores"), scores)
    attack_again(run, ["own_attacks:server_noise"])
    pd.testing.assert_frame_equal(run.table("scores"), scores)


def test_a_mended_attack_leaves_the_list_of_those_not_run(folder: Path) -> None:
    run = finished(folder, adversary={"attacks": ["loss", "own_attacks:raises"]})
    assert list(run.table("not_run")["attack"]) == ["raises"]
    mended = ATTACKS.replace(
        'raise RuntimeError("cannot\\nsecond line")', "return -candidates.features[:, 0]"
    )
    assert mended != ATTACKS
    other = folder / "mended"
    other.mkdir()
    (other / "own_attacks.py").write_text(mended)
    text = (run.path / "scenario.toml").read_text()
    (run.path / "scenario.toml").write_text(text.replace(f'folder = "{folder}"', f'folder = "{other}"'))
    integrity.note(run, "scenario.toml")
    trust.mark(run.path, run.scenario)
    again = RunDirectory.open(run.path)
    attack_again(again)
    assert again.table("not_run").empty and "raises" in set(again.table("leakage")["attack"])


def test_where_no_attack_can_run_the_reason_is_the_end(folder: Path) -> None:
    with pytest.raises(FedsimError, match="no attack could be run: RuntimeError: cannot"):
        finished(folder, adversary={"attacks": ["own_attacks:raises"]})


WRONG = {
    "no_such:f": "there is no module 'no_such'",
    "own_attacks:first_featur": "no callable 'first_featur'; did you mean 'first_feature'?",
    "own_attacks:number": "no callable 'number'",
    "own_attacks:two_arguments": r"it must take \(view, candidates, rng\)",
    "own_attacks:another_loss": "is named 'loss', as another attack of the participant is",
    "server:fedmi": "unknown attack 'server:fedmi'; did you mean 'server:fedmia'?",
    "server:fedmia": "leaves the participant no attack",
}


@pytest.mark.parametrize("name", WRONG)
def test_an_own_attack_that_does_not_work_is_named_before_any_work(folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=WRONG[name]) as caught:
        prepare.check(scenario(folder, adversary={"attacks": [name], "observers": ["server"]}), None)
    assert "adversary.attacks" in str(caught.value) and "\n" not in str(caught.value)


def test_observers_that_do_not_go_together_are_refused_where_an_attack_is_declared() -> None:
    with pytest.raises(ValueError, match="'participant' and 'coalition'"):
        attack("x", observers=("participant", "server"))(lambda view, candidates, rng: np.zeros(1))
    with pytest.raises(ValueError, match="outsider simulates no shadows"):
        Attack("x", lambda matrix, rng: np.zeros(1), ("outsider",), compares_with=("whole",))
    with pytest.raises(ValueError, match="'source' needs shadows or the server's view"):
        Attack("x", lambda view, candidates, rng: np.zeros(1), infers="source")


def test_attacks_of_installed_packages_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))

    def installed(*values: str) -> list[Attack]:
        entries = [EntryPoint(f"entry-{k}", value, registry.GROUP) for k, value in enumerate(values)]
        monkeypatch.setattr(registry, "entry_points", lambda group: entries)
        registry.installed.cache_clear()
        return registry.known()

    try:
        found = installed("own_attacks:first_feature", "own_attacks:server_noise")
        assert [(a.name, a.observers[0]) for a in found[-2:]] == [
            ("entry-0", "participant"), ("server-noise", "server"),
        ]  # fmt: skip
        with pytest.raises(InputError, match=r"'entry-0' \(own_attacks:gone\) cannot be imported"):
            installed("own_attacks:gone")
    finally:
        registry.installed.cache_clear()


# ------------------------------------------------------------------------------------------------ strategy
def test_an_own_strategy_that_averages_gives_flowers_own_models(folder: Path) -> None:
    adversary = {"attacks": ["all"], "candidates": 20, "shadows": 16}
    own = finished(
        folder, "own", federation={"rounds": 2, "strategy": "own_strategies:make"}, adversary=adversary
    )
    stock = finished(folder, "stock", federation={"rounds": 2}, adversary={"attacks": ["loss"]})
    assert own.model_path(0, 2).read_bytes() == stock.model_path(0, 2).read_bytes()
    assert not {"lira", "joint"} & set(own.table("scores")["attack"]), "shadows cannot follow it"
    notice = "Attacks on shadow federations are left out: shadows do not follow federation.strategy = 'own_"
    assert any(text.startswith(notice) for text in own.manifest["notices"])


FEDERATIONS = {
    "no such module": ({"strategy": "gone:make"}, "there is no module 'gone'"),
    "no strategy": ({"strategy": "own_strategies:nothing"}, "it returned int, not a flwr"),
    "wrong option": ({"strategy": "own_strategies:make", "options": {"x": 1}}, "failed: TypeError"),
    "half a state": ({"strategy": "own_strategies:half"}, "a resumed run needs both"),
    "central DP": (
        {"strategy": "own_strategies:make", "central_dp": {"noise_multiplier": 1.0}},
        "does more than average",
    ),
}


@pytest.mark.parametrize("case", FEDERATIONS)
def test_an_own_strategy_that_does_not_work_is_named_before_any_work(folder: Path, case: str) -> None:
    federation, sentence = FEDERATIONS[case]
    with pytest.raises(InputError, match=sentence):
        prepare.check(scenario(folder, federation=federation), None)


def test_secure_aggregation_refuses_an_own_strategy(folder: Path) -> None:
    with pytest.raises(InputError, match="needs each party's own update"):
        settings = {"federation": {"strategy": "own_strategies:make"}}
        prepare.check(scenario(folder, adversary={"secure_aggregation": True}, **settings), None)


def test_what_an_own_strategy_raises_is_said_in_one_sentence(folder: Path) -> None:
    with pytest.raises(FedsimError, match=r"^round 1: federation\.strategy = 'own_.*: ValueError: no mean$"):
        finished(folder, federation={"strategy": "own_strategies:failing"}, adversary={"attacks": ["loss"]})


def test_the_examples_run_and_resume_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["federation.rounds=4", "training.epochs=1", "adversary.candidates=40"]
    attacks = 'adversary.attacks=["loss", "my_attacks:confidence_rise"]'
    settings = load(EXAMPLES / "scenario.toml", [*small, attacks])
    whole, stopped = (prepare.prepare(prepare.check(settings, None), tmp_path / name) for name in "ab")
    play.federate(whole)
    assert set(whole.table("scores")["attack"]) == {"loss", "confidence-rise"}

    def stop_after_two(run: RunDirectory, game: int, workers: int) -> None:
        original = server_app._end_round

        def end_round(federation: Federation, round: int) -> None:
            original(federation, round)
            if round == 2:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server_app, "_end_round", end_round)
            inprocess.run_game(run, game, workers)

    with pytest.raises(KeyboardInterrupt):
        stop_after_two(stopped, 0, 1)
    checkpoint = stopped.read_checkpoint(0)
    assert checkpoint is not None and any(name.startswith("own/") for name in checkpoint.strategy)
    play.federate(stopped)
    assert stopped.model_path(0, 4).read_bytes() == whole.model_path(0, 4).read_bytes()


def test_the_example_on_shadows_runs(tmp_path: Path) -> None:
    sizes = ["federation.rounds=2", "training.epochs=1", "adversary.candidates=40", "adversary.shadows=16"]
    changes = [
        "federation.strategy=fedavg",
        "federation.options={}",
        'adversary.attacks=["my_attacks:median_gap"]',
    ]
    run = prepare.prepare(
        prepare.check(load(EXAMPLES / "scenario.toml", [*sizes, *changes]), None), tmp_path / "run"
    )
    play.federate(run)
    assert np.isfinite(run.table("scores")["score"]).all()
