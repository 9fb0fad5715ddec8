"""Every defence in a whole run: what is refused, what is noted, and the same bits twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.runs import document, final_sha, finished_run, prepared_run, scenario, write_table

from attacks.views import observations
from fedsim.core.errors import InputError
from fedsim.core.training import dp
from fedsim.runs import prepare

SHORT = {"federation": {"rounds": 2}, "adversary": {"attacks": ["loss"]}}
DP = {"noise_multiplier": 1.0, "accountant": "rdp"}

DEFENCES = [
    {"l1": 0.01, "l2": 0.02},
    {"dropout": 0.3},
    {"label_smoothing": 0.2},
    {"mixup": 0.4},
    {"epochs": 1},
    {"patience": 1},
    {"clip_update": 0.05},
    {"sparsify": 0.2},
    {"quantise": 2},
    {"relaxloss": 2.0},
    {"hamp_entropy": 0.7, "hamp_weight": 0.1},
    {"distil": "selena", "teachers": 3, "left_out": 1},
    {"shipped": {"mechanism": "flower-local-dp", "epsilon": 50.0}},
]


def weights(run, round: int) -> dict[str, np.ndarray]:
    return run.read_model(0, round)


@pytest.fixture(scope="module")
def undefended(tmp_path_factory: pytest.TempPathFactory) -> str:
    return final_sha(finished_run(tmp_path_factory.mktemp("plain"), **SHORT))


@pytest.mark.parametrize("defence", DEFENCES, ids=str)
def test_a_run_with_a_defence_is_repeatable_and_differs(defence: dict, undefended: str, tmp_path) -> None:
    shas = {final_sha(finished_run(tmp_path, out=out, defences={"all": defence}, **SHORT)) for out in "ab"}
    assert len(shas) == 1
    assert shas != {undefended}


@pytest.mark.parametrize(
    "settings",
    [DP, DP | {"clipping": "adaptive"}, DP | {"gradients": "per-sample", "clipping": "adaptive"}],
    ids=["flat", "adaptive", "adaptive, per-sample"],
)
def test_a_careful_hospital_among_careless_ones_is_repeatable(
    settings: dict, undefended: str, tmp_path
) -> None:
    sections = SHORT | {
        "dp": {"hospital-2": settings},
        "defences": {
            "hospital-1": {"l1": 0.01, "mixup": 0.2},
            "hospital-2": {"dropout": 0.2, "label_smoothing": 0.1, "epochs": 1, "quantise": 3},
        },
    }
    runs = [finished_run(tmp_path, out=out, **sections) for out in "ab"]
    assert final_sha(runs[0]) == final_sha(runs[1]) != undefended
    rounds = runs[0].table("rounds")
    spent = rounds[(rounds["party"] == "hospital-2") & (rounds["round"] == 2)]["epsilon"].iloc[0]
    assert 0 < spent < np.inf
    assert np.isinf(rounds[(rounds["party"] == "hospital-1") & (rounds["round"] == 2)]["epsilon"].iloc[0])
    plan = runs[0].manifest["dp"]["hospital-2"]
    assert plan["steps_per_round"] == 2  # one epoch of two batches, where the others make two epochs
    assert spent == pytest.approx(plan["epsilon"])
    public = observations.load_view(runs[0].observations(0)).settings
    assert [plan is not None for plan in public.privacy] == [False, True, False]
    assert public.privacy[1].steps_per_round == 2
    assert [defence is not None for defence in public.defences] == [True, True, False]


def test_the_adapted_norm_goes_on_from_round_to_round(tmp_path: Path, monkeypatch) -> None:
    norms: list[tuple[float | None, float]] = []
    train = dp.train_private

    def spy(*arguments, **options):
        report = train(*arguments, **options)
        norms.append((options["clipping_norm"], report.clipping_norm))
        return report

    monkeypatch.setattr(dp, "train_private", spy)
    switch = {"hospital-2": DP | {"clipping": "adaptive"}}
    finished_run(tmp_path, dp=switch, **SHORT | {"federation": {"rounds": 3}})
    assert [before for before, _ in norms] == [None, norms[0][1], norms[1][1]]
    assert len({after for _, after in norms} | {1.0}) == 4


def test_updates_are_as_long_and_as_sparse_as_allowed(tmp_path: Path) -> None:
    run = finished_run(tmp_path, defences={"hospital-1": {"clip_update": 0.05, "sparsify": 0.25}}, **SHORT)
    view = observations.load_view(run.observations(0))
    update = np.concatenate(
        [np.ravel(view.own_replies[2][name] - array) for name, array in weights(run, 1).items()]
    )
    assert 0 < np.linalg.norm(update) <= 0.05 * (1 + 1e-5)
    assert (update != 0).sum() <= np.ceil(0.25 * len(update))


def test_secure_noise_differs_from_run_to_run_and_is_noted(tmp_path: Path) -> None:
    sections = SHORT | {"dp": {"hospital-2": DP | {"secure": True, "clipping": "adaptive"}}}
    runs = [finished_run(tmp_path, out=out, **sections) for out in "ab"]
    assert final_sha(runs[0]) != final_sha(runs[1])
    assert any("cannot be repeated" in notice for notice in runs[0].manifest["notices"])
    epsilons = [run.table("rounds").query("party == 'hospital-2'")["epsilon"].tolist() for run in runs]
    assert epsilons[0] == epsilons[1]


def test_what_a_shipped_filter_claims_is_said_beside_what_holds(tmp_path: Path) -> None:
    shipped = {"shipped": {"mechanism": "flower-local-dp"}}
    sections = SHORT | {"adversary": {"attacks": ["lira"], "shadows": 16}}
    run = finished_run(tmp_path, defences={"hospital-2": shipped}, **sections)
    said = [notice for notice in run.manifest["notices"] if "flower-local-dp" in notice]
    assert len(said) == 1 and "of hospital-2 claims ε = 1; over 2 rounds ε = " in said[0]
    assert set(run.table("scores")["attack"]) == {"lira"}


def test_stopping_on_heldout_records_is_noted(tmp_path: Path) -> None:
    run = prepared_run(tmp_path, defences={"hospital-3": {"patience": 1}})
    assert any("early stopping of hospital-3" in notice for notice in run.manifest["notices"])


@pytest.mark.parametrize("source", ["table", "set aside"])
def test_stopping_on_public_records_under_dp_spends_the_steps_made(source: str, tmp_path: Path) -> None:
    sections = SHORT | {
        "training": {"private": {"epochs": 30, "batch": 8, "lr": 2.0}},
        "dp": {"hospital-2": DP},
        "defences": {"hospital-2": {"patience": 1, "stop_on": "public"}},
    }
    data = dict(document(tmp_path)["data"])
    if source == "table":
        data["public"] = str(write_table(tmp_path / "public.csv", 40, seed=9))
    else:
        data["bounds"] = {"age": [0, 100]}
    runs = [finished_run(tmp_path, 200, out=out, data=data, **sections) for out in "ab"]
    assert final_sha(runs[0]) == final_sha(runs[1])
    spent = runs[0].table("rounds").query("party == 'hospital-2' and round == 2")["epsilon"].iloc[0]
    assert 0 < spent < runs[0].manifest["dp"]["hospital-2"]["epsilon"]
    assert any("ε of hospital-2 counts the steps" in notice for notice in runs[0].manifest["notices"])


def test_students_of_public_records_are_replayed_by_shadows(tmp_path: Path) -> None:
    """DMP needs public records; a shadow's student learns from records that no party of it holds."""
    data = dict(document(tmp_path)["data"]) | {
        "public": str(write_table(tmp_path / "public.csv", 40, seed=9))
    }
    sections = {
        "data": data,
        "defences": {"hospital-2": {"distil": "dmp", "teachers": 2}},
        "federation": {"rounds": 2},
        "adversary": {"attacks": ["lira"], "shadows": 16},
    }
    runs = [finished_run(tmp_path, out=out, **sections) for out in "ab"]
    assert final_sha(runs[0]) == final_sha(runs[1])
    assert set(runs[0].table("scores")["attack"]) == {"lira"}


def write_unlabelled(folder: Path) -> str:
    table = pd.read_csv(write_table(folder / "public.csv", 30, seed=5)).drop(columns="ill")
    table.to_csv(folder / "public.csv", index=False)
    return str(folder / "public.csv")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"defences": {"hospitl-1": {"l1": 1}}}, r"defences\.hospitl-1: no such party; did you mean"),
        (
            {"defences": {"all": {"mixup": 0.2}}, "dp": {"hospital-2": DP}},
            r"defences\.all\.mixup = 0\.2: .*dp\.hospital-2",
        ),
        (
            {"defences": {"all": {"relaxloss": 1.0}}, "dp": {"hospital-2": DP}},
            r"defences\.all\.relaxloss = 1\.0: .*dp\.hospital-2",
        ),
        (
            {"defences": {"all": {"distil": "dmp"}}},
            r"defences\.all\.distil = 'dmp': there are no public records",
        ),
        (
            {"defences": {"hospital-2": {"patience": 2}}, "dp": {"all": DP}},
            r"defences\.hospital-2\.stop_on = 'held-out': .*use 'public'",
        ),
        (
            {"defences": {"hospital-2": {"patience": 2, "stop_on": "public"}}},
            r"defences\.hospital-2\.stop_on = 'public': there are no public records.*data\.public",
        ),
        (
            {"defences": {"hospital-1": {"epochs": 2}}, "training": {"steps": 3}},
            r"defences\.hospital-1\.epochs = 2: training\.steps = 3",
        ),
        (
            {"defences": {"all": {"dropout": 0.5}}, "model": {"name": "logistic"}},
            r"defences\.all\.dropout = 0\.5: model 'logistic' has no activation layer",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_before_any_work(sections: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepare.check(scenario(tmp_path, **sections), None)


def test_public_records_without_a_label_are_no_records_to_stop_on(tmp_path: Path) -> None:
    data = dict(document(tmp_path)["data"]) | {"public": write_unlabelled(tmp_path)}
    defences = {"all": {"patience": 2, "stop_on": "public"}}
    with pytest.raises(InputError, match="no public records with a label"):
        prepare.check(scenario(tmp_path, data=data, defences=defences), None)


TIED = """
from torch import nn

def factory(input_shape, classes):
    twice = nn.Linear(4, 4)
    first, last = nn.Linear(input_shape[0], 4), nn.Linear(4, classes)
    return nn.Sequential(first, nn.Tanh(), twice, nn.Tanh(), twice, last)
"""


def test_ghost_clipping_of_a_module_that_it_is_wrong_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tied.py").write_text(TIED)
    sections = {"model": {"name": "tied:factory", "folder": str(tmp_path)}}
    switch = {"all": DP | {"gradients": "ghost"}}
    with pytest.raises(InputError, match=r"dp\.hospital-1\.gradients = 'ghost': .*use 'per-sample'"):
        prepare.check(scenario(tmp_path, dp=switch, **sections), None)
    prepare.check(scenario(tmp_path, dp={"all": DP}, **sections), None)
