"""What a run releases: ensembles, students, and the policies that need them; seen, served, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.runs import document, final_sha, finished_run, scenario, write_table
from support.serving import in_memory, new_key, opened
from torch.nn import functional

from fedsim.core import rng
from fedsim.core.data.released import decode_rows
from fedsim.core.data.store import read_party
from fedsim.core.errors import InputError
from fedsim.core.files import read_json
from fedsim.core.models import released
from fedsim.core.models.weights import weights_of
from fedsim.core.run_directory import RunDirectory
from fedsim.core.scenario.protection import OutputPolicy
from fedsim.core.training import sgd
from fedsim.core.training.draws import PartyDraws
from fedsim.core.training.steps import LocalTraining
from fedsim.runs import outsider, prepare
from fedsim.runs.checks.release import release_notices
from fedsim.serving.client import RemoteModel

SHORT = {
    "federation": {"rounds": 2},
    "adversary": {"attacks": ["loss"], "observers": ["participant", "outsider"]},
}


def with_policy(name: str) -> dict:
    adversary = SHORT["adversary"] | {"output": {"policy": name}}
    return SHORT | {"adversary": adversary}


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("ensemble")
    return finished_run(folder, release={"kind": "ensemble", "members": 2}, **with_policy("votes"))


def test_members_are_trained_apart_on_disjoint_parts(ensemble: RunDirectory) -> None:
    """The second party's two models, trained by hand."""
    made = released.load(ensemble)
    assert len(made.members) == 6
    party = read_party(ensemble.party_folder(0, 1, "hospital-2"))[0]
    order = rng.generator(3, "release/parts", party="hospital-2").permutation(len(party.train))
    for number, part in enumerate(np.array_split(order, 2)):
        module = released._member(ensemble, ensemble.model_path(0, 0))
        for t in (1, 2):
            stream = rng.torch_generator(3, "release/training", party=f"hospital-2/{number}", round=t)
            local = LocalTraining(ensemble.scenario.training)
            sgd.train(module, party.train.take(np.sort(part)), local, PartyDraws(stream, None))
        expected = weights_of(module)
        for name, array in weights_of(made.members[2 + number]).items():
            np.testing.assert_array_equal(array, expected[name])
    about = read_json(released.folder_of(ensemble, 0) / "about.json")
    assert about["kind"] == "ensemble" and about["members"] == 6 and 0 <= about["accuracy"] <= 1


def test_the_release_changes_nothing_that_participants_see(ensemble: RunDirectory, tmp_path: Path) -> None:
    plain = finished_run(tmp_path, **SHORT)
    assert final_sha(plain) == final_sha(ensemble)
    notices = " ".join(ensemble.manifest["notices"])
    assert "against them it protects nothing" in notices
    scores = [run.table("scores").query("observer == 'participant'")["score"] for run in (plain, ensemble)]
    np.testing.assert_array_equal(*scores)


def test_a_student_learns_public_records_with_the_ensembles_answers(tmp_path: Path) -> None:
    data = dict(document(tmp_path)["data"]) | {
        "public": str(write_table(tmp_path / "public.csv", 40, seed=9))
    }
    run = finished_run(tmp_path, data=data, release="student", **SHORT)
    assert len(released.load(run).members) == 1
    assert set(run.table("scores")["observer"]) == {"participant", "outsider"}


def test_the_last_global_models_are_an_ensemble_too(tmp_path: Path) -> None:
    settings = {"kind": "ensemble", "of": "federation", "members": 2}
    run = finished_run(tmp_path, release=settings, dp={"all": {"epsilon": 8.0}}, **SHORT)
    candidates = run.read_candidates(0).records
    x = torch.from_numpy(candidates.features)
    modules = [released._member(run, run.model_path(0, t)) for t in (1, 2)]
    with torch.no_grad():
        mean = torch.stack([functional.softmax(module(x).double(), 1) for module in modules]).mean(0)
        told = released.load(run).module(OutputPolicy())(x).exp()
    torch.testing.assert_close(told, mean)


@pytest.mark.parametrize("policy", [{"policy": "votes", "epsilon": 0.5}, {"policy": "hamp"}])
def test_served_answers_are_the_offline_ones(ensemble: RunDirectory, policy: dict) -> None:
    made = opened(ensemble)
    spends = {"epsilon_budget": 1e6} if policy["policy"] == "votes" else {}
    http = RemoteModel(
        "http://testserver", new_key(made, name=policy["policy"], **policy, **spends), in_memory(made)
    )
    features = ensemble.read_candidates(0).records.features[:7]
    target = outsider.of_run(ensemble, OutputPolicy(**policy), seed=5)
    np.testing.assert_array_equal(http.ask(features), target.ask(features))
    made.database.close()


def test_memguard_is_served_where_the_run_has_its_classifier(tmp_path: Path, ensemble: RunDirectory) -> None:
    run = finished_run(tmp_path, **with_policy("memguard"))
    made = opened(run)
    http = RemoteModel("http://testserver", new_key(made, policy="memguard"), in_memory(made))
    features = run.read_candidates(0).records.features[:7]
    np.testing.assert_array_equal(http.ask(features), outsider.of_run(run, seed=5).ask(features))
    assert len(decode_rows(http.schema, features)) == 7
    with pytest.raises(InputError, match="policy 'memguard' needs a classifier"):
        released.load(ensemble).backing(OutputPolicy(policy="memguard"), ensemble)
    with pytest.raises(InputError, match="policy 'votes' needs models that the parties trained apart"):
        released.load(run).module(OutputPolicy(policy="votes"))
    made.database.close()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"release": "student"}, r"release\.kind = 'student': there are no public records"),
        (
            {"release": "ensemble", "dp": {"hospital-2": {"epsilon": 3.0}}},
            r"release\.of = 'parties': .*dp\.hospital-2",
        ),
        (with_policy("votes"), r"output\.policy = 'votes': only models"),
        ({"release": {"kind": "ensemble", "of": "federation", "members": 9}}, r"members = 9: there are 3"),
    ],
)
def test_what_cannot_be_released_is_refused_before_any_work(
    sections: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        prepare.check(scenario(tmp_path, **({"federation": {"rounds": 3}} | sections)), None)


def test_memguard_beside_dp_is_said_to_be_outside_of_it(tmp_path: Path) -> None:
    guarded = {"adversary": {"output": {"policy": "memguard"}}}
    private = scenario(tmp_path, dp={"hospital-2": {"epsilon": 8}}, **guarded)
    assert "outside the ε" in " ".join(release_notices(private))
    assert release_notices(scenario(tmp_path, **guarded)) == ()
    assert release_notices(scenario(tmp_path, dp={"hospital-2": {"epsilon": 8}})) == ()
